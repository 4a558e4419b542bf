//! What a test holds: the whole system, running.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::{PgPool, PgPoolOptions};
use testkit::{Relay, TestBroker};
use url::Url;

use crate::downstream::{Delivery, Downstream};
use crate::gateways::Gateways;
use crate::process::{Ended, Process, Program, free_address};
use crate::servers::{Addresses, PrivateServers, Servers};
use crate::shop::{Order, Purchase, Shop};
use crate::{Gateway, SOON, eventually, unique};

/// The limits per client. They are off here, because one buyer at one address makes all purchases.
const BUDGETS: [&str; 7] = [
    "REQUESTS_PER_ADDRESS",
    "REQUESTS_PER_USER",
    "REQUESTS_PER_KEY",
    "CONNECTIONS_PER_ADDRESS",
    "REQUESTS_IN_HAND",
    "STREAMS_PER_USER",
    "MAX_PENDING_PER_USER",
];

/// A command of the deploy step must end within this time.
const COMMAND: Duration = Duration::from_secs(60);
/// How long the effects of the last payment may take: events, and repeated callbacks.
const AFTERWARDS: Duration = Duration::from_secs(90);
/// How many lines of each log a failure shows.
const TAIL: usize = 40;
/// The tables whose sizes a failure shows.
const TABLES: [&str; 7] =
    ["payment_orders", "payment_transactions", "refund_records", "callbacks", "jobs", "events", "cases"];

/// How to create a world.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The number of ingresses. With more than one, clients reach the service through a proxy that distributes to them.
    pub apis: usize,
    /// The number of callback workers.
    pub workers: usize,
    /// The number of check workers. 0 unless a test is about them: then an order stays as callbacks left it.
    pub check_workers: usize,
    /// The number of refund workers. 0 unless a test is about them.
    pub refund_workers: usize,
    /// The number of relays; one of them is active.
    pub relays: usize,
    /// How many times faster than the real ones the simulator's callback schedules run.
    pub speed: f64,
    /// `RUST_LOG` of every process.
    pub log: &'static str,
    /// More variables of the service, besides the usual ones.
    pub env: Vec<(&'static str, String)>,
    /// The port of a fault proxy through which the service reaches the database.
    pub database_port: Option<u16>,
    /// The port of a fault proxy through which the service reaches the broker.
    pub broker_port: Option<u16>,
    /// The service reaches the gateways through a fault proxy that can pause and cut connections.
    pub gateways_apart: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            apis: 1,
            workers: 1,
            check_workers: 0,
            refund_workers: 0,
            relays: 1,
            speed: 1000.0,
            log: "info",
            env: Vec::new(),
            database_port: None,
            broker_port: None,
            gateways_apart: false,
        }
    }
}

impl Setup {
    /// The service counts refused callbacks from this machine as a gateway's, never as a stranger's. So a test may
    /// send many of them.
    #[must_use]
    pub fn trusting_this_machine(mut self) -> Setup {
        self.env.push(("ALIPAY_CALLBACK_IPS", "127.0.0.0/8".to_owned()));
        self.env.push(("WECHAT_CALLBACK_IPS", "127.0.0.0/8".to_owned()));
        self
    }
}

/// The whole system on its own database and virtual host. Everything ends with this value.
pub struct World {
    // The fields are dropped in this order: the processes first, the servers last.
    /// The ingress.
    pub api: Process,
    /// The other ingresses, if there are more.
    pub more_apis: Vec<Process>,
    /// The callback workers.
    pub workers: Vec<Process>,
    /// The check workers.
    pub check_workers: Vec<Process>,
    /// The refund workers.
    pub refund_workers: Vec<Process>,
    /// The relays.
    pub relays: Vec<Process>,
    /// The merchant's frontend.
    pub shop: Shop,
    /// Both gateways.
    pub gateways: Gateways,
    /// The consumer of the events.
    pub downstream: Downstream,
    /// A pool for reading.
    pub db: PgPool,
    /// Where the service listens.
    pub public_url: String,
    /// `VIEW_TOKEN_SECRET`.
    pub view_token_secret: String,
    /// `SEAL_KEY`.
    pub seal_key: String,
    /// `COPIES_KEY`.
    pub copies_key: String,
    /// The addresses of the database and the broker.
    pub addresses: Addresses,
    /// How each program is started, except its listen address.
    programs: BTreeMap<&'static str, Program>,
    dir: PathBuf,
    /// The proxy in front of several ingresses.
    _front: Option<Relay>,
    servers: Servers,
}

