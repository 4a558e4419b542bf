//! Checks whether the database answers, whether its schema fits, and whether its clock is right.

use domain::message::job::{JobKind, Pace};
use runtime::clock::Clock;
use runtime::error_chain::chain;
use runtime::service::Service;
use sqlx::PgPool;
use store::DatabaseConfig;
use store::MIGRATOR;
use store::tables::{events, jobs};
use store::upkeep::grants;
use time::Duration;

use super::check::{Check, State};

/// A larger difference is worth a warning. The workers' due times, leases and calls use the database's clock, and
/// gateways refuse calls whose time is minutes off. An order's expiry uses the clock of the ingress.
const DIFFERS: Duration = Duration::seconds(2);

/// What is due, or not published, for longer than this is worth a warning.
const WAITS: Duration = Duration::minutes(1);

/// Checks the database.
pub(super) async fn look(config: Option<DatabaseConfig>, clock: Clock) -> Vec<Check> {
    let Some(config) = config else { return Vec::new() };
    let pool = match store::connect::connect(&config.url, Service::PaymentCtl.as_str(), 1).await {
        Ok(pool) => pool,
        Err(error) => {
            let remedy = "check DATABASE_URL, and that the server runs and knows this user";
            return vec![Check::failed("database", chain(&error), remedy)];
        }
    };
    let mut checks =
        vec![Check::ok("database", "it answers"), schema(&pool).await, rights(&pool).await, time(&pool, clock).await];
    if checks.iter().all(|check| check.state != State::Failed) {
        checks.push(work(&pool).await);
        checks.push(outbox(&pool).await);
    }
    pool.close().await;
    checks
}

async fn schema(pool: &PgPool) -> Check {
    const NAME: &str = "database schema";
    match store::upkeep::schema::check_schema(pool).await {
        Ok(0) => Check::ok(NAME, format!("it has the {} migrations of this build", MIGRATOR.iter().count())),
        Ok(newer) => {
            Check::ok(NAME, format!("it has {newer} migrations of a newer release, which leave this one alone"))
        }
        Err(error) => Check::failed(
            NAME,
            chain(&error),
            "run `paymentctl migrate` and `paymentctl database-roles`, or take the build that fits",
        ),
    }
}

async fn rights(pool: &PgPool) -> Check {
    const NAME: &str = "database rights";
    match grants::check(pool, Service::PaymentCtl).await {
        Ok(None) => Check::ok(NAME, "this user may do what paymentctl needs, and nothing else"),
        Ok(Some(excess)) => {
            Check::warning(NAME, excess.to_string(), "log in as payment_ctl, which has no other rights")
        }
        Err(error) => Check::failed(NAME, chain(&error), "log in as payment_ctl, and run `paymentctl database-roles`"),
    }
}

/// Whether a worker does the jobs that are due.
async fn work(pool: &PgPool) -> Check {
    const NAME: &str = "jobs";
    for kind in JobKind::ALL.iter().filter(|kind| kind.spec().pace == Pace::WhenDue) {
        match jobs::backlog(pool, *kind).await {
            Ok((count, oldest)) if count > 0 && oldest > WAITS => {
                let since = oldest.whole_seconds();
                let said = format!("{count} of the kind {kind} are due, the oldest since {since} s");
                return Check::warning(
                    NAME,
                    said,
                    format!("start {} and relay, or read their logs", kind.spec().worker),
                );
            }
            Ok(_) => {}
            Err(error) => return Check::failed(NAME, chain(&error), "check that the server stays up"),
        }
    }
    Check::ok(NAME, "none has been due for long")
}

/// Whether events reach the broker.
async fn outbox(pool: &PgPool) -> Check {
    const NAME: &str = "events";
    match events::backlog(pool).await {
        Ok((count, oldest)) if count > 0 && oldest > WAITS => {
            let said = format!("{count} are not published, the oldest since {} s", oldest.whole_seconds());
            let remedy = "bind a queue to payment.events (ops/integrate.md, section 7), or start the relay";
            Check::warning(NAME, said, remedy)
        }
        Ok(_) => Check::ok(NAME, "none waits for long"),
        Err(error) => Check::failed(NAME, chain(&error), "check that the server stays up"),
    }
}

async fn time(pool: &PgPool, clock: Clock) -> Check {
    const NAME: &str = "database clock";
    let before = clock.now();
    let theirs = store::connect::its_clock(pool).await;
    let ours = before + (clock.now() - before) / 2;
    match theirs.map(|theirs| -> Duration { theirs - ours }) {
        Ok(ahead) if ahead.abs() <= DIFFERS => Check::ok(NAME, format!("{} from ours", seconds(ahead))),
        Ok(ahead) => Check::warning(NAME, format!("{} from ours", seconds(ahead)), "set both machines by NTP"),
        Err(error) => Check::failed(NAME, chain(&error), "check that the server stays up"),
    }
}

/// `+0.1 s`
pub(super) fn seconds(span: Duration) -> String {
    format!("{:+.1} s", span.as_seconds_f64())
}
