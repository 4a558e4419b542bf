//! The gateways' side: the simulator, the buyer's actions there, and callbacks that a test makes by hand.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gateway_sim::keys::{self, SimKeys};
use gateway_sim::ledger::{Product, Trade};
use gateway_sim::notify;
use gateway_sim::{Options, Simulator};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use testkit::Relay;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use crate::http::{Answer, answer, http_client};
use crate::shop::Order;
use crate::{Gateway, Overrides, SignedCallback, slug};

/// Both gateways, simulated.
pub struct Gateways {
    simulator: Simulator,
    /// The fault proxy between the service and the gateways, if a test needs one.
    way: Option<Relay>,
    /// What the gateways know: keys and merchants.
    pub keys: SimKeys,
    /// The folder of the key set, with `gateways.toml`.
    pub dir: PathBuf,
    /// The address for callbacks: `{PUBLIC_URL}` of the service.
    public_url: String,
}

impl Gateways {
    /// Starts the simulator on a free port with a key set in `dir`. With `apart` the service reaches the simulator
    /// only through the fault proxy [`Gateways::way`]; buyers and callbacks do not use it.
    pub async fn start(dir: &Path, speed: f64, public_url: String, apart: bool) -> Gateways {
        copy_key_set(dir);
        let options = Options { speed, ..Options::default() };
        let simulator = Simulator::start(dir, "127.0.0.1:0", &options).await.expect("the simulator starts");
        let mut url = Url::parse(&simulator.url()).expect("a URL");
        let mut way = None;
        if apart {
            let address = url.socket_addrs(|| None).expect("an address of this machine")[0];
            let relay = Relay::to(address.to_string()).await;
            url.set_port(Some(relay.port())).expect("a URL with a port");
            way = Some(relay);
        }
        keys::point_at(dir, url.as_str()).expect("the key set can be pointed at the simulator");
        let keys = SimKeys::load(dir).expect("a whole key set");
        Gateways { simulator, way, keys, dir: dir.to_path_buf(), public_url }
    }

    /// The fault proxy between the service and the gateways.
    ///
    /// # Panics
    /// When the gateways were started without `apart`.
    #[must_use]
    pub fn way(&self) -> &Relay {
        self.way.as_ref().expect("the gateways are apart")
    }

