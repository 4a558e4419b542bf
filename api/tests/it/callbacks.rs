//! `POST /v1/callbacks/…`: every row of the ingress's table, with callbacks that are really signed.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request};
use domain::message::callback::Callback;
use payment_api::routes::callback_answers::CallbackOutcome;
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use testkit::TestBroker;
use time::OffsetDateTime;

use crate::world::{Setup, World};

const ALIPAY: &str = "/v1/callbacks/alipay/main";
const WECHAT: &str = "/v1/callbacks/wechat/main";

fn vectors(file: &str) -> Value {
    let folder = std::env::var("VECTORS_DIR")
        .unwrap_or_else(|_| format!("{}/../shared/gateway/tests/fixtures/vectors", env!("CARGO_MANIFEST_DIR")));
    serde_json::from_str(&std::fs::read_to_string(Path::new(&folder).join(file)).unwrap()).unwrap()
}

/// The moment at which WeChat Pay's vectors were signed.
fn then() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(vectors("wechat/notify.json")["now"].as_i64().unwrap()).unwrap()
}

fn case(file: &str, id: &str) -> Value {
    let vectors = vectors(file);
    vectors["cases"].as_array().unwrap().iter().find(|case| case["id"] == id).unwrap().clone()
}

fn posted(path: &str, case: &Value) -> axum::http::request::Builder {
    let mut request = Request::post(path);
    for (name, value) in case["headers"].as_object().into_iter().flatten() {
        request = request.header(name, value.as_str().unwrap());
    }
    request
}

fn wechat(id: &str) -> Request<Body> {
    let case = case("wechat/notify.json", id);
    posted(WECHAT, &case).body(Body::from(case["body"].as_str().unwrap().to_owned())).unwrap()
}

fn alipay(id: &str) -> Request<Body> {
    let case = case("alipay/notify_verify.json", id);
    let request = posted(ALIPAY, &case).header("content-type", "application/x-www-form-urlencoded; charset=utf-8");
    request.body(Body::from(case["body"].as_str().unwrap().to_owned())).unwrap()
}

fn from(address: &str, mut request: Request<Body>) -> Request<Body> {
    let address = SocketAddr::new(address.parse().unwrap(), 40_000);
    request.extensions_mut().insert(ConnectInfo(address));
    request
}

/// The answer, and how the metrics counted it.
type Seen = (u16, String, &'static str);

async fn seen(world: &World, request: Request<Body>) -> Seen {
    let response = world.open(request).await;
    let outcome = response.extensions().get::<CallbackOutcome>().map_or("uncounted", |outcome| outcome.0);
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap(), outcome)
}

async fn world(db: PgPool) -> World {
    World::with(db, Setup { clock: Clock::fixed(then()), ..Setup::default() }).await
}

fn fail(message: &str) -> String {
    json!({ "code": "FAIL", "message": message }).to_string()
}

