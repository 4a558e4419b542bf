//! The start and the stop of the ingress.

use std::sync::Arc;
use std::time::Duration;

use broker::{AmqpConfig, Publisher, PublisherOptions, PublisherState};
use domain::{KeyEnvironment, PaymentMethod};
use export::Limits as ExportLimits;
use export::desk::{AT_ONCE, Desk};
use gateway::Gateways;
use runtime::clock::Clock;
use runtime::env::{ConfigFaults, Env, Fault};
use runtime::error_chain::chain;
use runtime::health::{Checks, OpsConfig};
use runtime::http_server::{Door, Friends, HttpLimits, serve_http};
use runtime::service::Service;
use runtime::start::{self, Ready, given};
use sqlx::PgPool;
use store::DatabaseConfig;
use store::cache::{Cache, Redis, RedisConfig};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::api_keys::ApiKeys;
use crate::access::callers::KnownCallers;
use crate::access::guard::is_listed;
use crate::access::limits::Limits;
use crate::access::token_keys::TokenKeys;
use crate::access::tokens::Tokens;
use crate::config::{Listen, Settings, seal_keys};
use crate::create::intake::Intake;
use crate::create::refused_accounts::RefusedAccounts;
use crate::create::writer::OrderWriter;
use crate::state::App;
use crate::watch::hints::Hints;
use crate::watch::hub::Hub;
use crate::{callbacks_only, router};

/// Which process this is.
const SERVICE: Service = Service::PaymentApi;
/// Connections of the pool: the ingress runs one short statement at a time.
const CONNECTIONS: u32 = 8;
/// Files that stay free for the broker, Redis, the operations address and key files. The pool of the database has its own
/// share.
const OTHER_FILES: u64 = 128;

/// How long a start waits until the copies of orders are loaded.
const WARM_UP: Duration = Duration::from_secs(2);

/// The ingress with everything that it needs, not yet serving.
struct Ingress {
    app: Arc<App>,
    /// To refresh their keys.
    gateways: Gateways,
    token_keys: TokenKeys,
    publisher: Publisher,
    /// Stops the publisher, after the last request.
    publisher_stop: CancellationToken,
    listen: Listen,
    listener: TcpListener,
    callbacks: Option<TcpListener>,
}

/// Reads the environment and checks everything that the process depends on. An unreachable broker stops the start. Later
/// it does not stop the process, because callbacks then go to the database.
///
/// # Errors
/// Every fault at once: of variables, of `gateways.toml`, of the database and its schema, of the broker.
pub async fn prepare(mut env: Env, stop: CancellationToken) -> Result<Ready<impl Future<Output = ()>>, ConfigFaults> {
    let listen = Listen::from_env(&mut env);
    let ops = OpsConfig::from_env(&mut env, 9100);
    let settings = Settings::from_env(&mut env);
    let database = DatabaseConfig::from_env(&mut env, CONNECTIONS);
    let amqp = AmqpConfig::from_env(&mut env);
    let redis = RedisConfig::from_env(&mut env);
    let tokens = TokenKeys::from_env(&mut env);
    let seal = seal_keys(&mut env);
    let gateways = Gateways::from_env(&mut env);

    let mut faults = env.into_faults();
    let (db, redis, broker, listener, callbacks, ops) = tokio::join!(
        given(database.as_ref().map(|database| store::start::reach(database, SERVICE))),
        given(redis.as_ref().map(Redis::connect)),
        given(amqp.as_ref().map(|amqp| broker::reach(amqp, SERVICE))),
        given(listen.map(|listen| start::listen("LISTEN_ADDR", listen.addr))),
        given(listen.and_then(|listen| listen.callbacks).map(|addr| start::listen("CALLBACK_LISTEN_ADDR", addr))),
        given(ops.map(|ops| start::listen("OPS_ADDR", ops.addr))),
    );
    let (db, broker) = (db.and_then(|db| faults.take(db)), broker.and_then(|broker| faults.take(broker)));
    let listener = listener.and_then(|listener| faults.take(listener));
    let callbacks = callbacks.and_then(|listener| faults.take(listener));
    let ops = ops.and_then(|listener| faults.take(listener));

    if let Some(gateways) = &gateways {
        check(gateways, db.as_ref(), settings.as_ref(), &mut faults).await;
    }

    let publisher_stop = CancellationToken::new();
    let publisher = amqp.filter(|_| faults.0.is_empty()).and_then(|amqp| {
        let (name, options) = (SERVICE.as_str(), PublisherOptions::default());
        faults.take(Publisher::start(&amqp.url, name, options, publisher_stop.clone()))
    });
    let ready = || {
        broker?;
        let (settings, db, publisher, gateways) = (settings?, db?, publisher?, gateways?);
        let (token_keys, authenticator, view_tokens) = tokens?;
        let (clock, seal) = (Clock::system(), seal?.map(Arc::new));
        let of_keys = gateways.clone();
        let api_keys = ApiKeys::new(move || environment(&of_keys), clock).with_seal(seal.clone());
        let app = App {
            writer: OrderWriter::start(db.clone()),
            intake: Intake::new(publisher.clone(), db.clone(), clock),
            hub: Hub::new(settings.streams, stop.clone()),
            hints: Hints::default(),
            seal,
            refused_accounts: RefusedAccounts::default(),
            exports: Desk::new(db.clone(), settings.export_dir.clone(), clock, ExportLimits::default()),
            db,
            accounts: Arc::new(gateways.clone()),
            clock,
            tokens: Tokens::new(authenticator, api_keys, view_tokens),
            turns: Arc::default(),
            strikes: Default::default(),
            unknown_proxy: Default::default(),
            callers: KnownCallers::new(|method| settings.callers(method)),
            in_hand: Arc::new(settings.in_hand()),
            closing: Default::default(),
            syncing: Default::default(),
            limits: Arc::new(Limits::new(&settings.per_minute, redis.as_ref())),
            cache: Cache::new(redis),
            settings,
        };
        let (app, listen, listener) = (Arc::new(app), listen?, listener?);
        let ingress = Ingress { app, gateways, token_keys, publisher, publisher_stop, listen, listener, callbacks };
        Some((ops?, ingress))
    };
    match ready() {
        Some((ops, ingress)) if faults.0.is_empty() => Ok(ingress.ready(ops, stop).await),
        _ => Err(faults),
    }
}

