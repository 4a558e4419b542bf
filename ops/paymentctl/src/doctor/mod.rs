//! `paymentctl doctor`: checks everything that the service depends on, from the machine where it runs, and changes
//! nothing.
//!
//! Run it with the variables of a process (and with paymentctl's own `DATABASE_URL` and `AMQP_URL`), on a machine
//! of the same kind. Then it finds what a process there would find. It skips what no variable names, and says so.

use ::broker::AmqpConfig;
use runtime::clock::Clock;
use runtime::env::Env;
use serde_json::json;
use store::DatabaseConfig;
use store::cache::{Redis, RedisConfig};

use crate::answer::{Answer, count};

mod broker;
mod check;
mod database;
mod gateways;

pub use check::{Check, State};

/// Runs all checks at once.
pub async fn run(mut env: Env) -> Answer {
    let clock = Clock::system();
    let database = DatabaseConfig::from_env(&mut env, 1);
    let amqp = if env.optional("AMQP_URL").is_some() { AmqpConfig::from_env(&mut env).map(Some) } else { Some(None) };
    let management = crate::deploy::broker_setup::management_url(&mut env);
    let redis =
        if env.optional("REDIS_URL").is_some() { RedisConfig::from_env(&mut env).map(Some) } else { Some(None) };
    let file = env.optional("GATEWAYS_FILE");
    let mut checks: Vec<Check> = env
        .into_faults()
        .0
        .into_iter()
        .map(|fault| Check::failed(format!("configuration {}", fault.subject), fault.wrong, fault.remedy))
        .collect();
    if checks.is_empty() {
        checks.push(Check::ok("configuration", "every variable that is set can be read"));
    }
    let (database, broker, redis, gateways) = tokio::join!(
        database::look(database, clock),
        broker::look(amqp, management),
        look_at_redis(redis),
        gateways::look(file, clock),
    );
    checks.extend([database, broker, redis, gateways].into_iter().flatten());
    answer(&checks)
}

/// The configuration checks already report a faulty variable, so this check is left out for it.
async fn look_at_redis(config: Option<Option<RedisConfig>>) -> Vec<Check> {
    const NAME: &str = "redis";
    let config = match config {
        None => return Vec::new(),
        Some(None) => return vec![Check::skipped(NAME, "set REDIS_URL if the service has a Redis")],
        Some(Some(config)) => config,
    };
    let remedy = "check REDIS_URL and that the server runs; until then the service is slower and nothing else";
    vec![match Redis::connect(&config).await.is_connected() {
        true => Check::ok(NAME, "it answers in time"),
        false => Check::warning(NAME, "it does not answer in time", remedy),
    }]
}

fn answer(checks: &[Check]) -> Answer {
    let number = |state| checks.iter().filter(|check| check.state == state).count();
    let (failed, warnings) = (number(State::Failed), number(State::Warning));
    let mut lines: Vec<String> = checks.iter().map(Check::line).collect();
    lines.push(format!(
        "{}: {} failed, {}, {} not looked at",
        count(checks.len(), "check"),
        failed,
        count(warnings, "warning"),
        number(State::Skipped),
    ));
    let view = |check: &Check| json!({ "name": check.name, "state": check.state.as_str(), "said": check.said, "remedy": check.remedy });
    let json = json!({ "ok": failed == 0, "checks": checks.iter().map(view).collect::<Vec<_>>() });
    Answer::new(crate::answer::lines(&lines), json, failed == 0)
}
