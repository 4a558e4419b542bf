//! A check worker before both gateways: the simulator on a port of its own, behind a wire on which a buyer can be faster.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gateway_sim::{Options, Simulator};
use serde_json::Value;
use shared::clock::Clock;
use shared::db::jobs;
use shared::db::orders::Order;
use shared::domain::{OrderId, PaymentMethod, Scene};
use shared::gateway::{Gateways, PrepayOrder};
use shared::job::{JobMessage, kind};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use worker::checks::CheckWorker;
use worker::jobs::run_batch;

use crate::support::{World, key_set};

/// What happens just before a close reaches its gateway: a call of the simulator's control API.
type Before = Arc<Mutex<Option<String>>>;

pub struct Bench {
    pub world: World,
    pub worker: CheckWorker,
    before_close: Before,
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
        let world = World::new(db.clone());
        let id = Clock::system().fresh_id();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("checks-{id}"));
        copy(&key_set(), &folder);
        let simulator = Simulator::start(&folder, "127.0.0.1:0", &Options::default()).await.unwrap();
        let before_close = Before::default();
        let wire = wire(simulator.address(), before_close.clone()).await;
        gateway_sim::keys::point_at(&folder, &format!("http://{wire}")).unwrap();
        let file = folder.join("gateways.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let policy = format!("account = \"main\"\nlate_payment = \"{policy}\"\n");
        std::fs::write(&file, text.replace("account = \"main\"\n", &policy)).unwrap();
        let worker = CheckWorker { db, gateways: Gateways::load(&file).unwrap(), clock: Clock::system() };
        Bench { world, worker, before_close, simulator, folder }
    }

    /// A pending order that its gateway knows: a QR code at either.
    pub async fn offered(&self, method: PaymentMethod) -> Order {
        let order = self.world.pending_order(method, "8.88").await;
        let gateway = self.worker.gateways.get(method, &order.account).unwrap();
        let asked = PrepayOrder {
            order_no: order.order_no.clone(),
            subject: order.subject.clone(),
            amount: order.amount,
            scene: if method == PaymentMethod::Alipay { Scene::Qr } else { Scene::Native },
            expires_at: order.expires_at.replace_nanosecond(0).unwrap(),
            notify_url: "http://127.0.0.1:9/callbacks".to_owned(),
            return_url: None,
            openid: None,
            client_ip: None,
        };
        let request = gateway.prepay_request(&asked).unwrap();
        gateway.prepay(&request, self.now()).await.unwrap();
        order
    }

    /// One that its buyer has before him.
    pub async fn opened(&self, method: PaymentMethod) -> Order {
        let order = self.offered(method).await;
        self.act(&order, "open").await;
        order
    }

    /// The buyer acts, and no callback tells of it.
    pub async fn act(&self, order: &Order, what: &str) -> Value {
        control(self.simulator.address(), "POST", &path(order, what), r#"{"notify":false}"#).await
    }

    /// The buyer pays in the moment between the question and the close.
    pub fn pay_before_close(&self, order: &Order) {
        *self.before_close.lock().unwrap() = Some(path(order, "pay"));
    }

    pub async fn faults(&self, set: &str) {
        control(self.simulator.address(), "PUT", "/sim/faults", set).await;
    }

    /// The state of the trade in the simulator's books.
    pub async fn trade(&self, order: &Order) -> String {
        let path = format!("/sim/trades/{}/{}", order.payment_method, order.order_no);
        let trade = control(self.simulator.address(), "GET", &path, "").await;
        trade["state"].as_str().unwrap_or("unknown").to_owned()
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

    pub async fn ask_now(&self, id: OrderId, payload: Value) {
        jobs::ask_now(&self.world.db, kind::CHECK, &id.to_string(), &payload, self.now()).await.unwrap();
    }

    /// The message that the relay would publish for the order's check.
    pub async fn nudge(&self, order: &Order) -> JobMessage {
        let (id, fence) = sqlx::query_as("select id, fence from jobs where kind = 'check' and ref_id = $1")
            .bind(order.id.to_string())
            .fetch_one(&self.world.db)
            .await
            .unwrap();
        JobMessage { id, fence }
    }

    /// Runs the order's check once, whenever it is due.
    pub async fn check(&self, order: &Order) {
        let nudge = self.nudge(order).await;
        run_batch(&self.worker, vec![Ok(nudge)]).await.unwrap();
    }

    /// When the order's check is due, counted from now, how often it was tried, and what is asked; `None`: it is over.
    pub async fn job(&self, order: &Order) -> Option<(Duration, i32, Value)> {
        let job: Option<(OffsetDateTime, i32, Value)> =
            sqlx::query_as("select due_at, attempts, payload from jobs where kind = 'check' and ref_id = $1")
                .bind(order.id.to_string())
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
        self.worker.clock.now()
    }
}

fn path(order: &Order, what: &str) -> String {
    format!("/sim/trades/{}/{}/{what}", order.payment_method, order.order_no)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
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
async fn wire(simulator: SocketAddr, before_close: Before) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(carry(client, simulator, before_close.clone()));
        }
    });
    address
}

async fn carry(client: TcpStream, simulator: SocketAddr, before_close: Before) {
    let Ok(server) = TcpStream::connect(simulator).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from_client.read(&mut chunk).await {
        let text = String::from_utf8_lossy(&chunk[..length]);
        if text.contains("alipay.trade.close") || text.contains("/close HTTP/1.1") {
            let call = before_close.lock().unwrap().take();
            if let Some(path) = call {
                control(simulator, "POST", &path, r#"{"notify":false}"#).await;
            }
        }
        if to_server.write_all(&chunk[..length]).await.is_err() {
            break;
        }
    }
    drop(to_server);
    let _ = back.await;
}
