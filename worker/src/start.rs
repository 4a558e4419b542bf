//! How a worker starts, is seen and stops: everything about a process but its work.

use std::collections::HashSet;
use std::process::ExitCode;

use broker::AmqpConfig;
use broker::MqError;
use broker::topology::{self, Difference, Needs};
use domain::message::event;
use gateway::Gateways;
use runtime::env::{ConfigFaults, Env, PublicUrl};
use runtime::error_chain::chain;
use runtime::health::Checks;
use runtime::health::OpsConfig;
use runtime::service::Service;
use runtime::shutdown::Shutdown;
use runtime::telemetry;
use runtime::telemetry::PrometheusHandle;
use secrecy::SecretString;
use sqlx::PgPool;
use store::DatabaseConfig;
use store::cache::{Redis, RedisConfig, Renewer};
use tikv_jemallocator::Jemalloc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// See payment-api's (ops/decisions/0015).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// What one worker needs of its surroundings.
pub struct Worker {
    /// Which one: its name in logs, at the broker and at the database, and its rights there.
    pub service: Service,
    /// The default of `DATABASE_MAX_CONNECTIONS`: as many as it runs transactions at once.
    pub connections: u32,
    /// The default port of `OPS_ADDR`.
    pub ops_port: u16,
    /// What a missing object at the broker means for this worker.
    pub missing: Missing,
}

/// What a missing object at the broker means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The worker cannot start.
    StopsTheStart,
    /// The worker is the one that declares it anew.
    IsRepaired,
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
        match self.start_and_work(configure, work).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{}: {error:#}", self.service);
                ExitCode::FAILURE
            }
        }
    }

    async fn start_and_work<C: Own>(
        &self,
        configure: impl FnOnce(&mut Env) -> Option<C>,
        work: impl AsyncFnOnce(Process, C),
    ) -> anyhow::Result<()> {
        telemetry::install_crypto();
        let mut env = Env::process();
        if let Err(fault) = telemetry::init(self.service.as_str()) {
            env.fault(fault.subject, fault.wrong, fault.remedy);
        }
        #[cfg(debug_assertions)]
        {
            runtime::crash::arm(&mut env);
            runtime::clock::arm(&mut env);
        }
        let metrics = telemetry::install_metrics()?;
        let shutdown = Shutdown::install()?;
        let database = DatabaseConfig::from_env(&mut env, self.connections);
        let amqp = AmqpConfig::from_env(&mut env);
        let redis = RedisConfig::from_env(&mut env);
        let addr = OpsConfig::from_env(&mut env, self.ops_port);
        let own = configure(&mut env);
        let mut faults = env.into_faults();
        let (db, road, listener) = tokio::join!(self.reach_database(database), self.reach_broker(amqp), listen(addr));
        let (db, amqp, listener) =
            (faults.take(db).flatten(), faults.take(road).flatten(), faults.take(listener).flatten());
        if let (Some(db), Some(accounts)) = (&db, own.as_ref().and_then(Own::accounts)) {
            faults.take(store::start::check_accounts(db, accounts).await);
        }
        faults.finish()?;
        let (Some(db), Some(amqp), Some(listener), Some(own)) = (db, amqp, listener, own) else {
            anyhow::bail!("a part of the configuration is missing, and no fault says which: a defect");
        };
        let redis = match &redis {
            Some(config) => Some(Redis::connect(config).await),
            None => None,
        };
        let pinged = db.clone();
        let checks = Checks::new().add("database", move || {
            let db = pinged.clone();
            async move { store::connect::ping(&db).await.map_err(|error| error.to_string()) }
        });
        info!(version = env!("CARGO_PKG_VERSION"), "{} is running", self.service);
        runtime::start::say_if_for_tests();
        let copies = Renewer::new(redis);
        let process = Process { db: db.clone(), amqp_url: amqp.url, copies, stop: shutdown.stop() };
        let work = async {
            work(process, own).await;
            db.close().await;
        };
        shutdown.run(seen(listener, checks, metrics, work)).await?;
        info!("{} has stopped", self.service);
        Ok(())
    }

    async fn reach_database(&self, config: Option<DatabaseConfig>) -> Result<Option<PgPool>, ConfigFaults> {
        let Some(config) = config else { return Ok(None) };
        let pool = runtime::start::check("database", "check DATABASE_URL and that the server runs", async {
            let pool = store::connect::connect(&config.url, self.service.as_str(), config.max_connections)
                .await
                .map_err(|error| chain(&error))?;
            Ok(pool)
        });
        let pool = pool.await?;
        let remedy = "run `payment-api migrate` and `payment-api database-roles`, or the release that fits";
        let schema = async { store::upkeep::schema::check_schema(&pool).await.map_err(|error| chain(&error)) };
        runtime::start::check("database schema", remedy, schema).await?;
        store::start::check_rights(&pool, self.service).await?;
        Ok(Some(pool))
    }

    async fn reach_broker(&self, config: Option<AmqpConfig>) -> Result<Option<AmqpConfig>, ConfigFaults> {
        let Some(config) = config else { return Ok(None) };
        let connection = broker::open(&config.url, self.service.as_str()).await?;
        let checked: Result<(), MqError> = topology::check(&connection, &Needs::of(self.service)).await;
        broker::close(&connection).await;
        match checked {
            Err(MqError::Topology(mut faults)) if self.missing == Missing::IsRepaired => {
                faults.0.retain(|fault| fault.difference != Difference::Missing);
                if !faults.0.is_empty() {
                    return Err(MqError::Topology(faults).into());
                }
            }
            checked => checked?,
        }
        Ok(Some(config))
    }
}