impl World {
    /// Starts one of each default process and waits until they are ready.
    pub async fn start() -> World {
        World::with(Setup::default()).await
    }

    /// Starts what `setup` says, on the servers of the whole run.
    pub async fn with(setup: Setup) -> World {
        World::on(Servers::shared().await, setup).await
    }

    /// Starts what `setup` says, on these servers.
    pub async fn on(servers: Servers, setup: Setup) -> World {
        let dir = std::env::temp_dir().join(format!("payment-e2e-{}", unique()));
        fs::create_dir_all(dir.join("logs")).expect("a folder can be made");
        let addresses = servers.addresses();
        deploy(&addresses, &dir).await;
        let (public_url, listen, front) = places_of_ingresses(setup.apis).await;
        let gateways =
            Gateways::start(&dir.join("gateways"), setup.speed, public_url.clone(), setup.gateways_apart).await;
        let shop = Shop::new(public_url.clone());
        let (view_token_secret, seal_key) = (format!("view-{}{}", unique(), unique()), unique() + &unique());
        let (copies_key, redis) = redis(&addresses);
        let program = |name: &str| {
            let (database, amqp) = addresses.login(name);
            let (database, amqp) = (by_way_of(&database, setup.database_port), by_way_of(&amqp, setup.broker_port));
            let usual = [
                ("DATABASE_URL", database),
                ("AMQP_URL", amqp),
                ("GATEWAYS_FILE", gateways.file().display().to_string()),
                ("RUST_LOG", setup.log.to_owned()),
            ];
            let unlimited = BUDGETS.map(|name| (name, "0".to_owned()));
            let all = usual.into_iter().chain(unlimited).chain(redis.clone()).chain(setup.env.iter().cloned());
            all.fold(Program::new(name), |program, (name, value)| program.env(name, value))
        };
        let api = program("payment-api")
            .env("PUBLIC_URL", &public_url)
            .env("JWT_HS256_SECRET", &shop.jwt_secret)
            .env("USER_ADMIN_TOKENS_UNTIL", in_a_day())
            .env("BUYER_PRICES", "any,offer,catalogue")
            .env("VIEW_TOKEN_SECRET", &view_token_secret)
            .env("SEAL_KEY", &seal_key)
            .env("RETURN_URL_ORIGINS", "https://shop.example.com");
        let logs = dir.join("logs");
        let workers = ["callback-worker", "check-worker", "refund-worker", "relay"];
        let mut programs: BTreeMap<&str, Program> =
            workers.into_iter().map(|name| (name, program(name).env("PUBLIC_URL", &public_url))).collect();
        programs.insert("payment-api", api.clone());
        let many = |name: &str, count: usize| -> Vec<Process> {
            let program = &programs[name];
            (1..=count).map(|n| Process::new(format!("{name}-{n}"), program.clone(), &logs)).collect()
        };
        let mut apis = (1..).zip(&listen).map(|(n, listen)| {
            let name = if n == 1 { "payment-api".to_owned() } else { format!("payment-api-{n}") };
            Process::new(name, api.clone().env("LISTEN_ADDR", listen.to_string()), &logs)
        });
        let world = World {
            api: apis.next().expect("an ingress"),
            more_apis: apis.collect(),
            workers: many("callback-worker", setup.workers),
            check_workers: many("check-worker", setup.check_workers),
            refund_workers: many("refund-worker", setup.refund_workers),
            relays: many("relay", setup.relays),
            downstream: Downstream::start(&addresses.downstream).await,
            db: PgPoolOptions::new().max_connections(6).connect_lazy(&addresses.database).expect("a database URL"),
            shop,
            gateways,
            public_url,
            view_token_secret,
            seal_key,
            copies_key,
            addresses,
            programs,
            dir,
            _front: front,
            servers,
        };
        world.processes().for_each(Process::spawn);
        join_all(world.processes().map(Process::ready)).await;
        world
    }