/// The callbacks that the database holds.
async fn stored(db: &PgPool) -> Vec<Callback> {
    let rows: Vec<Value> =
        sqlx::query_scalar("select payload from jobs where kind = 'callback' order by id").fetch_all(db).await.unwrap();
    rows.into_iter().map(|row| serde_json::from_value(row).unwrap()).collect()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn every_wechat_vector_meets_its_answer(db: PgPool) {
    let world = world(db).await;
    let vectors = vectors("wechat/notify.json");
    let cases = vectors["cases"].as_array().unwrap();
    let mut accepted = 0;
    for case in cases {
        let (id, body) = (case["id"].as_str().unwrap(), case["body"].as_str().unwrap());
        let (status, answer, outcome) =
            seen(&world, posted(WECHAT, case).body(Body::from(body.to_owned())).unwrap()).await;
        let expected = match case["expect"].as_str().unwrap() {
            _ if id == "signature-probe" => (401, fail("bad signature"), "probe"),
            "signature" => (401, fail("bad signature"), "bad_signature"),
            "clock" => (401, fail("stale timestamp"), "stale"),
            "unknown-serial" => (503, fail("unknown key, repeat later"), "unknown_serial"),
            "headers" => (400, fail("malformed request"), "malformed"),
            "format" if case["headers"].get("Wechatpay-Signature").is_none() => {
                (400, fail("malformed request"), "malformed")
            }
            _ if id.starts_with("decrypt-") || id == "format-algorithm-unknown" => {
                (503, fail("cannot be decrypted, repeat later"), "unopened")
            }
            // Authentic and decrypted: whether it can be read and what it says is the worker's.
            _ => {
                accepted += 1;
                (204, String::new(), "accepted")
            }
        };
        assert_eq!((status, answer, outcome), expected, "{id}");
    }
    assert!(accepted > 0);
    assert_eq!(stored(&world.db).await.len(), accepted, "no refused callback left a row");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn every_alipay_vector_meets_its_answer(db: PgPool) {
    let world = world(db).await;
    let vectors = vectors("alipay/notify_verify.json");
    let mut accepted = 0;
    for case in vectors["cases"].as_array().unwrap() {
        let (id, body) = (case["id"].as_str().unwrap(), case["body"].as_str().unwrap());
        let answer = seen(&world, posted(ALIPAY, case).body(Body::from(body.to_owned())).unwrap()).await;
        let expected = match &case["expect"] {
            Value::Bool(false) if id == "invalid-sign-missing" => (400, "fail".to_owned(), "malformed"),
            Value::Bool(false) => (401, "fail".to_owned(), "bad_signature"),
            _ => {
                accepted += 1;
                (200, "success".to_owned(), "accepted")
            }
        };
        assert_eq!(answer, expected, "{id}");
    }
    assert!(accepted > 0);
    assert_eq!(stored(&world.db).await.len(), accepted);
}

/// The query string with which Alipay sends the buyer's browser back: signed by the rule and the key of notices.
fn signed_return() -> Vec<(&'static str, String)> {
    let pem = std::fs::read_to_string(format!(
        "{}/../shared/gateway/tests/fixtures/vectors/keys/alipay_platform_private_pkcs8.pem",
        env!("CARGO_MANIFEST_DIR")
    ));
    let mut fields: Vec<(&str, String)> = [
        ("app_id", "2021000122671080"),
        ("charset", "utf-8"),
        ("method", "alipay.trade.page.pay.return"),
        ("out_trade_no", "ORD_01"),
        ("seller_id", "2088621955702100"),
        ("timestamp", "2026-01-06 00:20:30"),
        ("total_amount", "88.80"),
        ("trade_no", "2026010522001400001000000002"),
        ("version", "1.0"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into();
    let covered: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let key = gateway::keys::SigningKey::from_pem(&pem.unwrap()).unwrap();
    fields.push(("sign", key.sign(covered.join("&").as_bytes()).unwrap()));
    fields.push(("sign_type", "RSA2".to_owned()));
    fields
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_buyers_return_is_no_notice_however_it_is_written(db: PgPool) {
    let world = world(db).await;
    let encoded = |fields: &[(&str, String)]| -> String {
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
    };
    let fields = signed_return();
    let turned: Vec<_> = fields.iter().rev().cloned().collect();
    let plain = encoded(&fields);
    let writings = [
        plain.clone(),
        encoded(&turned),
        plain.replace('+', "%20"),
        format!("&{plain}&&"),
        format!("{plain}&notify_id=&notify_type="),
    ];
    let post =
        |address: &str, body: &str| from(address, Request::post(ALIPAY).body(Body::from(body.to_owned())).unwrap());
    for body in &writings {
        assert_eq!(seen(&world, post("198.51.100.7", body)).await, (400, "fail".to_owned(), "malformed"), "{body}");
    }
    assert_eq!(world.count("jobs").await, 0, "nothing of it is stored");
    let mut sent = 0;
    while seen(&world, post("198.51.100.8", &writings[0])).await.2 == "malformed" {
        sent += 1;
        assert!(sent < 200, "a strike is counted for each");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn without_a_broker_the_exact_bytes_are_in_the_database(db: PgPool) {
    let world = world(db).await;
    let case = case("wechat/notify.json", "pay-success-body-with-whitespace-and-escapes");
    let request = posted(WECHAT, &case).header("authorization", "secret").header("x-other", "1");
    let body = case["body"].as_str().unwrap().to_owned();
    assert_eq!(seen(&world, request.body(Body::from(body.clone())).unwrap()).await.0, 204);

    let callbacks = stored(&world.db).await;
    let [callback] = callbacks.as_slice() else { panic!("{callbacks:?}") };
    assert_eq!((callback.body.as_ref(), callback.received_at), (body.as_bytes(), then()));
    let mut names: Vec<&str> = callback.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert!(names.iter().all(|name| name.starts_with("wechatpay-")), "{names:?}");
    assert_eq!((callback.method.as_str(), callback.account.as_str()), ("wechat", "main"));
    let due: bool = sqlx::query_scalar("select due_at <= now() from jobs").fetch_one(&world.db).await.unwrap();
    assert!(due, "the relay takes it at once");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn alipays_success_is_exactly_that_word(db: PgPool) {
    let world = world(db).await;
    let answer = world.send(alipay("valid-trade-success")).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "success"));
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn with_a_broker_its_route_is_taken(db: PgPool) {
    let broker = TestBroker::new().await;
    let world = World::with(db, Setup { clock: Clock::fixed(then()), broker: broker.uri(), ..Setup::default() }).await;
    let case = case("wechat/notify.json", "pay-success-platform-cert");
    assert_eq!(seen(&world, wechat("pay-success-platform-cert")).await, (204, String::new(), "accepted"));
    assert_eq!(seen(&world, alipay("valid-trade-success")).await, (200, "success".to_owned(), "accepted"));
    assert_eq!(world.count("jobs").await, 0, "the database was not asked");

    let connection = broker.admin().await;
    let channel = connection.create_channel().await.unwrap();
    let message = channel.basic_get("payment.callbacks".into(), Default::default()).await.unwrap().unwrap();
    let callback = broker::callback_from(&message.delivery).unwrap();
    assert_eq!(callback.body.as_ref(), case["body"].as_str().unwrap().as_bytes());
    assert_eq!(callback.header("wechatpay-serial"), case["headers"]["Wechatpay-Serial"].as_str());
    assert_eq!(callback.received_at, then());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn with_neither_nothing_is_called_a_success(db: PgPool) {
    let world = world(db.clone()).await;
    db.close().await;
    let refused = fail("not stored, repeat later");
    assert_eq!(seen(&world, wechat("pay-success-platform-cert")).await, (503, refused, "unavailable"));
    assert_eq!(seen(&world, alipay("valid-trade-success")).await, (503, "fail".to_owned(), "unavailable"));
    // A callback that is not genuine is refused all the same.
    assert_eq!(seen(&world, alipay("invalid-tampered-amount")).await.0, 401);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_database_that_does_not_answer_costs_less_than_five_seconds(db: PgPool) {
    let world = world(db.clone()).await;
    let mut lock = db.begin().await.unwrap();
    sqlx::query("lock table jobs in access exclusive mode").execute(&mut *lock).await.unwrap();
    let began = tokio::time::Instant::now();
    assert_eq!(seen(&world, alipay("valid-trade-success")).await, (503, "fail".to_owned(), "unavailable"));
    assert!(began.elapsed() < Duration::from_millis(4500), "{:?}", began.elapsed());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_gateway_that_hangs_up_changes_nothing(db: PgPool) {
    let world = world(db.clone()).await;
    let mut lock = db.begin().await.unwrap();
    sqlx::query("lock table jobs in access exclusive mode").execute(&mut *lock).await.unwrap();
    let call = tokio::time::timeout(Duration::from_millis(200), world.open(alipay("valid-trade-success")));
    assert!(call.await.is_err(), "dropped in the middle of storing");
    lock.rollback().await.unwrap();
    let began = tokio::time::Instant::now();
    while stored(&world.db).await.len() != 1 {
        assert!(began.elapsed() < Duration::from_secs(5), "the callback was lost");
        tokio::task::yield_now().await;
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn unknown_accounts_and_other_methods(db: PgPool) {
    let world = world(db).await;
    for account in ["other", "MAIN", "a%20b", "%ff", &"a".repeat(33)] {
        let post =
            |gateway: &str| Request::post(format!("/v1/callbacks/{gateway}/{account}")).body(Body::empty()).unwrap();
        let answer = seen(&world, post("alipay")).await;
        if account == "%ff" {
            assert_eq!((answer.0, answer.1), (400, "fail".to_owned()));
            continue;
        }
        assert_eq!(answer, (404, "fail".to_owned(), "unknown_account"), "{account}");
        assert_eq!(seen(&world, post("wechat")).await, (404, fail("unknown account"), "unknown_account"));
    }
    let get = Request::get(WECHAT).body(Body::empty()).unwrap();
    assert_eq!(seen(&world, get).await, (405, fail("method not allowed"), "malformed"));
    let retired = posted("/v1/callbacks/alipay/retired", &json!({}));
    let body = case("alipay/notify_verify.json", "valid-trade-success")["body"].as_str().unwrap().to_owned();
    assert_eq!(seen(&world, retired.body(Body::from(body)).unwrap()).await.2, "accepted", "its orders live on");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_body_of_64_kib_and_a_byte_is_too_large(db: PgPool) {
    let world = world(db).await;
    let sent = |length: usize, chunked: bool| {
        let bytes = vec![b'a'; length];
        let body = match chunked {
            false => Body::from(bytes),
            true => Body::from_stream(futures_util::stream::once(async { Ok::<_, std::io::Error>(bytes) })),
        };
        Request::post(ALIPAY).body(body).unwrap()
    };
    for chunked in [false, true] {
        let too_large = (413, "fail".to_owned(), "too_large");
        assert_eq!(seen(&world, sent(64 * 1024 + 1, chunked)).await, too_large);
        assert_eq!(seen(&world, sent(64 * 1024, chunked)).await.2, "malformed");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_body_that_never_ends_is_too_slow_in_time(db: PgPool) {
    let world = world(db).await;
    let stalled = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let began = tokio::time::Instant::now();
    let answer = seen(&world, Request::post(ALIPAY).body(stalled).unwrap()).await;
    assert_eq!(answer, (408, "fail".to_owned(), "too_slow"));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn malformed_callbacks_are_answered_with_an_error(db: PgPool) {
    let world = world(db).await;
    let malformed = (400, fail("malformed request"), "malformed");
    for name in ["wechatpay-signature", "wechatpay-serial", "wechatpay-timestamp", "wechatpay-nonce"] {
        let mut twice = wechat("pay-success-platform-cert");
        twice.headers_mut().append(name, "other".parse().unwrap());
        assert_eq!(seen(&world, twice).await, malformed, "{name} twice");
        let mut without = wechat("pay-success-platform-cert");
        without.headers_mut().remove(name);
        assert_eq!(seen(&world, without).await, malformed, "no {name}");
        let mut bytes = wechat("pay-success-platform-cert");
        bytes.headers_mut().insert(name, axum::http::HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(seen(&world, bytes).await, malformed, "{name} is no text");
    }
    for body in ["", "{", "sign", "sign=&sign_type=RSA2", "a=1&a=1&sign=x&sign_type=RSA2"] {
        let request = Request::post(ALIPAY).body(Body::from(body)).unwrap();
        assert_eq!(seen(&world, request).await, (400, "fail".to_owned(), "malformed"), "{body}");
    }
    let mut hosts = alipay("valid-trade-success");
    hosts.headers_mut().append("host", "a".parse().unwrap());
    hosts.headers_mut().append("host", "b".parse().unwrap());
    assert_eq!(seen(&world, hosts).await, (400, "fail".to_owned(), "malformed"));
    assert_eq!(world.count("jobs").await, 0);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn strangers_are_kept_out_by_the_list(db: PgPool) {
    let mut setup = Setup { clock: Clock::fixed(then()), ..Setup::default() };
    setup.settings.alipay_callers.networks = vec!["203.0.113.0/24".parse().unwrap()];
    setup.settings.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    let world = World::with(db, setup).await;
    let genuine = || alipay("valid-trade-success");
    assert_eq!(seen(&world, from("203.0.113.9", genuine())).await.2, "accepted");
    assert_eq!(seen(&world, from("203.0.114.9", genuine())).await, (403, "fail".to_owned(), "wrong_ip"));

    let forwarded = |chain: &str| {
        let mut request = genuine();
        request.headers_mut().insert("x-forwarded-for", chain.parse().unwrap());
        from("10.0.0.1", request)
    };
    assert_eq!(seen(&world, forwarded("203.0.113.9")).await.2, "accepted");
    assert_eq!(seen(&world, forwarded("203.0.113.9, 198.51.100.1")).await.2, "wrong_ip", "the left end is invented");
    assert_eq!(seen(&world, wechat("pay-success-platform-cert")).await.2, "accepted", "the other list is off");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn refused_requests_count_against_an_address_and_good_ones_do_not(db: PgPool) {
    let world = world(db).await;
    let forged = || from("2001:db8::1", alipay("invalid-tampered-amount"));
    let mut refused = 0;
    while seen(&world, forged()).await.2 == "bad_signature" {
        refused += 1;
        assert!(refused < 200, "never enough");
    }
    assert!(refused >= 60, "{refused}");
    // A strike is forgiven in half a second, and on a slow machine that is soon over: the next one is out again.
    let mut pair = Vec::new();
    for _ in 0..20 {
        let neighbour = from("2001:db8::2", alipay("valid-trade-success"));
        pair = vec![seen(&world, forged()).await, seen(&world, neighbour).await];
        if pair.iter().all(|answer| answer.2 == "too_many") {
            break;
        }
    }
    let out = (429, "fail".to_owned(), "too_many");
    assert_eq!(pair, [out.clone(), out], "the forger, and the same /64");

    for _ in 0..200 {
        assert_eq!(seen(&world, alipay("valid-trade-success")).await.2, "accepted");
    }
}

/// What is logged, kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_proxy_that_is_not_trusted_is_logged_once(db: PgPool) {
    let log = Log::default();
    let written = log.0.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
    let _here = tracing::subscriber::set_default(subscriber);
    let warnings = || {
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("TRUSTED_PROXIES")).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut setup = Setup { clock: Clock::fixed(then()), ..Setup::default() };
    setup.settings.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    let world = World::with(db, setup).await;
    let forwarded = |by: &str| {
        let mut request = alipay("valid-trade-success");
        request.headers_mut().insert("x-forwarded-for", "203.0.113.9".parse().unwrap());
        from(by, request)
    };
    assert_eq!(seen(&world, from("198.51.100.7", alipay("valid-trade-success"))).await.2, "accepted");
    assert_eq!(seen(&world, forwarded("10.0.0.1")).await.2, "accepted");
    assert_eq!(warnings(), [""; 0], "as it should be");
    for _ in 0..3 {
        assert_eq!(seen(&world, forwarded("192.0.2.1")).await.2, "accepted");
    }
    let warnings = warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("WARN") && warnings[0].contains("192.0.2.1"), "{warnings:?}");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_gateways_own_addresses_are_never_strangers(db: PgPool) {
    let mut setup = Setup { clock: Clock::fixed(then()), ..Setup::default() };
    setup.settings.alipay_callers.networks = vec!["203.0.113.9".parse::<std::net::IpAddr>().unwrap().into()];
    let world = World::with(db, setup).await;
    for _ in 0..200 {
        let forged = from("203.0.113.9", alipay("invalid-tampered-amount"));
        assert_eq!(seen(&world, forged).await.2, "bad_signature");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_listener_of_its_own_serves_callbacks_alone(db: PgPool) {
    let mut world = world(db).await;
    world.router = payment_api::callbacks_only(world.app.clone());
    assert_eq!(seen(&world, alipay("valid-trade-success")).await.2, "accepted");
    for (method, path) in [(Method::GET, "/v1/payment-methods"), (Method::POST, "/v1/orders"), (Method::GET, "/docs")] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        world.send(request).await.is(404, "not_found");
    }
}
