//! How the process comes up, and how it goes down.

use std::sync::Arc;
use std::time::Duration;

use broker::AmqpConfig;
use broker::topology::{self, Needs};
use broker::{Publisher, PublisherOptions, PublisherState};
use domain::PaymentMethod;
use gateway::Gateways;
use runtime::clock::Clock;
use runtime::env::{ConfigFaults, Env, PublicUrl};
use runtime::error_chain::chain;
use runtime::health::Checks;
use runtime::health::OpsConfig;
use runtime::http_server::{Door, Friends, HttpLimits};
use runtime::service::Service;
use runtime::telemetry::PrometheusHandle;
use secrecy::SecretString;
use sqlx::PgPool;
use store::DatabaseConfig;
use store::cache::{Cache, Redis, RedisConfig};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::callers::KnownCallers;
use crate::config::{Listen, Settings, seal_keys};
use crate::guard::is_listed;
use crate::hints::Hints;
use crate::hub::Hub;
use crate::intake::Intake;
use crate::limits::Limits;
use crate::refused_accounts::RefusedAccounts;
use crate::state::{App, InHand};
use crate::token_keys::TokenKeys;
use crate::writer::OrderWriter;
use crate::{callbacks_only, router};

/// The name in logs of the database and the broker.
const NAME: &str = "payment-api";
/// Connections of the pool: the ingress runs one short statement at a time.
const CONNECTIONS: u32 = 8;
/// Files that are kept free for broker, Redis, operations and key files; the database's pool has its own beside them.
const OTHER_FILES: u64 = 128;

/// How long a start waits for the copies that it takes in.
const WARM_UP: Duration = Duration::from_secs(2);

/// A process with everything that it needs, not yet serving.
pub struct Ready {
    app: Arc<App>,
    /// To tend their keys.
    gateways: Gateways,
    token_keys: TokenKeys,
    publisher: Publisher,
    /// Ends the publisher; only after the last request.
    publisher_stop: CancellationToken,
    listen: Listen,
    listener: TcpListener,
    callbacks: Option<TcpListener>,
    ops: TcpListener,
}

/// Reads the environment and tries everything that the process depends on.
///
/// # Errors
/// Every fault at once: of variables, of `gateways.toml`, of the database and its schema, of the broker.
pub async fn prepare(mut env: Env, stop: CancellationToken) -> Result<Ready, ConfigFaults> {
    arm(&mut env);
    let listen = Listen::from_env(&mut env);
    let ops_config = OpsConfig::from_env(&mut env, 9100);
    let settings = Settings::from_env(&mut env);
    let database = DatabaseConfig::from_env(&mut env, CONNECTIONS);
    let amqp = AmqpConfig::from_env(&mut env);
    let redis = RedisConfig::from_env(&mut env);
    let tokens = TokenKeys::from_env(&mut env);
    let seal = seal_keys(&mut env);
    let gateways = accounts(&mut env);

    let mut faults = env.into_faults();
    let (db, redis, broker, listener, callbacks, ops) = tokio::join!(
        settle(database.as_ref().map(connect)),
        settle(redis.as_ref().map(Redis::connect)),
        settle(amqp.as_ref().map(|amqp| broker(&amqp.url))),
        settle(listen.map(|listen| runtime::start::listen("LISTEN_ADDR", listen.addr))),
        settle(
            listen.and_then(|listen| listen.callbacks).map(|addr| runtime::start::listen("CALLBACK_LISTEN_ADDR", addr))
        ),
        settle(ops_config.map(|ops| runtime::start::listen("OPS_ADDR", ops.addr))),
    );
    let db = db.and_then(|db| faults.take(db));
    let broker = broker.and_then(|broker| faults.take(broker));
    let listener = listener.and_then(|listener| faults.take(listener));
    let callbacks = callbacks.and_then(|listener| faults.take(listener));
    let ops = ops.and_then(|listener| faults.take(listener));

    if let (Some(db), Some(gateways)) = (&db, &gateways) {
        faults.take(store::start::check_accounts(db, gateways).await);
    }

    let publisher_stop = CancellationToken::new();
    let publisher = amqp.filter(|_| faults.0.is_empty()).and_then(|amqp| {
        let started = Publisher::start(&amqp.url, NAME, PublisherOptions::default(), publisher_stop.clone());
        faults.take(started)
    });
    let clock = Clock::system();
    let ready = || {
        broker?;
        let (settings, db, publisher, gateways) = (settings?, db?, publisher?, gateways?);
        let (token_keys, authenticator, view_tokens) = tokens?;
        let app = App {
            writer: OrderWriter::start(db.clone()),
            intake: Intake::new(publisher.clone(), db.clone(), clock),
            hub: Hub::new(settings.streams, stop),
            hints: Hints::default(),
            seal: seal?,
            refused_accounts: RefusedAccounts::default(),
            db,
            accounts: Arc::new(gateways.clone()),
            clock,
            authenticator,
            view_tokens,
            turns: Arc::default(),
            strikes: Default::default(),
            unknown_proxy: Default::default(),
            callers: KnownCallers::new(|method| settings.callers(method)),
            in_hand: InHand::new(&settings),
            limits: Limits::new(settings.per_address, settings.per_user, redis.as_ref()),
            cache: Cache::new(redis),
            settings,
        };
        let (app, listen, listener, ops) = (Arc::new(app), listen?, listener?, ops?);
        Some(Ready { app, gateways, token_keys, publisher, publisher_stop, listen, listener, callbacks, ops })
    };
    match ready() {
        Some(ready) if faults.0.is_empty() => Ok(ready),
        _ => Err(faults),
    }
}