    /// Every process of the service.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        let workers = self.workers.iter().chain(&self.check_workers).chain(&self.refund_workers);
        self.apis().chain(workers).chain(&self.relays)
    }

    /// Every ingress.
    pub fn apis(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.api).chain(&self.more_apis)
    }

    /// A program of the service with all its variables, listening on free ports.
    #[must_use]
    pub fn program(&self, name: &str) -> Program {
        self.programs[name].clone().env("LISTEN_ADDR", "127.0.0.1:0").env("OPS_ADDR", "127.0.0.1:0")
    }

    /// `paymentctl` as the operator alice starts it, with its own role and its own user.
    #[must_use]
    pub fn paymentctl(&self) -> Program {
        let (database, amqp) = self.addresses.login("paymentctl");
        Program::new("paymentctl")
            .env("DATABASE_URL", database)
            .env("AMQP_URL", amqp)
            .env("RABBITMQ_MANAGEMENT_URL", &self.addresses.management)
            .env("REDIS_URL", &self.addresses.redis)
            .env("GATEWAYS_FILE", self.gateways.file().display().to_string())
            .env("PAYMENT_OPERATOR", "alice")
    }

    /// A folder for what programs print.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a deployment does for a broker that is empty again.
    pub async fn set_up_broker(&self) {
        set_up_broker(&self.addresses, &self.dir).await;
    }

    /// A new order: `buy(Gateway::Alipay, "page", "12.34")`.
    pub async fn buy(&self, gateway: Gateway, scene: &str, yuan: &str) -> Order {
        self.shop.buy(&Purchase::new(gateway, scene, yuan)).await
    }

    /// `count` new orders of 1 yuan at both gateways, a few at a time.
    pub async fn buy_many(&self, count: usize) -> Vec<Order> {
        let mut orders = Vec::with_capacity(count);
        while orders.len() < count {
            let few = (orders.len()..count.min(orders.len() + 16)).map(|n| async move {
                match n % 2 {
                    0 => self.buy(Gateway::Alipay, "page", "1.00").await,
                    _ => self.buy(Gateway::Wechat, "native", "1.00").await,
                }
            });
            orders.extend(join_all(few).await);
        }
        orders
    }

    /// The buyer pays.
    pub async fn pay(&self, order: &Order) {
        self.gateways.pay(order).await;
    }

    /// Pays a few orders at a time, so that callbacks arrive before, during and after a concurrent fault.
    pub async fn pay_slowly(&self, orders: &[Order]) {
        for few in orders.chunks(4) {
            join_all(few.iter().map(|order| self.pay(order))).await;
        }
    }

    /// Waits until every callback about a payment so far was answered with success.
    pub async fn wait_all_answered(&self) {
        eventually("every callback is answered", SOON, async || {
            let trades = self.gateways.ledger().await;
            trades.iter().filter(|trade| trade["state"] == "paid").all(|trade| trade["delivered"] == true).then_some(())
        })
        .await;
    }

    /// Asserts a normal end: `orders` orders, all of them paid, and no case.
    ///
    /// # Panics
    /// When this is not so `within` this time, plus a while for the effects of a payment.
    pub async fn all_settled(&self, orders: usize, within: Duration) {
        self.wait_all_paid(within).await;
        self.wait_quiet(AFTERWARDS).await;
        self.books_agree().await;
        assert_eq!(self.number("select count(*) from payment_orders").await, Some(orders as i64));
        assert_eq!(self.number("select count(*) from cases").await, Some(0));
        assert!(self.processes().all(Process::runs), "a process gave up");
        self.logs_are_clean();
    }

    /// The order's status in the database.
    pub async fn status(&self, order: &Order) -> String {
        let status = sqlx::query_scalar("select status from payment_orders where id = $1").bind(&order.id);
        status.fetch_one(&self.db).await.expect("the order is there")
    }

    /// Waits until the order is paid.
    pub async fn wait_paid(&self, order: &Order) {
        self.wait_status(order, "paid").await;
    }

    /// Waits until the order has this status.
    pub async fn wait_status(&self, order: &Order, status: &str) {
        let what = format!("order {} is {status}", order.order_no);
        eventually(&what, SOON, async || (self.status(order).await == status).then_some(())).await;
    }

    /// Waits until every order of the database is paid.
    pub async fn wait_all_paid(&self, within: Duration) {
        eventually("every order is paid", within, async || {
            let sql = "select count(*) from payment_orders where status <> 'paid'";
            (self.number(sql).await? == 0).then_some(())
        })
        .await;
    }

    /// The events about an order that the downstream system received, once `order.paid` is among them.
    pub async fn events_of(&self, order: &Order) -> Vec<Delivery> {
        let what = format!("order.paid of {}", order.order_no);
        eventually(&what, SOON, async || {
            let about = self.downstream.about(&order.id);
            about.iter().any(|delivery| delivery.kind == "order.paid").then_some(about)
        })
        .await
    }

    /// One number from the database; `None` while the database is down.
    pub async fn number(&self, sql: &'static str) -> Option<i64> {
        sqlx::query_scalar(sql).fetch_one(&self.db).await.ok()
    }

    /// Rows of text from the database.
    pub async fn texts(&self, sql: &'static str) -> Vec<String> {
        sqlx::query_scalar(sql).fetch_all(&self.db).await.expect("the database answers")
    }

    /// Everything that the processes have logged.
    #[must_use]
    pub fn logs(&self) -> String {
        self.processes().map(Process::log).collect()
    }

    /// The virtual host, on shared servers.
    ///
    /// # Panics
    /// On private ones.
    #[must_use]
    pub fn broker(&self) -> &TestBroker {
        match &self.servers {
            Servers::Shared { broker, .. } => broker,
            Servers::Private(_) => panic!("private servers have no virtual host of the test kit"),
        }
    }

    /// The servers that this test may stop.
    ///
    /// # Panics
    /// On shared ones.
    #[must_use]
    pub fn servers(&self) -> &PrivateServers {
        match &self.servers {
            Servers::Private(servers) => servers,
            Servers::Shared { .. } => panic!("these servers are not this test's own"),
        }
    }

    /// Whether the broker of this world was wiped.
    pub(crate) fn broker_was_wiped(&self) -> bool {
        matches!(&self.servers, Servers::Private(servers) if servers.was_wiped())
    }

    /// The number of rows of each table, for the report of a failure.
    async fn state(&self) -> String {
        let mut text = String::new();
        for table in TABLES {
            let sql = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
            let count = sqlx::query_scalar::<_, i64>(sql).fetch_one(&self.db).await;
            text += &format!("{table}: {}\n", count.map_or_else(|error| error.to_string(), |count| count.to_string()));
        }
        text
    }
}

