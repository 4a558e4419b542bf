//! A simulator on a free port, a merchant with its keys, and a listener at the end of `notify_url`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use gateway_sim::crypto::{Signer, Verifier};
use gateway_sim::keys::{self, SimKeys};
use gateway_sim::{Options, Simulator};
use serde_json::{Value, json};
use time::format_description::BorrowedFormatItem;
use time::macros::{format_description, offset};
use time::{OffsetDateTime, UtcOffset};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use url::form_urlencoded;

pub const BEIJING: UtcOffset = offset!(+8);
const FORMAT: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");

pub type Pairs = BTreeMap<String, String>;

pub struct World {
    pub url: String,
    pub keys: SimKeys,
    dir: PathBuf,
    http: reqwest::Client,
    callbacks: mpsc::UnboundedReceiver<Callback>,
    pub notify_url: String,
    _simulator: Simulator,
}

/// One callback as the merchant got it.
#[derive(Debug)]
pub struct Callback {
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub bytes: Bytes,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

impl World {
    /// `verdict` is the merchant's answer to every callback.
    pub async fn new(verdict: fn(&Callback) -> (StatusCode, &'static str)) -> World {
        World::at_speed(1_000.0, verdict).await
    }

    /// The same, with another speed of the gateways' clock.
    pub async fn at_speed(speed: f64, verdict: fn(&Callback) -> (StatusCode, &'static str)) -> World {
        let dir = std::env::temp_dir().join(format!("gateway-sim-{}", uuid()));
        keys::generate(&dir, "http://127.0.0.1:1").unwrap();
        let options = Options { speed, ..Options::default() };
        let simulator = Simulator::start(&dir, "127.0.0.1:0", &options).await.unwrap();
        keys::point_at(&dir, &simulator.url()).unwrap();
        let (notify_url, callbacks) = merchant(verdict).await;
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent("merchant/1.0")
            .no_proxy()
            .build()
            .unwrap();
        let keys = SimKeys::load(&dir).unwrap();
        World { url: simulator.url(), keys, dir, http, callbacks, notify_url, _simulator: simulator }
    }

    /// A merchant that takes everything.
    pub async fn content() -> World {
        World::new(|_| (StatusCode::OK, "success")).await
    }

    pub async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let method = method.parse().unwrap();
        let mut request = self.http.request(method, format!("{}{target}", self.url)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { status, headers, bytes, text }
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], vec![]).await
    }

    /// A call of the control API that must work.
    pub async fn control(&self, method: &str, target: &str, body: &Value) -> Value {
        let answer = self.send(method, target, &[], body.to_string().into_bytes()).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text);
        answer.json()
    }

    pub async fn pay(&self, gateway: &str, out_trade_no: &str) -> Value {
        self.control("POST", &format!("/sim/trades/{gateway}/{out_trade_no}/pay"), &json!({})).await
    }

    /// The next callback, within a time that a schedule a thousand times too fast never needs.
    pub async fn callback(&mut self) -> Callback {
        let next = tokio::time::timeout(Duration::from_secs(10), self.callbacks.recv()).await;
        next.expect("a callback within 10 s").unwrap()
    }

    /// A signed request of the main Alipay account: public parameters in the URL, `biz_content` in the body.
    pub async fn alipay(&self, method: &str, biz_content: &Value, change: impl FnOnce(&mut Pairs)) -> Answer {
        let mut params = self.alipay_params(method, biz_content);
        change(&mut params);
        let biz_content = params.remove("biz_content").unwrap_or_default();
        let body = form_urlencoded::Serializer::new(String::new()).append_pair("biz_content", &biz_content).finish();
        self.send("POST", &format!("/gateway.do?{}", encode(&params)), &[], body.into_bytes()).await
    }

