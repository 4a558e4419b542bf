//! Checks whether the database answers, whether its schema fits, and whether its clock is right.

use runtime::clock::Clock;
use runtime::error_chain::chain;
use runtime::service::Service;
use sqlx::PgPool;
use store::DatabaseConfig;
use store::MIGRATOR;
use store::upkeep::grants;
use time::Duration;

use super::check::Check;

/// A larger difference is worth a warning. The workers' due times, leases and calls use the database's clock, and
/// gateways refuse calls whose time is minutes off. An order's expiry uses the clock of the ingress.
const DIFFERS: Duration = Duration::seconds(2);

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
    let checks =
        vec![Check::ok("database", "it answers"), schema(&pool).await, rights(&pool).await, time(&pool, clock).await];
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
        Err(error) => Check::failed(NAME, chain(&error), "bring the database and this build together"),
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
