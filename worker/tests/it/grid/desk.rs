//! A desk at which both gateways speak: every fact is signed with the simulator's keys, and each late-payment policy
//! has a worker of its own on the same database.

use std::path::{Path, PathBuf};

use domain::PaymentMethod::Alipay;
use domain::{LatePaymentPolicy, Money, RefundId, RefundNo, RefundReport, Scene, TradeNo, Verdict};
use gateway::{Gateway, Gateways, PrepayOrder, RefundOrder};
use gateway_sim::ledger::Trade;
use gateway_sim::notify::Overrides;
use gateway_sim::{Options, Simulator};
use runtime::clock::Clock;
use serde_json::Value;
use sqlx::PgPool;
use store::cache::Renewer;
use store::settle;
use store::settle::refunds as settling;
use store::settle::refunds::{RefundVerdict, RequestedRefund};
use store::tables::orders::Order;
use store::tables::refunds::Refund;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use worker::callbacks::CallbackWorker;
use worker::consumer::Ack;

use crate::support::{World, copy, key_set};

/// An address on which no server listens.
const NOWHERE: &str = "http://127.0.0.1:9/callbacks";

pub struct Desk {
    pub world: World,
    workers: Vec<(LatePaymentPolicy, CallbackWorker)>,
    simulator: Simulator,
    folder: PathBuf,
}

/// A fact in its gateway's words.
pub enum Word {
    /// A callback that reports this trade.
    Notice(Box<Trade>, Overrides),
    /// The answer to a query about the order.
    Answer,
}

