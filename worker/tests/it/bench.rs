//! The workers against both gateways: the simulator on its own port, behind a connection on which a buyer can be
//! faster, and a mailbox in which its callbacks wait until a test delivers them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path as Segments;
use axum::http::HeaderMap;
use axum::routing::post;
use domain::message::callback::Callback;
use domain::message::job::{CheckRequest, JobKind, JobMessage, JobRequest};
use domain::{AccountName, CaseId, LatePaymentPolicy, OrderId, PaymentMethod, RefundId, Scene};
use gateway::{Gateways, PrepayOrder, callback_headers};
use gateway_sim::{Options, Simulator};
use runtime::clock::Clock;
use serde_json::Value;
use sqlx::PgPool;
use store::cache::Renewer;
use store::tables::jobs;
use store::tables::orders::Order;
use testkit::jobs::publish;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use worker::checks::CheckWorker;
use worker::jobs::run_batch;
use worker::refunds::{Budget, RefundWorker};

use crate::support::{World, copy, key_set};

/// What happens just before a call reaches its gateway, if the call contains one of these words.
type Before = Arc<Mutex<Option<(&'static [&'static str], Act)>>>;

#[derive(Clone)]
enum Act {
    /// A call of the simulator's control API.
    Control(String),
    /// A statement.
    Sql(&'static str),
}
/// The callbacks that the gateways have sent, oldest first.
type LetterBox = Arc<Mutex<Vec<Callback>>>;

/// The simulator's pauses pass this much faster.
const SPEED: f64 = 1000.0;
/// The time limit of everything that should be quick.
pub const SOON: std::time::Duration = std::time::Duration::from_secs(30);

pub struct Bench {
    pub world: World,
    pub checks: CheckWorker,
    pub refunds: RefundWorker,
    letters: LetterBox,
    before: Before,
    simulator: Simulator,
    folder: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Bench {
    /// Both gateways' account `main` has this policy for late payments.
    pub async fn new(db: PgPool, policy: &str) -> Bench {
        let mut world = World::new(db.clone());
        let clock = Clock::system();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", clock.fresh_id()));
        copy(&key_set(), &folder);
        let options = Options { speed: SPEED, ..Options::default() };
        let simulator = Simulator::start(&folder, "127.0.0.1:0", &options).await.unwrap();
        // What is changed through these keys, the simulator signs with.
        world.keys = simulator.keys().clone();
        let before = Before::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = listener.local_addr().unwrap();
        tokio::spawn(carry_wire(listener, simulator.address(), before.clone(), db.clone()));
        gateway_sim::keys::point_at(&folder, &format!("http://{wire}")).unwrap();
        let file = folder.join("gateways.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let policy = format!("account = \"main\"\nlate_payment = \"{policy}\"\n");
        std::fs::write(&file, text.replace("account = \"main\"\n", &policy)).unwrap();
        let letters = LetterBox::default();
        let public_url = letter_box(letters.clone()).await;
        world.worker.gateways = gateways(&folder);
        let refunds = RefundWorker {
            db: db.clone(),
            gateways: gateways(&folder),
            public_url,
            clock,
            budget: Budget::new(2),
            copies: Renewer::default(),
        };
        let checks = CheckWorker { db, gateways: gateways(&folder), clock, copies: Renewer::default() };
        Bench { world, checks, refunds, letters, before, simulator, folder }
    }

    /// From now on both gateways' account `main` has this policy for late payments.
    pub fn obey(&self, policy: &str) {
        let file = self.folder.join("gateways.toml");
        let mut text = std::fs::read_to_string(&file).unwrap();
        let line = |policy: &str| format!("late_payment = \"{policy}\"");
        for known in LatePaymentPolicy::ALL {
            text = text.replace(&line(known.as_str()), &line(policy));
        }
        std::fs::write(&file, text).unwrap();
        for gateways in [&self.world.worker.gateways, &self.checks.gateways, &self.refunds.gateways] {
            gateways.reload().unwrap();
        }
    }

    /// The same workers on another pool, as a second process would have them.
    pub fn on(&self, db: &PgPool) -> (CheckWorker, RefundWorker) {
        let (db, gateways, clock) = (db.clone(), || gateways(&self.folder), self.checks.clock);
        let (public_url, budget) = (self.refunds.public_url.clone(), self.refunds.budget.clone());
        let checks = CheckWorker { db: db.clone(), gateways: gateways(), clock, copies: Renewer::default() };
        (checks, RefundWorker { db, gateways: gateways(), public_url, clock, budget, copies: Renewer::default() })
    }

    /// A refund worker whose gateways accept no connection at first.
    pub async fn early(&self) -> RefundWorker {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let folder = self.folder.join("early");
        copy(&key_set(), &folder);
        gateway_sim::keys::point_at(&folder, &format!("http://{address}")).unwrap();
        let (simulator, before, db) = (self.simulator.address(), self.before.clone(), self.world.db.clone());
        tokio::spawn(async move {
            // Real time: the gateways are away this long.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            carry_wire(TcpListener::bind(address).await.unwrap(), simulator, before, db).await;
        });
        RefundWorker { gateways: gateways(&folder), ..self.on(&self.world.db).1 }
    }

    /// A pending order that its gateway knows: a QR code at either.
    pub async fn offered(&self, method: PaymentMethod) -> Order {
        let order = self.world.pending_order(method, "8.88").await;
        self.offer(order).await
    }

    /// Makes the gateway know a pending order.
    pub async fn offer(&self, order: Order) -> Order {
        let method = order.payment_method;
        let gateway = self.checks.gateways.get(method, &order.account).unwrap();
        let wanted = PrepayOrder {
            order_no: order.order_no.clone(),
            subject: order.subject.clone(),
            amount: order.amount,
            scene: if method == PaymentMethod::Alipay { Scene::Qr } else { Scene::Native },
            expires_at: order.expires_at.replace_nanosecond(0).unwrap(),
            notify_url: format!("{}/v1/callbacks/{method}/{}", self.refunds.public_url, order.account),
            return_url: None,
            openid: None,
            client_ip: None,
        };
        let request = gateway.prepay_request(&wanted).unwrap();
        gateway.prepay(&request, self.now()).await.unwrap();
        order
    }

    /// An order whose buyer has the cashier page open.
    pub async fn opened(&self, method: PaymentMethod) -> Order {
        let order = self.offered(method).await;
        self.act(&order, "open").await;
        order
    }

    /// The buyer acts, and no callback reports it.
    pub async fn act(&self, order: &Order, what: &str) -> Value {
        control(self.simulator.address(), "POST", &path(order, what), r#"{"notify":false}"#).await
    }

    /// An order that was paid, and that a check found to be paid.
    pub async fn paid(&self, method: PaymentMethod) -> Order {
        let order = self.opened(method).await;
        self.act(&order, "pay").await;
        self.check(&order).await;
        self.world.order(&order.id).await
    }

    /// The gateway sends a notice once more, and the callback that arrives. `which` names it: `""`, the last of the
    /// first payment; `"?nth=1"`, of the second; `"?refund=R1"`, of a refund.
    pub async fn notice(&self, order: &Order, which: &str) -> Option<Callback> {
        let before = self.letters.lock().unwrap().len();
        let sent = control(self.simulator.address(), "POST", &path(order, &format!("notify{which}")), "").await;
        assert!(sent["accepted"] == true || sent["error"].is_string(), "{sent}");
        self.letters().into_iter().skip(before).last()
    }

    /// Every callback that has arrived, oldest first.
    pub fn letters(&self) -> Vec<Callback> {
        self.letters.lock().unwrap().clone()
    }

    /// Runs the refund's job once, whenever it is due. Nothing happens without a job.
    pub async fn carry(&self, id: RefundId) {
        carry(&self.refunds, id).await;
    }

    /// Carries a refund on until its job is over or put off to a question a day.
    pub async fn carry_to_its_end(&self, id: RefundId) {
        let began = std::time::Instant::now();
        loop {
            self.pass(Duration::minutes(2)).await;
            self.carry(id).await;
            if self.refund_job(id).await.is_none_or(|(due, ..)| due > Duration::hours(23)) {
                return;
            }
            assert!(began.elapsed() < SOON, "the refund {id} does not end");
            // While calls fail, the worker holds the next ones back for a second.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Makes this much time pass for requested refunds, here and at the gateways.
    pub async fn pass(&self, time: Duration) {
        let seconds = format!(r#"{{"seconds":{}}}"#, time.whole_seconds());
        self.control("POST", "/sim/refunds/age", &seconds).await;
        let sql = "update refund_records set sent_at = sent_at - $1 * interval '1 second',
            updated_at = updated_at - $1 * interval '1 second'";
        sqlx::query(sql).bind(time.as_seconds_f64()).execute(&self.world.db).await.unwrap();
    }

    /// When the refund's job is due, counted from now, how often it was tried, and what is asked; `None`: it is over.
    pub async fn refund_job(&self, id: RefundId) -> Option<(Duration, i32, Value)> {
        self.job_of(JobKind::Refund, &id.to_string()).await
    }

    /// The refund in the simulator's books: its state, how often money moved, and what its trade holds against us.
    pub async fn booked(&self, order: &Order, refund_no: &str) -> Option<(String, u64)> {
        let trade = self.ledger(order).await;
        let refund = trade["refunds"].as_array()?.iter().find(|refund| refund["out_refund_no"] == refund_no)?.clone();
        Some((refund["state"].as_str()?.to_owned(), refund["effects"].as_u64()?))
    }

    /// The trade in the simulator's books.
    pub async fn ledger(&self, order: &Order) -> Value {
        self.ledger_of(order, 0).await
    }

    /// The trade of the order's n-th further payment.
    pub async fn ledger_of(&self, order: &Order, nth: u32) -> Value {
        let path = format!("/sim/trades/{}/{}?nth={nth}", order.payment_method, order.order_no);
        self.control("GET", &path, "").await
    }

    /// A call of the simulator's control API.
    pub async fn control(&self, method: &str, path: &str, body: &str) -> Value {
        control(self.simulator.address(), method, path, body).await
    }

    /// The buyer pays in the moment between the question and the close.
    pub fn pay_before_close(&self, order: &Order) {
        let close = &["alipay.trade.close", "/close HTTP/1.1"];
        *self.before.lock().unwrap() = Some((close, Act::Control(path(order, "pay"))));
    }

    /// This happens in the database while the next refund request is on its way.
    pub fn when_refunded(&self, sql: &'static str) {
        let refund = &["alipay.trade.refund", "POST /v3/refund/domestic/refunds HTTP/1.1"];
        *self.before.lock().unwrap() = Some((refund, Act::Sql(sql)));
    }

    pub async fn faults(&self, set: &str) {
        control(self.simulator.address(), "PUT", "/sim/faults", set).await;
    }

    /// The state of the trade in the simulator's books.
    pub async fn trade(&self, order: &Order) -> String {
        self.ledger(order).await["state"].as_str().unwrap_or("unknown").to_owned()
    }

    /// The last moment to pay passes, in our books.
    pub async fn expire(&self, order: &Order, ago: Duration) {
        let at = self.now() - ago;
        sqlx::query("update payment_orders set expires_at = $2, created_at = $2 - interval '30 minutes' where id = $1")
            .bind(order.id.to_string())
            .bind(at)
            .execute(&self.world.db)
            .await
            .unwrap();
    }

    pub async fn request_now(&self, id: OrderId, request: CheckRequest) {
        jobs::request(&self.world.db, &JobRequest::Check(id, request), Duration::ZERO).await.unwrap();
    }

    /// The message that the relay would publish for the order's check.
    pub async fn nudge(&self, order: &Order) -> JobMessage {
        publish(&self.world.db, JobKind::Check, &order.id.to_string()).await.expect("a check")
    }

    /// Runs the order's check once, whenever it is due.
    pub async fn check(&self, order: &Order) {
        let nudge = self.nudge(order).await;
        run_batch(&self.checks, vec![Ok(nudge)]).await.unwrap();
    }

    /// When the order's check is due, counted from now, how often it was tried, and what is asked; `None`: it is over.
    pub async fn job(&self, order: &Order) -> Option<(Duration, i32, Value)> {
        self.job_of(JobKind::Check, &order.id.to_string()).await
    }

    /// When a paid order is queried again; `None`: never.
    pub async fn look_back(&self, order: &Order) -> Option<(Duration, i32, Value)> {
        self.job_of(JobKind::LookBack, &order.id.to_string()).await
    }

    /// Runs the order's look back once, whenever it is due.
    pub async fn run_look_back(&self, order: &Order) {
        let nudge = publish(&self.world.db, JobKind::LookBack, &order.id.to_string()).await.expect("a look back");
        run_batch(&self.checks, vec![Ok(nudge)]).await.unwrap();
    }

    /// The newest case of an order.
    pub async fn case_of(&self, order: &Order) -> CaseId {
        store::tables::cases::of_order(&self.world.db, order.id).await.unwrap().pop().expect("a case").id
    }

    async fn job_of(&self, kind: JobKind, id: &str) -> Option<(Duration, i32, Value)> {
        let job: Option<(OffsetDateTime, i32, Value)> =
            sqlx::query_as("select due_at, attempts, payload from jobs where kind = $1 and ref_id = $2")
                .bind(kind)
                .bind(id)
                .fetch_optional(&self.world.db)
                .await
                .unwrap();
        job.map(|(due_at, attempts, payload)| (due_at - self.now(), attempts, payload))
    }

    pub async fn event_kinds(&self) -> Vec<String> {
        self.world.events().await.into_iter().map(|(kind, _)| kind).collect()
    }

    /// Cases of late or second payments: kind, status, and whether its evidence names a refund.
    pub async fn decisions(&self) -> Vec<(String, String, bool)> {
        sqlx::query_as("select kind, status, evidence ? 'refund_no' from cases order by id")
            .fetch_all(&self.world.db)
            .await
            .unwrap()
    }

    fn now(&self) -> OffsetDateTime {
        self.checks.clock.now()
    }
}

/// Runs a refund's job once, whenever it is due.
pub async fn carry(worker: &RefundWorker, id: RefundId) {
    if let Some(nudge) = publish(&worker.db, JobKind::Refund, &id.to_string()).await {
        run_batch(worker, vec![Ok(nudge)]).await.unwrap();
    }
}

fn path(order: &Order, what: &str) -> String {
    format!("/sim/trades/{}/{}/{what}", order.payment_method, order.order_no)
}

fn gateways(folder: &Path) -> Gateways {
    Gateways::load(&folder.join("gateways.toml")).unwrap()
}

/// Takes every callback in and answers with success, as a network that holds them back would not.
async fn letter_box(letters: LetterBox) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let take =
        async move |Segments((method, account)): Segments<(PaymentMethod, String)>, headers: HeaderMap, body: Bytes| {
            let stored = |name: &&&str| headers.contains_key(**name);
            let value = |name: &&str| ((*name).to_owned(), headers[*name].to_str().unwrap().to_owned());
            letters.lock().unwrap().push(Callback {
                method,
                account: AccountName::parse(account).unwrap(),
                headers: callback_headers(method).iter().filter(stored).map(value).collect(),
                body,
                received_at: Clock::system().now(),
                job_id: None,
            });
            "success"
        };
    let app = Router::new().route("/v1/callbacks/{method}/{account}", post(take));
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// One call of the simulator's control API.
async fn control(address: SocketAddr, method: &str, path: &str, body: &str) -> Value {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or(Value::Null)
}

/// A wire to the simulator. A close that passes waits until what was to happen before it has happened.
async fn carry_wire(listener: TcpListener, simulator: SocketAddr, before: Before, db: PgPool) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(pass_on(client, simulator, before.clone(), db.clone()));
    }
}

async fn pass_on(client: TcpStream, simulator: SocketAddr, before: Before, db: PgPool) {
    let Ok(server) = TcpStream::connect(simulator).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from_client.read(&mut chunk).await {
        let text = String::from_utf8_lossy(&chunk[..length]);
        let act = before.lock().unwrap().take_if(|(words, _)| words.iter().any(|word| text.contains(word)));
        match act {
            Some((_, Act::Control(path))) => drop(control(simulator, "POST", &path, r#"{"notify":false}"#).await),
            Some((_, Act::Sql(sql))) => drop(sqlx::query(sql).execute(&db).await.unwrap()),
            None => {}
        }
        if to_server.write_all(&chunk[..length]).await.is_err() {
            break;
        }
    }
    drop(to_server);
    let _ = back.await;
}