    /// `GATEWAYS_FILE`.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join("gateways.toml")
    }

    /// Does what the buyer's device does with the payment parameters, until the cashier is open.
    ///
    /// # Panics
    /// When the cashier does not show this order.
    pub async fn open(&self, order: &Order) {
        let base = self.simulator.url();
        let text = |name: &str| order.payment[name].as_str().unwrap_or_else(|| panic!("no {name}: {order:?}"));
        let client = http_client();
        let scanned = |code: &str| client.get(format!("{base}/pay")).query(&[("code", code)]);
        let kind = text("kind");
        let request = match (order.gateway, order.scene.as_str()) {
            (Gateway::Alipay, "page" | "wap") => client.get(text("url")),
            (Gateway::Alipay, "app") => {
                let order_string = order.payment["params"]["order_string"].as_str().expect("an order string");
                client.post(format!("{base}/alipay/app")).body(order_string.to_owned())
            }
            (Gateway::Alipay, _) | (Gateway::Wechat, "native") => scanned(text("code_url")),
            (Gateway::Wechat, "h5") => scanned(text("url")),
            (Gateway::Wechat, _) => client.post(format!("{base}/wechat/invoke")).json(&order.payment["params"]),
        };
        let opened = answer(request).await.expect("the simulator answers");
        assert_eq!(opened.status, 200, "{kind} {}: {}", order.scene, opened.text);
        assert!(opened.text.contains(&order.order_no), "another cashier: {}", opened.text);
    }

    /// The buyer opens the cashier and pays; the gateway begins to send callbacks.
    pub async fn pay(&self, order: &Order) -> Value {
        self.open(order).await;
        self.press_pay(order, &json!({})).await
    }

    /// The buyer pays, and the gateway sends no callback.
    pub async fn pay_silently(&self, order: &Order) -> Value {
        self.open(order).await;
        self.press_pay(order, &json!({ "notify": false })).await
    }

    /// The order number of a paid or closed trade is paid again, with a new trade; the gateway begins to send
    /// callbacks.
    pub async fn pay_again(&self, order: &Order) -> Value {
        self.control(Method::POST, &format!("{}/pay-again", trade_path(order)), &json!({})).await
    }

    /// A person refunds money of the order in the gateway's console: all that is left, unless `how` says otherwise.
    pub async fn return_in_console(&self, order: &Order, how: &Value) -> Value {
        self.control(Method::POST, &format!("{}/refunds", trade_path(order)), how).await
    }

    /// The gateway sends a notice of the trade again now: `?event=paid`.
    pub async fn notify(&self, order: &Order, which: &str) -> Value {
        self.control(Method::POST, &format!("{}/notify{which}", trade_path(order)), &json!({})).await
    }

    /// The signed URL to which the gateway redirects the browser of a buyer who has paid.
    pub async fn return_url(&self, order: &Order) -> Option<String> {
        self.trade(order).await["return_url"].as_str().map(str::to_owned)
    }

    async fn press_pay(&self, order: &Order, how: &Value) -> Value {
        self.control(Method::POST, &format!("{}/pay", trade_path(order)), how).await
    }

    /// The trade as its gateway records it.
    pub async fn trade(&self, order: &Order) -> Value {
        self.control(Method::GET, &trade_path(order), &Value::Null).await
    }

    /// Every trade.
    pub async fn ledger(&self) -> Vec<Value> {
        let ledger = self.control(Method::GET, "/sim/ledger?limit=100000", &Value::Null).await;
        ledger.as_array().expect("a list").clone()
    }

    /// Sets faults of one trade, or of all (`scope`).
    pub async fn faults(&self, set: &Value) {
        self.control(Method::PUT, "/sim/faults", set).await;
    }

    /// Sets what the account `main` of a gateway has for refunds, in fen; `None`: no limit.
    pub async fn balance(&self, gateway: Gateway, fen: Option<i64>) {
        self.control(Method::PUT, &format!("/sim/balances/{}/main", slug(gateway)), &json!({ "fen": fen })).await;
    }

    /// How many times each fault was injected.
    pub async fn injected(&self) -> BTreeMap<String, u64> {
        let view = self.control(Method::GET, "/sim/faults", &Value::Null).await;
        serde_json::from_value(view["injected"].clone()).expect("counts")
    }

    /// How many times the service has called the gateway about an order: `query`, `refund_query` and so on.
    pub async fn calls(&self, order: &Order, call: &str) -> u64 {
        let path = format!("/sim/calls?gateway={}&out_trade_no={}&call={call}", slug(order.gateway), order.order_no);
        self.control(Method::GET, &path, &Value::Null).await["total"].as_u64().expect("a count")
    }

    async fn control(&self, method: Method, path: &str, body: &Value) -> Value {
        let mut request = http_client().request(method, format!("{}{path}", self.simulator.url()));
        if !body.is_null() {
            request = request.json(body);
        }
        let answer = answer(request).await.expect("the simulator answers");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.json()
    }

    /// A trade that pays `order`, for callbacks that a test makes by hand. The gateway itself does not know it.
    #[must_use]
    pub fn invented(&self, order: &Order) -> Trade {
        let mut trade = Trade::new(product(order), "main", &order.order_no, order.amount_fen).paid();
        trade.app_id = match order.gateway {
            Gateway::Alipay => self.keys.alipay_account("main").expect("the account").app_id.clone(),
            Gateway::Wechat => self.keys.wechat_account("main").expect("the account").appids[0].clone(),
        };
        trade.notify_url = Some(format!("{}/v1/callbacks/{}/main", self.public_url, slug(order.gateway)));
        trade
    }

    /// The trade of a paid order, as its gateway records it.
    pub async fn paid_trade(&self, order: &Order) -> Trade {
        let view = self.trade(order).await;
        let text = |name: &str| view[name].as_str().unwrap_or_else(|| panic!("{name}: {view}")).to_owned();
        let mut trade = self.invented(order);
        trade.trade_no = Some(text("trade_no"));
        trade.paid_at = Some(OffsetDateTime::parse(&text("paid_at"), &Rfc3339).expect("a time"));
        let notice = trade.notices.last_mut().expect("a payment is told");
        notice.id = view["notices"][0]["id"].as_str().expect("an id").to_owned();
        trade
    }

    /// The callback about `trade`, signed by its account.
    #[must_use]
    pub fn callback(&self, trade: &Trade, overrides: &Overrides) -> SignedCallback {
        match trade.gateway() {
            Gateway::Alipay => {
                notify::alipay(self.keys.alipay_account(&trade.account).expect("the account"), trade, overrides)
            }
            Gateway::Wechat => {
                notify::wechat(self.keys.wechat_account(&trade.account).expect("the account"), trade, overrides)
            }
        }
    }

    /// Stops the simulator: it sends no more callbacks and answers nothing.
    pub async fn stop(self) {
        self.simulator.stop().await;
    }
}