/// What only builds for tests can do.
fn arm(env: &mut Env) {
    #[cfg(debug_assertions)]
    {
        runtime::crash::arm(env);
        runtime::clock::arm(env);
    }
    #[cfg(not(debug_assertions))]
    let _ = env;
}

/// Awaits what could be begun at all.
async fn settle<T>(begun: Option<impl Future<Output = T>>) -> Option<T> {
    match begun {
        Some(begun) => Some(begun.await),
        None => None,
    }
}

/// Reads `GATEWAYS_FILE`. A fault of the file says what to do in its last words.
fn accounts(env: &mut Env) -> Option<Gateways> {
    let path = env.file("GATEWAYS_FILE", "name the file that describes the merchant accounts")?;
    let faults = match Gateways::load_where(&path, PublicUrl::unfit(env)) {
        Ok(gateways) => return Some(gateways),
        Err(faults) => faults,
    };
    for fault in faults.iter().map(ToString::to_string) {
        let (wrong, remedy) = fault.rsplit_once("; ").unwrap_or((&fault, "correct the file"));
        env.fault("GATEWAYS_FILE", wrong, remedy);
    }
    None
}

async fn connect(config: &DatabaseConfig) -> Result<PgPool, ConfigFaults> {
    let connecting = async {
        store::connect::connect(&config.url, NAME, config.max_connections).await.map_err(|error| chain(&error))
    };
    let pool = runtime::start::check("database", "check DATABASE_URL and that the server runs", connecting).await?;
    let checking = async { store::upkeep::schema::check_schema(&pool).await.map_err(|error| chain(&error)) };
    runtime::start::check(
        "database schema",
        "run `payment-api migrate` and `payment-api database-roles`, or the release that fits",
        checking,
    )
    .await?;
    store::start::check_rights(&pool, Service::PaymentApi).await?;
    Ok(pool)
}

/// A broker that is away at the start is a fault; one that goes away later is not, since the database takes over.
async fn broker(url: &SecretString) -> Result<(), ConfigFaults> {
    let connection = broker::open(url, NAME).await?;
    let checked = topology::check(&connection, &Needs::of(Service::PaymentApi)).await;
    broker::close(&connection).await;
    Ok(checked?)
}