/// Checks what must fit the accounts: the orders in the database, and who names a price.
async fn check(gateways: &Gateways, db: Option<&PgPool>, settings: Option<&Settings>, faults: &mut ConfigFaults) {
    if let Some(db) = db {
        faults.take(store::start::check_accounts(db, gateways).await);
    }
    if let Some(settings) = settings {
        faults.take(check_prices(settings, gateways));
    }
}

/// Only the buyers of a simulator may name any price without an end.
fn check_prices(settings: &Settings, gateways: &Gateways) -> Result<(), Fault> {
    if !settings.buyer_prices.any || gateways.are_simulated() {
        return Ok(());
    }
    let wrong = "`any` lets a buyer name the price, and an account is not a simulator's";
    Err(Fault::new("BUYER_PRICES", wrong, "leave `any` out, or set BUYER_PRICES_ANY_UNTIL for a while"))
}

/// The API keys that this process accepts: those for real business where an account takes real money.
fn environment(gateways: &Gateways) -> KeyEnvironment {
    if gateways.has_production() { KeyEnvironment::Live } else { KeyEnvironment::Test }
}

impl Ingress {
    /// The process is ready once the first copies are in memory, and its limits fit the number of files that it may open.
    async fn ready(self, ops: TcpListener, stop: CancellationToken) -> Ready<impl Future<Output = ()>> {
        self.warm().await;
        let connections = affordable(&self.listen, &self.app.db);
        let checks = checks(self.app.db.clone(), self.publisher.clone());
        Ready { ops, checks, work: self.serve(connections, stop) }
    }

    /// Serves until `stop`, then finishes the requests in flight. Each listener accepts `connections` at once.
    async fn serve(self, connections: usize, stop: CancellationToken) {
        self.greet();
        // One address gets a quarter at most, even if there are few.
        let per_address = self.listen.per_address.min((connections / 4).max(1));
        let limits = HttpLimits { connections, per_address, ..HttpLimits::default() };
        let friends = friends(self.app.clone());
        let door = |listener| Door { listener, friends: friends.clone() };
        let (hub, db) = (self.app.hub.clone(), self.app.db.clone());
        let watching = tokio::spawn(async move { hub.run(db).await });
        let (app, until) = (self.app.clone(), stop.clone());
        let callers = tokio::spawn(async move { app.callers.watch(until).await });
        let (app, until, keys) = (self.app.clone(), stop.clone(), self.token_keys);
        let tokens = tokio::spawn(async move {
            let Tokens { bearer, view, .. } = &app.tokens;
            tokio::join!(keys.watch(bearer, view, until.clone()), bearer.follow(&until));
        });
        let tending = tokio::spawn(self.gateways.tend(self.app.clock, stop.clone()));
        let (app, until) = (self.app.clone(), stop.clone());
        let api_keys = tokio::spawn(async move {
            let reading = store::connect::one_more(&app.db);
            app.tokens.keys.watch(&reading, &app.db, until).await;
            reading.close().await;
        });
        let (app, until) = (self.app.clone(), stop.clone());
        let exports = tokio::spawn(async move { app.exports.run(until).await });

        let callbacks = self
            .callbacks
            .map(|listener| serve_http(door(listener), callbacks_only(self.app.clone()), limits, stop.clone()));
        let everything = serve_http(door(self.listener), router(self.app.clone()), limits, stop);
        tokio::join!(everything, given(callbacks));

        self.publisher_stop.cancel();
        self.publisher.finished().await;
        // They write the last uses of the keys, and what was exported, so they end before the database.
        let _ = tokio::join!(api_keys, exports);
        self.app.db.close().await;
        let _ = tokio::join!(watching, callers, tokens, tending);
    }