/// Sends a callback and reads the answer.
///
/// # Errors
/// When there is no answer.
pub async fn deliver(client: &Client, callback: &SignedCallback) -> Result<Answer, reqwest::Error> {
    let mut request = client.post(&callback.url).body(callback.body.clone());
    for (name, value) in &callback.headers {
        request = request.header(name, value);
    }
    answer(request).await
}

/// Whether the gateway would accept this answer as success.
#[must_use]
pub fn is_success(gateway: Gateway, answer: &Answer) -> bool {
    match gateway {
        Gateway::Alipay => answer.status == 200 && answer.text == "success",
        Gateway::Wechat => answer.status == 204 && answer.text.is_empty(),
    }
}

fn trade_path(order: &Order) -> String {
    format!("/sim/trades/{}/{}", slug(order.gateway), order.order_no)
}

fn product(order: &Order) -> Product {
    match (order.gateway, order.scene.as_str()) {
        (Gateway::Alipay, "page") => Product::Page,
        (Gateway::Alipay, "wap") => Product::Wap,
        (Gateway::Alipay, "app") => Product::AlipayApp,
        (Gateway::Alipay, _) => Product::Qr,
        (Gateway::Wechat, "native") => Product::Native,
        (Gateway::Wechat, "h5") => Product::H5,
        (Gateway::Wechat, "app") => Product::WechatApp,
        (Gateway::Wechat, _) => Product::Jsapi,
    }
}

/// Puts a key set into `dir`. Generating one takes seconds, so all tests copy the same one.
fn copy_key_set(dir: &Path) {
    let this = std::env::current_exe().expect("a test knows its own path");
    let target = this.ancestors().nth(3).expect("a test is in target/<profile>/deps").join("tmp");
    let made = target.join("e2e-keys");
    if !made.exists() {
        let fresh = target.join(format!("e2e-keys-{}", crate::unique()));
        keys::generate(&fresh, "http://127.0.0.1:7000").expect("a key set can be made");
        // Another test was faster, so we use its key set.
        if fs::rename(&fresh, &made).is_err() {
            fs::remove_dir_all(&fresh).expect("our own folder can be removed");
        }
    }
    for folder in ["", "keys", "sim"] {
        fs::create_dir_all(dir.join(folder)).expect("a folder can be made");
        for entry in fs::read_dir(made.join(folder)).expect("the key set") {
            let entry = entry.expect("an entry");
            if entry.path().is_file() {
                fs::copy(entry.path(), dir.join(folder).join(entry.file_name())).expect("a file can be copied");
            }
        }
    }
}