impl Ready {
    /// Serves until `stop`, then finishes what is in hand.
    pub async fn serve(self, metrics: PrometheusHandle, stop: CancellationToken) {
        self.greet();
        self.warm().await;
        let connections = affordable(&self.listen, &self.app.db);
        // One address leaves three quarters to the others, however few there are.
        let per_address = self.listen.per_address.min((connections / 4).max(1));
        let limits = HttpLimits { connections, per_address, ..HttpLimits::default() };
        let friends = friends(self.app.clone());
        let door = |listener| Door { listener, friends: friends.clone() };
        let (hub, db) = (self.app.hub.clone(), self.app.db.clone());
        let watching = tokio::spawn(async move { hub.run(db).await });
        let (app, until) = (self.app.clone(), stop.clone());
        let callers = tokio::spawn(async move { app.callers.watch(until).await });
        let (app, until, keys) = (self.app.clone(), stop.clone(), self.token_keys);
        let tokens = tokio::spawn(async move { keys.watch(&app.authenticator, &app.view_tokens, until).await });
        let tending = tokio::spawn(self.gateways.tend(self.app.clock, stop.clone()));
        let checks = checks(self.app.db.clone(), self.publisher.clone());
        // Operations may look in until the very end.
        let ops_stop = CancellationToken::new();
        let ops = tokio::spawn(runtime::health::serve(self.ops, checks, metrics, ops_stop.clone()));

        let callbacks = self.callbacks.map(|listener| {
            runtime::http_server::serve_http(door(listener), callbacks_only(self.app.clone()), limits, stop.clone())
        });
        let everything = runtime::http_server::serve_http(door(self.listener), router(self.app.clone()), limits, stop);
        tokio::join!(everything, settle(callbacks));

        self.publisher_stop.cancel();
        self.publisher.finished().await;
        self.app.db.close().await;
        ops_stop.cancel();
        let _ = tokio::join!(ops, watching, callers, tokens, tending);
        info!("Stopped");
    }

    /// Takes in what will be asked for first, unless that takes long.
    async fn warm(&self) {
        let app = self.app.clone();
        let warming = tokio::spawn(async move { app.cache.warm(&app.db).await });
        // It goes on beside the first requests then.
        let _ = timeout(WARM_UP, warming).await;
    }

    fn greet(&self) {
        runtime::start::say_if_for_tests();
        for method in PaymentMethod::ALL {
            if self.app.callers.of(*method).is_empty() {
                info!(gateway = %method, "Callbacks of {method} are taken from any address: no list is set");
            }
        }
        if let Ok(address) = self.listener.local_addr() {
            info!(%address, "Serving on {address}");
        }
        if let Some(Ok(address)) = self.callbacks.as_ref().map(TcpListener::local_addr) {
            info!(%address, "Serving callbacks on {address}");
        }
    }
}

/// Those who connect for many others: our proxies, and the gateways where lists name them.
fn friends(app: Arc<App>) -> Friends {
    Arc::new(move |address| {
        let called_from = |method: &PaymentMethod| is_listed(address, &app.callers.of(*method));
        is_listed(address, &app.settings.trusted_proxies) || PaymentMethod::ALL.iter().any(called_from)
    })
}

/// As many connections to each listener as were asked for, or as leave enough files for the service itself: strangers that
/// hold connections must not keep it from the database. Each client counts twice, since what it asks for may take a
/// connection to a gateway.
fn affordable(listen: &Listen, pool: &PgPool) -> usize {
    let wanted = listen.connections;
    let Some(files) = runtime::start::raise_open_files() else { return wanted };
    let own = OTHER_FILES + u64::from(pool.options().get_max_connections());
    let listeners = 1 + u64::from(listen.callbacks.is_some());
    let most = usize::try_from(files.saturating_sub(own) / 2 / listeners).unwrap_or(usize::MAX).max(1);
    if most < wanted {
        warn!(
            wanted,
            most,
            files,
            "This process may open no more than {files} files, so each listener takes {most} connections at once and not the \
             {wanted} of MAX_CONNECTIONS: raise the limit (`ulimit -Hn`; systemd: LimitNOFILE)"
        );
    }
    wanted.min(most)
}

/// Ready for callbacks as long as one of the two roads works. A failure names both, a gauge tells of each.
fn checks(db: PgPool, publisher: Publisher) -> Checks {
    Checks::new().add("callbacks", move || {
        let (db, publisher) = (db.clone(), publisher.clone());
        async move {
            let (broker, database) = (reachable(&publisher), answers(&db).await);
            for (road, state) in [("broker", &broker), ("database", &database)] {
                metrics::gauge!("callback_road_up", "road" => road).set(if state.is_ok() { 1.0 } else { 0.0 });
            }
            match (broker, database) {
                (Err(broker), Err(database)) => Err(format!("broker: {broker}; database: {database}")),
                _ => Ok(()),
            }
        }
    })
}

/// In less time than the whole check has: an absent database must not hide a present broker.
async fn answers(db: &PgPool) -> Result<(), String> {
    match timeout(Duration::from_secs(1), store::connect::ping(db)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

fn reachable(publisher: &Publisher) -> Result<(), String> {
    match publisher.state() {
        PublisherState::Ready => Ok(()),
        PublisherState::Blocked => Err("it takes no messages".to_owned()),
        PublisherState::NoSession => Err("no session".to_owned()),
    }
}