impl Word {
    pub fn notice(trade: &Trade, overrides: Overrides) -> Word {
        Word::Notice(Box::new(trade.clone()), overrides)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Desk {
    pub async fn new(db: PgPool) -> Desk {
        let world = World::new(db.clone());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("grid-{}", Clock::system().fresh_id()));
        copy(&key_set(), &folder);
        let simulator = Simulator::start(&folder, "127.0.0.1:0", &Options::default()).await.unwrap();
        gateway_sim::keys::point_at(&folder, &simulator.url()).unwrap();
        let text = std::fs::read_to_string(folder.join("gateways.toml")).unwrap();
        let mut workers = Vec::new();
        for policy in LatePaymentPolicy::ALL {
            let main = format!("account = \"main\"\nlate_payment = \"{policy}\"\n");
            let file = folder.join(format!("{policy}.toml"));
            std::fs::write(&file, text.replace("account = \"main\"\n", &main)).unwrap();
            let gateways = Gateways::load(&file).unwrap();
            workers.push((
                *policy,
                CallbackWorker { db: db.clone(), gateways, clock: Clock::system(), copies: Renewer::default() },
            ));
        }
        Desk { world, workers, simulator, folder }
    }

    pub fn worker(&self, policy: LatePaymentPolicy) -> &CallbackWorker {
        &self.workers.iter().find(|(of, _)| *of == policy).unwrap().1
    }

    fn gateway(&self, order: &Order) -> std::sync::Arc<dyn Gateway> {
        self.worker(LatePaymentPolicy::Hold).gateways.get(order.payment_method, &order.account).unwrap()
    }

    /// Sends a fact about `order` in the message `id`, and returns the result.
    pub async fn tell(&self, policy: LatePaymentPolicy, order: &Order, word: &Word, id: &str) -> Verdict {
        let worker = self.worker(policy);
        let Word::Notice(trade, overrides) = word else {
            let (gateway, now) = (self.gateway(order), worker.clock.now());
            let answer = gateway.query(&order.order_no, now).await.unwrap().found().unwrap();
            let notification = answer.notification(gateway.as_ref(), &order.order_no, id.to_owned());
            let mut tx = worker.db.begin().await.unwrap();
            let verdicts =
                settle::settle(&mut tx, &[&notification], &worker.gateways.policies(), &worker.clock).await.unwrap();
            tx.commit().await.unwrap();
            return verdicts[0];
        };
        let callback = self.world.notice_of(trade, &Overrides { id: Some(id.to_owned()), ..overrides.clone() });
        assert_eq!(worker.settle(vec![Ok::<_, String>(callback)]).await.unwrap(), [Ack::Done]);
        let verdict: String = sqlx::query_scalar("select verdict from callbacks where notice_id = $1")
            .bind(id)
            .fetch_one(&self.world.db)
            .await
            .unwrap();
        verdict.parse().unwrap()
    }

    /// The order as its gateway has it, once the buyer has paid it there.
    pub async fn paid_there(&self, order: &Order) -> Trade {
        self.offer(order).await;
        let path = format!("/sim/trades/{}/{}/pay", order.payment_method, order.order_no);
        let view = self.control(&path, r#"{"notify":false}"#).await;
        let mut trade = self.world.paid_trade(order);
        trade.trade_no = Some(view["trade_no"].as_str().unwrap().to_owned());
        trade
    }

    /// All of it goes back at the gateway, under a number that is not ours.
    pub async fn returned_there(&self, order: &Order, trade: &Trade) {
        let refund = RefundOrder {
            order_no: order.order_no.clone(),
            trade_no: TradeNo::parse(trade.trade_no.clone().unwrap()).unwrap(),
            refund_no: RefundNo::parse(format!("ELSEWHERE{}", order.id)).unwrap(),
            amount: order.amount,
            total: order.amount,
            reason: None,
            notify_url: NOWHERE.to_owned(),
        };
        self.gateway(order).refund(&refund, Clock::system().now()).await.unwrap();
    }

    /// The order is closed at its gateway before it is paid.
    pub async fn closed_there(&self, order: &Order) {
        self.offer(order).await;
        self.gateway(order).close(&order.order_no, Clock::system().now()).await.unwrap();
    }

    async fn offer(&self, order: &Order) {
        let wanted = PrepayOrder {
            order_no: order.order_no.clone(),
            subject: order.subject.clone(),
            amount: order.amount,
            scene: if order.payment_method == Alipay { Scene::Qr } else { Scene::Native },
            expires_at: order.expires_at.replace_nanosecond(0).unwrap(),
            notify_url: NOWHERE.to_owned(),
            return_url: None,
            openid: None,
            client_ip: None,
        };
        let gateway = self.gateway(order);
        gateway.prepay(&gateway.prepay_request(&wanted).unwrap(), Clock::system().now()).await.unwrap();
    }

    /// One call of the simulator's control API.
    async fn control(&self, path: &str, body: &str) -> Value {
        let mut socket = TcpStream::connect(self.simulator.address()).await.unwrap();
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-type: application/json");
        socket.write_all(format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    /// Asks for a refund of the order's own payment, or of the one that `extra` brought; all of it if no amount is
    /// named.
    pub async fn request_refund(&self, order: &Order, extra: Option<&Trade>, amount: Option<Money>) -> Refund {
        let clock = Clock::system();
        let id = RefundId::from_u128(clock.fresh_bits());
        let request = RequestedRefund {
            id,
            order_id: order.id,
            extra_trade: extra.map(|trade| TradeNo::parse(trade.trade_no.clone().unwrap()).unwrap()),
            refund_no: RefundNo::parse(format!("R{id}")).unwrap(),
            amount,
            reason: None,
            requested_by: "buyer-1".to_owned(),
        };
        let mut tx = self.world.db.begin().await.unwrap();
        let refund = settling::request(&mut tx, &request, clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        refund
    }

    /// A worker has queried the gateway about a refund and got this answer.
    pub async fn answered(&self, refund: &Refund, fact: &RefundReport) {
        let mut tx = self.world.db.begin().await.unwrap();
        let policies = self.worker(LatePaymentPolicy::Hold).gateways.policies();
        let verdict = settling::settle(&mut tx, refund, fact, &policies, &Clock::system()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(verdict, RefundVerdict::Settled);
    }
}