/// Does `work`, and lets operations look in until it has ended: what a process that was told to stop still has in hand is
/// worth seeing.
async fn seen(listener: TcpListener, checks: Checks, metrics: PrometheusHandle, work: impl Future<Output = ()>) {
    let done = CancellationToken::new();
    let shown = tokio::spawn(runtime::health::serve(listener, checks, metrics, done.clone()));
    work.await;
    done.cancel();
    let _ = shown.await;
}

/// Reads `OPTIONAL_EVENTS`: types with commas between them, or `None` when it is not set. A type that does not exist would
/// leave the one that was meant unpublished for ever.
pub fn optional_events(env: &mut Env) -> Option<HashSet<String>> {
    let text = env.optional("OPTIONAL_EVENTS")?;
    let asked = text.split(',').map(str::trim).filter(|kind| !kind.is_empty());
    let asked: HashSet<String> = asked.map(str::to_owned).collect();
    let mut unknown: Vec<&String> = asked.iter().filter(|kind| !event::kind::ALL.contains(&kind.as_str())).collect();
    unknown.sort_unstable();
    if !unknown.is_empty() {
        let wrong = format!("{unknown:?} names no type of event");
        env.fault("OPTIONAL_EVENTS", wrong, format!("choose from {}", event::kind::ALL.join(", ")));
    }
    Some(asked)
}

/// Reads `GATEWAYS_FILE` and the accounts in it, every fault named. `PUBLIC_URL`, where it is set, has to fit them.
pub fn gateways(env: &mut Env) -> Option<Gateways> {
    let path = env.file("GATEWAYS_FILE", "set it to the path of gateways.toml")?;
    match Gateways::load_where(&path, PublicUrl::unfit(env)) {
        Ok(gateways) => Some(gateways),
        Err(faults) => {
            faults.into_iter().for_each(|fault| env.fault("GATEWAYS_FILE", fault.to_string(), "mend gateways.toml"));
            None
        }
    }
}

async fn listen(config: Option<OpsConfig>) -> Result<Option<TcpListener>, ConfigFaults> {
    match config {
        Some(config) => runtime::start::listen("OPS_ADDR", config.addr).await.map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn operations_look_in_until_the_work_has_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let metrics = telemetry::install_metrics().unwrap();
        let shutdown = Shutdown::install().unwrap();
        let stop = shutdown.stop();
        let asked = async move |path: &str| {
            let mut socket = TcpStream::connect(addr).await?;
            socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).await?;
            let mut said = String::new();
            socket.read_to_string(&mut said).await?;
            std::io::Result::Ok(said)
        };
        let work = async {
            let sent = std::process::Command::new("kill").arg(std::process::id().to_string()).status();
            assert!(sent.unwrap().success());
            stop.cancelled().await;
            for path in ["/healthz", "/readyz", "/metrics"] {
                let said = asked(path).await.unwrap();
                assert!(said.starts_with("HTTP/1.1 200"), "{path}: {said}");
            }
        };
        shutdown.run(seen(listener, Checks::new(), metrics, work)).await.unwrap();
        assert!(TcpStream::connect(addr).await.is_err(), "and no longer");
    }

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
