//! How a worker starts, is seen and stops: everything about a process but its work.

use std::collections::HashSet;
use std::process::ExitCode;

use broker::AmqpConfig;
use domain::message::event;
use gateway::Gateways;
use runtime::env::{ConfigFaults, Env, Fault};
use runtime::health::{Checks, OpsConfig};
use runtime::service::Service;
use runtime::start::{Ready, given, listen};
use secrecy::SecretString;
use sqlx::PgPool;
use store::DatabaseConfig;
use store::cache::{Redis, RedisConfig, Renewer};
use tokio_util::sync::CancellationToken;

/// What one worker needs of its surroundings.
pub struct Worker {
    /// Which one: its name in logs, at the broker and at the database, and its rights there.
    pub service: Service,
    /// The default of `DATABASE_MAX_CONNECTIONS`: as many as it runs transactions at once.
    pub connections: u32,
    /// The default port of `OPS_ADDR`.
    pub ops_port: u16,
}

/// A started process.
pub struct Process {
    /// The pool.
    pub db: PgPool,
    /// Where the broker is.
    pub amqp_url: SecretString,
    /// Passes on which orders have changed, if there is a Redis.
    pub copies: Renewer,
    /// Cancelled when the work should end.
    pub stop: CancellationToken,
}

/// What a worker has of its own.
pub trait Own {
    /// The merchant accounts, if it works with any.
    fn accounts(&self) -> Option<&Gateways> {
        None
    }
}

/// The relay calls no gateway.
impl Own for crate::relay::Settings {}

impl Own for Gateways {
    fn accounts(&self) -> Option<&Gateways> {
        Some(self)
    }
}

impl Worker {
    /// Starts the process, does `work` until SIGTERM, and ends. A start that cannot succeed names every fault at once.
    ///
    /// `configure` reads what this worker has of its own.
    pub async fn run<C: Own>(
        self,
        configure: impl FnOnce(&mut Env) -> Option<C>,
        work: impl AsyncFnOnce(Process, C),
    ) -> ExitCode {
        runtime::start::run(self.service, async |env, stop| self.prepare(env, stop, configure, work).await).await
    }

    async fn prepare<C: Own>(
        &self,
        mut env: Env,
        stop: CancellationToken,
        configure: impl FnOnce(&mut Env) -> Option<C>,
        work: impl AsyncFnOnce(Process, C),
    ) -> Result<Ready<impl Future<Output = ()>>, ConfigFaults> {
        let database = DatabaseConfig::from_env(&mut env, self.connections);
        let amqp = AmqpConfig::from_env(&mut env);
        let redis = RedisConfig::from_env(&mut env);
        let ops = OpsConfig::from_env(&mut env, self.ops_port);
        let own = configure(&mut env);
        let mut faults = env.into_faults();
        let (db, broker, ops) = tokio::join!(
            given(database.as_ref().map(|database| store::start::reach(database, self.service))),
            given(amqp.as_ref().map(|amqp| broker::reach(amqp, self.service))),
            given(ops.map(|ops| listen("OPS_ADDR", ops.addr))),
        );
        let db = db.and_then(|db| faults.take(db));
        let broker = broker.and_then(|broker| faults.take(broker));
        let ops = ops.and_then(|listener| faults.take(listener));
        if let (Some(db), Some(accounts)) = (&db, own.as_ref().and_then(Own::accounts)) {
            faults.take(store::start::check_accounts(db, accounts).await);
        }
        faults.finish()?;
        let (Some(db), Some(amqp), Some(()), Some(ops), Some(own)) = (db, amqp, broker, ops, own) else {
            let remedy = "report this defect";
            return Err(Fault::new("configuration", "a part of it is missing, and no fault says which", remedy).into());
        };
        let redis = given(redis.as_ref().map(Redis::connect)).await;
        let process = Process { db: db.clone(), amqp_url: amqp.url, copies: Renewer::new(redis), stop };
        let checks = checks(db.clone());
        let work = async move {
            work(process, own).await;
            db.close().await;
        };
        Ok(Ready { ops, checks, work })
    }
}

/// A worker is ready while the database answers.
fn checks(db: PgPool) -> Checks {
    Checks::new().add("database", move || {
        let db = db.clone();
        async move { store::connect::ping(&db).await.map_err(|error| error.to_string()) }
    })
}

/// Reads `OPTIONAL_EVENTS`: types with commas between them, or `None` when it is not set. A type that does not exist would
/// leave the one that was meant unpublished for ever.
pub fn optional_events(env: &mut Env) -> Option<HashSet<String>> {
    let text = env.optional("OPTIONAL_EVENTS")?;
    let named = text.split(',').map(str::trim).filter(|kind| !kind.is_empty());
    let named: HashSet<String> = named.map(str::to_owned).collect();
    let mut unknown: Vec<&String> = named.iter().filter(|kind| !event::kind::ALL.contains(&kind.as_str())).collect();
    unknown.sort_unstable();
    if !unknown.is_empty() {
        let wrong = format!("{unknown:?} names no type of event");
        env.fault("OPTIONAL_EVENTS", wrong, format!("choose from {}", event::kind::ALL.join(", ")));
    }
    Some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_optional_event_that_does_not_exist_is_a_fault() {
        let mut env = Env::of([("OPTIONAL_EVENTS", "order.payd, case.opened,refund")]);
        optional_events(&mut env);
        let text = env.finish().unwrap_err().to_string();
        assert!(text.contains(r#"OPTIONAL_EVENTS: ["order.payd", "refund"] names no type of event"#), "{text}");
        assert!(text.contains("order.paid"), "{text}");
        for (value, read) in [("case.opened , order.closed,", Some(2)), ("", None)] {
            let mut env = Env::of([("OPTIONAL_EVENTS", value)]);
            assert_eq!(optional_events(&mut env).map(|kinds| kinds.len()), read);
            env.finish().unwrap();
        }
    }
}