/// The public URL, the listen address of each ingress, and the proxy in front if there are several.
async fn places_of_ingresses(count: usize) -> (String, Vec<SocketAddr>, Option<Relay>) {
    let listen: Vec<SocketAddr> = (0..count).map(|_| free_address()).collect();
    if let [only] = listen.as_slice() {
        return (format!("http://{only}"), listen, None);
    }
    let front = Relay::to_any(listen.iter().map(ToString::to_string).collect()).await;
    (format!("http://127.0.0.1:{}", front.port()), listen, Some(front))
}

/// An RFC 3339 time: until then tokens of the users' issuer name people.
fn in_a_day() -> String {
    let at = runtime::clock::Clock::system().now() + time::Duration::days(1);
    at.format(&time::format_description::well_known::Rfc3339).expect("a time can be written")
}

/// The same address with another port of this machine.
fn by_way_of(url: &str, port: Option<u16>) -> String {
    let Some(port) = port else { return url.to_owned() };
    let mut url = Url::parse(url).expect("a URL");
    url.set_port(Some(port)).expect("a URL with a port");
    url.into()
}

/// What a deployment does once: it creates the tables, the topology and the rights on both.
pub async fn deploy(addresses: &Addresses, dir: &Path) {
    for command in ["migrate", "database-roles"] {
        succeed(Program::new("paymentctl").arg(command).env("DATABASE_URL", &addresses.database), dir).await;
    }
    let db = sqlx::PgPool::connect(&addresses.database).await.expect("the database answers");
    testkit::buyers_refund_at_once(&db).await;
    db.close().await;
    set_up_broker(addresses, dir).await;
}

async fn set_up_broker(addresses: &Addresses, dir: &Path) {
    let setup = Program::new("paymentctl")
        .arg("broker-setup")
        .env("AMQP_ADMIN_URL", &addresses.admin)
        .env("RABBITMQ_MANAGEMENT_URL", &addresses.management);
    succeed(setup, dir).await;
}

async fn succeed(command: Program, dir: &Path) {
    let Ended { status, said } = command.run(dir, COMMAND).await;
    assert!(status.success(), "{command:?}: {said}");
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
            return;
        }
        for process in self.processes() {
            let log = process.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- {} (runs: {})", process.name, process.runs());
            lines[lines.len().saturating_sub(TAIL)..].iter().for_each(|line| println!("{line}"));
        }
        let state = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::try_current().ok().map(|handle| {
                handle.block_on(async { tokio::time::timeout(Duration::from_secs(5), self.state()).await })
            })
        });
        if let Some(Ok(state)) = state {
            println!("--- rows\n{state}");
        }
        println!("--- kept: {}", self.dir.display());
    }
}

/// Tests share one Redis; the prefix and the key keep their entries apart.
fn redis(addresses: &Addresses) -> (String, [(&'static str, String); 3]) {
    let copies_key = unique() + &unique();
    let variables = [
        ("REDIS_URL", addresses.redis.clone()),
        ("REDIS_KEY_PREFIX", format!("{}:", unique())),
        ("COPIES_KEY", copies_key.clone()),
    ];
    (copies_key, variables)
}
