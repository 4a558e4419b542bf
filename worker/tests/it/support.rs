//! A small world: a database of its own for each test, the simulator's keys, and a worker that is called directly.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use domain::message::callback::Callback;
use domain::{AccountName, MerchantOrderNo, Money, OrderStatus, PaymentMethod, Purchase, Scene, VouchedBy};
use gateway::{Gateways, callback_headers};
use gateway_sim::keys::SimKeys;
use gateway_sim::ledger::{Product, Trade};
use gateway_sim::notify::{self, Overrides, SignedCallback};
use runtime::clock::Clock;
use serde_json::Value;
use sqlx::PgPool;
use store::cache::Renewer;
use store::tables::orders::{self, Created, NewOrder, Order};
use worker::callbacks::CallbackWorker;
use worker::consumer::Ack;

pub struct World {
    pub db: PgPool,
    pub keys: SimKeys,
    pub worker: CallbackWorker,
}

impl World {
    pub fn new(db: PgPool) -> World {
        runtime::telemetry::install_crypto();
        let keys = key_set();
        let gateways = Gateways::load(&keys.join("gateways.toml")).expect("the simulator's gateways.toml");
        let worker = CallbackWorker { db: db.clone(), gateways, clock: Clock::system(), copies: Renewer::default() };
        World { db, keys: SimKeys::load(&keys).unwrap(), worker }
    }

    pub async fn pending_order(&self, method: PaymentMethod, yuan: &str) -> Order {
        self.order_of(method, "main", yuan).await
    }

    pub async fn order_of(&self, method: PaymentMethod, account: &str, yuan: &str) -> Order {
        self.created(NewOrder {
            amount: Money::from_yuan(yuan).unwrap(),
            payment_method: method,
            scene: if method == PaymentMethod::Alipay { Scene::Page } else { Scene::Native },
            account: AccountName::parse(account).unwrap(),
            ..testkit::new_order()
        })
        .await
    }

    /// An order of a purchase that the merchant has numbered.
    pub async fn order_of_purchase(&self, method: PaymentMethod, number: &str) -> Order {
        let purchase = Purchase {
            vouched_by: VouchedBy::Backend,
            voucher: Some("key 0123456789abcdef".to_owned()),
            merchant_order_no: Some(MerchantOrderNo::parse(number).unwrap()),
            offer_id: None,
        };
        let scene = if method == PaymentMethod::Alipay { Scene::Page } else { Scene::Native };
        let new = testkit::new_order();
        self.created(NewOrder { payment_method: method, scene, purchase, ..new }).await
    }

    async fn created(&self, new: NewOrder) -> Order {
        assert!(matches!(
            orders::create(&self.db, std::slice::from_ref(&new)).await.unwrap()[..],
            [Created::Unanswered]
        ));
        self.order(&new.id).await
    }

    pub async fn order(&self, id: &domain::OrderId) -> Order {
        orders::get(&self.db, *id).await.unwrap().unwrap()
    }

    pub async fn status(&self, order: &Order) -> OrderStatus {
        self.order(&order.id).await.status
    }

    /// The trade that pays `order`, as its gateway has it.
    pub fn paid_trade(&self, order: &Order) -> Trade {
        let product = match order.payment_method {
            PaymentMethod::Alipay => Product::Page,
            PaymentMethod::Wechat => Product::Native,
        };
        let mut trade = Trade::new(product, order.account.as_str(), order.order_no.as_str(), order.amount.fen()).paid();
        trade.app_id = match order.payment_method {
            PaymentMethod::Alipay => self.keys.alipay_account(order.account.as_str()).unwrap().app_id.clone(),
            PaymentMethod::Wechat => self.keys.wechat_account(order.account.as_str()).unwrap().appids[0].clone(),
        };
        trade
    }

    /// The callback that reports the payment of `order`.
    pub fn paid(&self, order: &Order) -> Callback {
        self.notice_of(&self.paid_trade(order), &Overrides::default())
    }

