//! A whole ingress for one test: a fresh database, no broker unless asked for, accounts whose keys we hold, and a
//! gateway that the test controls.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use broker::{Publisher, PublisherOptions};
use domain::KeyEnvironment;
use export::desk::Desk;
use gateway::Gateways;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use payment_api::App;
use payment_api::access::api_keys::ApiKeys;
use payment_api::access::auth::Authenticator;
use payment_api::access::callers::{Callers, KnownCallers};
use payment_api::access::key::{Claimed, Issuer};
use payment_api::access::limits::{Limits, PerMinute};
use payment_api::access::prices::BuyerPrices;
use payment_api::access::tokens::Tokens;
use payment_api::access::view_token::ViewTokens;
use payment_api::config::Settings;
use payment_api::create::intake::Intake;
use payment_api::create::writer::OrderWriter;
use payment_api::watch::hub::Hub;
use runtime::clock::Clock;
use runtime::seal::SealKeys;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::cache::{Cache, Redis};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use crate::puppet::{Mood, Puppet};
use crate::staged::Staged;

pub const SECRET: &str = "0123456789abcdef0123456789abcdef";
pub const STAFF_SECRET: &str = "a-secret-of-the-issuer-of-people-0123456789";
pub const SEAL_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
pub const VIEW_SECRET: &str = "fedcba9876543210fedcba9876543210";
/// The limit of a wait in a test; much longer than needed.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// An address on which no server listens.
const NO_BROKER: &str = "amqp://guest:guest@127.0.0.1:9/%2f";

pub static GATEWAYS: LazyLock<Arc<Gateways>> = LazyLock::new(|| {
    runtime::telemetry::install_crypto();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gateways.toml");
    Arc::new(Gateways::load(&file).expect("the fixture is in order"))
});

/// See the module.
pub struct World {
    pub app: Arc<App>,
    pub router: Router,
    pub db: PgPool,
    /// WeChat Pay, for prepay.
    pub gateway: Arc<Puppet>,
    pub stop: CancellationToken,
}

/// What differs between worlds.
pub struct Setup {
    pub clock: Clock,
    pub broker: SecretString,
    pub settings: Settings,
    pub authenticator: Authenticator,
    pub redis: Option<Redis>,
    pub seal: Option<SealKeys>,
    /// Whether the accounts count as those of production.
    pub is_production: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        let settings = Settings {
            public_url: "https://pay.example.com".to_owned(),
            return_url_origins: vec![url::Url::parse("https://shop.example.com").unwrap().origin()],
            cors_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            alipay_callers: Callers::default(),
            wechat_callers: Callers::default(),
            streams: 8,
            requests: 128,
            callbacks: 128,
            requests_in_hand: 0,
            streams_per_user: 0,
            serve_docs: true,
            buyer_prices: BuyerPrices { offer: true, catalogue: true, any: true, any_until: u64::MAX },
            pending_per_user: 0,
            per_minute: PerMinute { per_address: 0, per_user: 0, per_key: 0 },
            export_dir: std::env::temp_dir().join(format!("exports-{:032x}", Clock::system().fresh_bits())),
        };
        let authenticator = Authenticator::new().with_secret(&SECRET.into(), &claimed());
        let authenticator = authenticator.with_secret(&STAFF_SECRET.into(), &staff());
        Setup {
            clock: Clock::system(),
            broker: NO_BROKER.into(),
            settings,
            authenticator,
            redis: None,
            seal: seal_keys([("SEAL_KEY", SEAL_KEY)]),
            is_production: false,
        }
    }
}

pub fn seal_keys<const N: usize>(variables: [(&str, &str); N]) -> Option<SealKeys> {
    SealKeys::from_env(&mut runtime::env::Env::of(variables)).expect("keys in order")
}

pub fn claimed() -> Claimed {
    Claimed { of: Issuer::Buyers, issuer: "payment".to_owned(), audience: "payment-api".to_owned() }
}

/// The issuer of people.
pub fn staff() -> Claimed {
    Claimed { of: Issuer::Staff, issuer: "staff".to_owned(), audience: "payment-api".to_owned() }
}

impl World {
    pub async fn new(db: PgPool) -> World {
        World::with(db, Setup::default()).await
    }

    /// Buyers make refunds without a person in it.
    pub async fn with(db: PgPool, setup: Setup) -> World {
        testkit::buyers_refund_at_once(&db).await;
        let gateway = Arc::new(Puppet::new());
        let stop = CancellationToken::new();
        let publisher =
            Publisher::start(&setup.broker, "test", PublisherOptions::default(), stop.clone()).expect("an address");
        if setup.broker_is_there() {
            publisher.ready().await;
        }
        let seal = setup.seal.map(Arc::new);
        let app = Arc::new(App {
            db: db.clone(),
            in_hand: Arc::new(setup.settings.in_hand()),
            closing: Default::default(),
            syncing: Default::default(),
            limits: Arc::new(Limits::new(&setup.settings.per_minute, setup.redis.as_ref())),
            cache: Cache::new(setup.redis),
            accounts: Arc::new(Staged { wechat: gateway.clone(), is_production: setup.is_production }),
            clock: setup.clock,
            writer: OrderWriter::start(db.clone()),
            intake: Intake::new(publisher, db.clone(), setup.clock),
            tokens: Tokens::new(
                setup.authenticator,
                ApiKeys::new(|| KeyEnvironment::Test, setup.clock).with_seal(seal.clone()),
                ViewTokens::new(&VIEW_SECRET.into()),
            ),
            hub: Hub::new(setup.settings.streams, stop.clone()),
            hints: Default::default(),
            seal: seal.clone(),
            refused_accounts: Default::default(),
            turns: Arc::default(),
            strikes: Default::default(),
            unknown_proxy: Default::default(),
            callers: KnownCallers::new(|method| setup.settings.callers(method)),
            exports: Desk::new(
                db.clone(),
                setup.settings.export_dir.clone(),
                setup.clock,
                export::Limits { rows: 6, page: 2 },
            ),
            settings: setup.settings,
        });
        World { router: payment_api::router(app.clone()), app, db, gateway, stop }
    }