    /// Loads the copies that will be read first, the API keys and the published keys of tokens, unless that takes long.
    async fn warm(&self) {
        let app = self.app.clone();
        let warming = tokio::spawn(async move {
            let Tokens { bearer, keys, .. } = &app.tokens;
            let (_, keys, ()) = tokio::join!(app.cache.warm(&app.db), keys.refresh(&app.db), bearer.fetch_published());
            if let Err(error) = keys {
                warn!(error = chain(&error), "The API keys were not read at the start");
            }
        });
        // After the time-out it continues beside the first requests.
        let _ = timeout(WARM_UP, warming).await;
    }

    fn greet(&self) {
        for method in PaymentMethod::ALL {
            if self.app.callers.of(*method).is_empty() {
                info!(gateway = %method, "Callbacks of {method} are accepted from any address: no list is set");
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

/// Addresses that connect for many clients: our proxies, and the gateways if lists name them.
fn friends(app: Arc<App>) -> Friends {
    Arc::new(move |address| {
        let called_from = |method: &PaymentMethod| is_listed(address, &app.callers.of(*method));
        is_listed(address, &app.settings.trusted_proxies) || PaymentMethod::ALL.iter().any(called_from)
    })
}

/// The number of connections that each listener accepts: the configured number, or fewer, so that enough files stay free
/// for the service itself. Strangers that hold connections must not cut it off from the database. Each client counts
/// twice, because its request may need a connection to a gateway.
fn affordable(listen: &Listen, pool: &PgPool) -> usize {
    let wanted = listen.connections;
    let Some(files) = start::raise_open_files() else { return wanted };
    let own = OTHER_FILES + u64::from(pool.options().get_max_connections() + AT_ONCE);
    let listeners = 1 + u64::from(listen.callbacks.is_some());
    let most = usize::try_from(files.saturating_sub(own) / 2 / listeners).unwrap_or(usize::MAX).max(1);
    if most < wanted {
        warn!(
            wanted,
            most,
            files,
            "This process may open no more than {files} files, so each listener accepts {most} connections at once and not the \
             {wanted} of MAX_CONNECTIONS: raise the limit (`ulimit -Hn`; systemd: LimitNOFILE)"
        );
    }
    wanted.min(most)
}

/// The process is ready for callbacks while one of the two routes works. A failure names both; a gauge shows each.
fn checks(db: PgPool, publisher: Publisher) -> Checks {
    Checks::new().add("callbacks", move || {
        let (db, publisher) = (db.clone(), publisher.clone());
        async move {
            let (broker, database) = (reachable(&publisher), answers(&db).await);
            for (route, state) in [("broker", &broker), ("database", &database)] {
                metrics::gauge!("callback_road_up", "road" => route).set(if state.is_ok() { 1.0 } else { 0.0 });
            }
            match (broker, database) {
                (Err(broker), Err(database)) => Err(format!("broker: {broker}; database: {database}")),
                _ => Ok(()),
            }
        }
    })
}

/// Waits less than the whole check may take, so that an absent database does not hide a present broker.
async fn answers(db: &PgPool) -> Result<(), String> {
    match timeout(Duration::from_secs(1), store::connect::ping(db)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

fn reachable(publisher: &Publisher) -> Result<(), String> {
    match publisher.state() {
        PublisherState::Ready => Ok(()),
        PublisherState::Blocked => Err("it accepts no messages".to_owned()),
        PublisherState::NoSession => Err("no session".to_owned()),
    }
}