    /// The callback that reports `trade`, sent to the trade's own account.
    pub fn notice_of(&self, trade: &Trade, overrides: &Overrides) -> Callback {
        self.notice_to(trade, &trade.account, overrides)
    }

    /// The callback that reports `trade`, signed by and sent to `account`.
    pub fn notice_to(&self, trade: &Trade, account: &str, overrides: &Overrides) -> Callback {
        let (method, signed) = match trade.gateway() {
            gateway_sim::ledger::Gateway::Alipay => {
                let merchant = self.keys.alipay_account(account).unwrap();
                (PaymentMethod::Alipay, notify::alipay(merchant, trade, overrides))
            }
            gateway_sim::ledger::Gateway::Wechat => {
                let merchant = self.keys.wechat_account(account).unwrap();
                (PaymentMethod::Wechat, notify::wechat(merchant, trade, overrides))
            }
        };
        received(method, account, signed)
    }

    pub async fn settle(&self, callbacks: Vec<Callback>) -> Vec<Ack> {
        self.worker.settle(callbacks.into_iter().map(Ok::<_, String>).collect()).await.unwrap()
    }

    /// The verdicts in `callbacks`, each with how often its message was seen.
    pub async fn verdicts(&self) -> Vec<(String, i32)> {
        sqlx::query_as("select verdict, times_seen from callbacks order by id").fetch_all(&self.db).await.unwrap()
    }

    /// The cases: kind and evidence.
    pub async fn cases(&self) -> Vec<(String, Value)> {
        sqlx::query_as("select kind, evidence from cases order by id").fetch_all(&self.db).await.unwrap()
    }

    /// The events but those of cases: type and data.
    pub async fn events(&self) -> Vec<(String, Value)> {
        sqlx::query_as("select type, data from events where type not like 'case.%' order by seq")
            .fetch_all(&self.db)
            .await
            .unwrap()
    }

    /// Payments: gateway's number and status.
    pub async fn payments(&self, order: &Order) -> Vec<(Option<String>, String)> {
        sqlx::query_as("select gateway_no, status from payment_transactions where order_id = $1 order by id")
            .bind(order.id.to_string())
            .fetch_all(&self.db)
            .await
            .unwrap()
    }

    pub async fn count(&self, table: &'static str) -> i64 {
        let sql = match table {
            "jobs" => "select count(*) from jobs",
            "work" => "select count(*) from jobs where kind <> 'look_back'",
            "checks" => "select count(*) from jobs where kind = 'check'",
            "callback jobs" => "select count(*) from jobs where kind = 'callback'",
            other => panic!("no count of {other}"),
        };
        sqlx::query_scalar(sql).fetch_one(&self.db).await.unwrap()
    }
}

/// The callback that the ingress would publish.
fn received(method: PaymentMethod, account: &str, signed: SignedCallback) -> Callback {
    let stored = callback_headers(method);
    Callback {
        method,
        account: AccountName::parse(account).unwrap(),
        headers: signed
            .headers
            .into_iter()
            .map(|(name, value)| (name.to_lowercase(), value))
            .filter(|(name, _)| stored.contains(&name.as_str()))
            .collect(),
        body: signed.body.into(),
        received_at: Clock::system().now(),
        job_id: None,
    }
}

/// One key set for all tests: made once, then found. Making it takes seconds, and tests may run in processes of their
/// own.
pub fn key_set() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulator-keys");
        if !folder.exists() {
            let fresh = folder.with_extension(std::process::id().to_string());
            gateway_sim::keys::generate(&fresh, "http://127.0.0.1:7000").unwrap();
            // Another process was faster: then its set counts.
            if std::fs::rename(&fresh, &folder).is_err() {
                std::fs::remove_dir_all(&fresh).unwrap();
            }
        }
        folder
    });
    made.clone()
}

/// Copies a folder, for a test that changes the key set.
pub fn copy(from: &Path, to: &Path) {
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