    /// All parameters of an Alipay request, signed.
    pub fn alipay_params(&self, method: &str, biz_content: &Value) -> Pairs {
        let now = now().to_offset(BEIJING);
        let mut params: Pairs = [
            ("app_id", self.keys.alipay[0].app_id.as_str()),
            ("method", method),
            ("charset", "utf-8"),
            ("sign_type", "RSA2"),
            ("version", "1.0"),
            ("timestamp", &now.format(FORMAT).unwrap()),
            ("notify_url", &self.notify_url),
            ("return_url", "https://shop.example.com/done?from=alipay"),
            ("biz_content", &biz_content.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        self.sign_alipay(&mut params);
        params
    }

    /// Signs, or signs again after a change.
    pub fn sign_alipay(&self, params: &mut Pairs) {
        let key = Signer::from_pem(&self.read("keys/alipay_main_app_private.pem")).unwrap();
        params.insert("sign".to_owned(), key.sign(join(params).as_bytes()));
    }

    /// The node of an Alipay answer; signed answers must hold.
    pub fn node(&self, answer: &Answer) -> Value {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["content-type"], "text/html;charset=utf-8");
        let whole = answer.json();
        let (name, node) = whole.as_object().unwrap().iter().find(|(name, _)| *name != "sign").unwrap();
        if let Some(sign) = whole["sign"].as_str() {
            let text = answer.text.strip_prefix(&format!("{{\"{name}\":")).unwrap();
            let text = text.strip_suffix(&format!(",\"sign\":\"{sign}\"}}")).unwrap();
            assert!(self.alipay_key().accepts(text.as_bytes(), sign));
        }
        node.clone()
    }

    pub fn alipay_key(&self) -> Verifier {
        Verifier::from_pem(&self.read("keys/alipay_main_public.pem")).unwrap()
    }

    /// The signed headers of a request of the main WeChat Pay account, sent `seconds` ago.
    pub fn authorization(&self, method: &str, target: &str, body: &[u8], seconds: i64) -> String {
        let merchant = &self.keys.wechat[0];
        let key = Signer::from_pem(&self.read("keys/wechat_main_merchant_private.pem")).unwrap();
        let (at, nonce) = (now().unix_timestamp() - seconds, uuid());
        let message = [format!("{method}\n{target}\n{at}\n{nonce}\n").as_bytes(), body, b"\n"].concat();
        format!(
            "WECHATPAY2-SHA256-RSA2048 mchid=\"{}\",nonce_str=\"{nonce}\",signature=\"{}\",timestamp=\"{at}\",serial_no=\"{}\"",
            merchant.mchid,
            key.sign(&message),
            merchant.merchant_serial_no
        )
    }

    pub async fn wechat(&self, method: &str, target: &str, body: Option<&Value>) -> Answer {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let authorization = self.authorization(method, target, &body, 0);
        let headers = [("authorization", authorization.as_str()), ("accept", "application/json")];
        let answer = self.send(method, target, &headers, body).await;
        if answer.status < 300 {
            assert!(self.wechat_signed(&answer.headers, answer.text.as_bytes()), "{answer:?}");
        }
        answer
    }

    /// Whether WeChat Pay signed this.
    pub fn wechat_signed(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let header = |name: &str| headers[name].to_str().unwrap();
        let serial = header("wechatpay-serial");
        let serials = self.keys.wechat[0].signing_keys.iter().map(|key| &key.0);
        let Some(index) = serials.into_iter().position(|known| known == serial) else { return false };
        let key = Verifier::from_pem(&self.read(&format!("keys/wechat_main_public_{}.pem", index + 1))).unwrap();
        let head = format!("{}\n{}\n", header("wechatpay-timestamp"), header("wechatpay-nonce"));
        key.accepts(&[head.as_bytes(), body, b"\n"].concat(), header("wechatpay-signature"))
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

async fn merchant(verdict: fn(&Callback) -> (StatusCode, &'static str)) -> (String, mpsc::UnboundedReceiver<Callback>) {
    let (seen, callbacks) = mpsc::unbounded_channel();
    let take = async move |State(seen): State<mpsc::UnboundedSender<Callback>>, headers: HeaderMap, body: Bytes| {
        let callback = Callback { headers, body: body.to_vec() };
        let answer = verdict(&callback);
        let _ = seen.send(callback);
        answer
    };
    let app = Router::new().route("/v1/callbacks/any/main", post(take)).with_state(seen);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let notify_url = format!("http://{}/v1/callbacks/any/main", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (notify_url, callbacks)
}

#[expect(clippy::disallowed_methods, reason = "a client of the simulator has a clock of its own")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

pub fn beijing(at: OffsetDateTime) -> String {
    at.to_offset(BEIJING).format(FORMAT).unwrap()
}

/// A text that no other test uses.
pub fn uuid() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// `name=value` joined in order, without `sign`.
pub fn join(params: &Pairs) -> String {
    let parts: Vec<_> =
        params.iter().filter(|(name, _)| *name != "sign").map(|(name, value)| format!("{name}={value}")).collect();
    parts.join("&")
}

pub fn encode(params: &Pairs) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish()
}

pub fn decode(form: &[u8]) -> Pairs {
    form_urlencoded::parse(form).into_owned().collect()
}