    /// Reads the API keys, and goes on reading them until the test ends.
    pub async fn watch_keys(&self) {
        self.app.tokens.keys.refresh(&self.db).await.unwrap();
        let (app, db, stop) = (self.app.clone(), self.db.clone(), self.stop.clone());
        tokio::spawn(async move { app.tokens.keys.watch(&db, &db, stop).await });
    }

    /// Sends a request as a client at 198.51.100.7 would; adds `Host` unless it has one.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        Answer::of(self.open(request).await).await
    }

    /// The same, without reading the body.
    pub async fn open(&self, mut request: Request<Body>) -> Response<Body> {
        if !request.headers().contains_key("host") {
            request.headers_mut().insert("host", "pay.example.com".parse().unwrap());
        }
        if request.extensions().get::<ConnectInfo<SocketAddr>>().is_none() {
            request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([198, 51, 100, 7], 40_000))));
        }
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn create(&self, user: &str, key: &str, body: &Value) -> Answer {
        self.send(creation(user, key, body)).await
    }

    pub async fn get(&self, path: &str, user: &str) -> Answer {
        self.send(signed(Method::GET, path, user).body(Body::empty()).unwrap()).await
    }

    /// An Alipay order of `user`: the whole answer.
    pub async fn order(&self, user: &str) -> Value {
        let key = uuid::Uuid::now_v7().to_string();
        let answer = self.create(user, &key, &alipay_order()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        answer.json()
    }

    pub async fn count(&self, table: &str) -> i64 {
        let query = format!("select count(*) from {table}");
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&self.db).await.unwrap()
    }
}

impl Setup {
    fn broker_is_there(&self) -> bool {
        secrecy::ExposeSecret::expose_secret(&self.broker) != NO_BROKER
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An answer, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub async fn of(response: Response<Body>) -> Answer {
        let (parts, body) = response.into_parts();
        if parts.status.is_server_error() {
            // Shown when the test fails; a client never sees it.
            eprintln!("{:?}", parts.extensions.get::<Arc<payment_api::answer::problem::ApiError>>());
        }
        let body = to_bytes(body, 1 << 20).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The answer is this problem.
    #[track_caller]
    pub fn is(&self, status: u16, code: &str) {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.body);
        let body = self.json();
        assert_eq!((self.status.as_u16(), body["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert_eq!((&body["status"], &body["type"]), (&json!(status), &json!(format!("/problems/{code}"))));
    }
}

/// Like a client that waits for its answer, however long the queue under its key is: repeats while the first request is
/// in flight.
pub async fn answered(request: impl AsyncFn() -> Answer) -> Answer {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = request().await;
        if answer.status != StatusCode::CONFLICT || answer.json()["code"] != "request_in_flight" {
            return answer;
        }
        assert!(Instant::now() < until, "still in flight");
    }
}

pub fn signed(method: Method, path: &str, user: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header("authorization", format!("Bearer {}", token(user)))
}

pub fn creation(user: &str, key: &str, body: &Value) -> Request<Body> {
    let request = signed(Method::POST, "/v1/orders", user);
    let request = request.header("idempotency-key", key).header("content-type", "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

pub fn token(user: &str) -> String {
    let now = Clock::system().now().unix_timestamp();
    minted(&json!({ "sub": user, "iss": "payment", "aud": "payment-api", "iat": now, "exp": now + 300 }), SECRET)
}

pub fn minted(claims: &Value, secret: &str) -> String {
    runtime::telemetry::install_crypto();
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

/// A good token of this user with these words as its scope.
pub fn minted_for(user: &str, scope: &str) -> String {
    let now = Clock::system().now().unix_timestamp();
    let claims =
        json!({ "sub": user, "iss": "payment", "aud": "payment-api", "iat": now, "exp": now + 300, "scope": scope });
    minted(&claims, SECRET)
}

pub fn alipay_order() -> Value {
    json!({
        "product_type": "membership",
        "subject": "Premium, one month",
        "amount": "12.34",
        "payment_method": "alipay",
        "scene": "page",
    })
}

pub fn wechat_order() -> Value {
    json!({
        "product_type": "membership",
        "subject": "Premium, one month",
        "amount": "12.34",
        "payment_method": "wechat",
        "scene": "native",
    })
}
