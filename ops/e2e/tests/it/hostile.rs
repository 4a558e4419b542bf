//! Bad input at the callback route: the answer, the verdict, the case, and nothing changed.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::gateways::{deliver, is_success};
use e2e::http::{Answer, http_client, new_client};
use e2e::process::{Process, free_address};
use e2e::{Gateway, Order, Overrides, SOON, SignedCallback, World, Wrong, eventually, slug};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Something that the ingress must not accept.
struct Refused {
    what: &'static str,
    callback: SignedCallback,
    status: u16,
    outcome: &'static str,
}

/// Something authentic that the worker must not settle.
struct Unsettled {
    what: &'static str,
    callback: SignedCallback,
    verdict: &'static str,
    /// The case it opens.
    case: &'static str,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_ingress_must_not_take_is_refused_counted_and_changes_nothing() {
    let world = World::start().await;
    let orders = [world.buy(Gateway::Alipay, "page", "5.00").await, world.buy(Gateway::Wechat, "native", "5.00").await];
    let before = rows(&world).await;
    let mut expected = BTreeMap::<String, f64>::new();
    for order in &orders {
        for Refused { what, callback, status, outcome } in refusable(&world, order) {
            // A connection each: one on which a body was refused unread is closed after the answer.
            let answer = deliver(&new_client(), &callback).await.expect("payment-api answers");
            assert_eq!(answer.status, status, "{what} at {}: {answer:?}", slug(order.gateway));
            is_refusal(order.gateway, &answer, what);
            *expected.entry(outcome.to_owned()).or_default() += 1.0;
        }
        let path = format!("/v1/callbacks/{}/main", slug(order.gateway));
        let got = world.shop.request(reqwest::Method::GET, &path, Vec::new()).await;
        assert_eq!(got.status, 405, "{got:?}");
        is_refusal(order.gateway, &got, "GET");
        *expected.entry("malformed".to_owned()).or_default() += 1.0;
    }
    let counted = world.api.metrics().await.by("callbacks_received_total", "outcome");
    assert_eq!(counted, expected);
    assert_eq!(rows(&world).await, before);
    assert_eq!(world.number("select count(*) from callbacks").await, Some(0), "nothing of it was taken");
    still_payable(&world, &orders).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_worker_must_not_settle_becomes_evidence_and_a_case_and_changes_nothing() {
    let world = World::start().await;
    let orders = [world.buy(Gateway::Alipay, "page", "5.00").await, world.buy(Gateway::Wechat, "native", "5.00").await];
    let before = moneys(&world).await;
    let mut verdicts = BTreeMap::<String, f64>::new();
    let mut cases = BTreeMap::<String, usize>::new();
    let all: Vec<_> = orders.iter().flat_map(|order| unsettleable(&world, order, &orders)).collect();
    for Unsettled { what, callback, verdict, case } in all {
        let gateway = if callback.path.contains("alipay") { Gateway::Alipay } else { Gateway::Wechat };
        let answer = deliver(&http_client(), &callback).await.expect("payment-api answers");
        assert!(is_success(gateway, &answer), "{what}: {answer:?}");
        *verdicts.entry(verdict.to_owned()).or_default() += 1.0;
        *cases.entry(case.to_owned()).or_default() += 1;
        // One by one, so that each verdict is its own.
        eventually(&format!("{what}: a verdict {verdict}"), SOON, async || {
            let counted = world.workers[0].metrics().await.by("callbacks_total", "verdict");
            (counted == verdicts).then_some(())
        })
        .await;
    }
    eventually("the cases", SOON, async || {
        let mut found = BTreeMap::<String, usize>::new();
        let kinds = world.texts("select kind from cases").await;
        kinds.into_iter().for_each(|kind| *found.entry(kind).or_default() += 1);
        (found == cases).then_some(())
    })
    .await;
    assert_eq!(moneys(&world).await, before);
    // A payment of another amount is with the merchant, and the buyer reads so.
    let held = world.texts("select extra_state from payment_orders where extra_state is not null").await;
    assert_eq!(held, ["held", "held"]);
    still_payable(&world, &orders).await;
}

/// Strangers that connect and send nothing use up a listener's connections, but no file that the service itself needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_leave_the_service_what_it_needs() {
    // 128 and a pool of 8 are the service's own, and each client may need one more.
    const CLIENTS: usize = (320 - 128 - 8) / 2;
    let world = World::start().await;
    let listen = free_address();
    let program = world.program("payment-api").env("LISTEN_ADDR", listen.to_string()).most_files(320);
    let small = Process::new("payment-api-small", program, world.dir());
    small.start().await;
    assert!(small.log().contains("This process may open no more than 320 files"), "{}", small.log());

    let before = small.files();
    let strangers = join_all((0..600).map(|_| TcpStream::connect(listen))).await;
    assert!(strangers.iter().all(Result::is_ok), "who cannot be served yet waits");
    let held = async || (small.files() + 8 >= before + CLIENTS).then_some(());
    eventually("the listener holds what it may", SOON, held).await;
    // Until it closes one for its silence, it accepts no more of them.
    let mut most = 0;
    eventually("a silent connection is closed", SOON, async || {
        let files = small.files();
        // Those that are closed together make room for others, which open files before all of these are gone.
        let closed = strangers.iter().flatten().any(is_closed);
        most = if closed { most } else { most.max(files) };
        closed.then_some(())
    })
    .await;
    assert!(most <= before + CLIENTS + 8, "{before}, then {most}");

    // It loses its connections to the database, and finds room for others meanwhile.
    let ended = backends_of(&world, &small).await;
    assert!(!ended.is_empty());
    world.end_backends(&ended).await;
    eventually("new connections to the database", SOON, async || {
        small.ready().await;
        let fresh = backends_of(&world, &small).await;
        (!fresh.is_empty() && fresh.iter().all(|pid| !ended.contains(pid))).then_some(())
    })
    .await;
    drop(strangers);
    let order = world.buy(Gateway::Alipay, "page", "5.00").await;
    let mut callback = world.gateways.callback(&world.gateways.invented(&order), &Overrides::default());
    callback.url = callback.url.replace(&world.public_url, &format!("http://{listen}"));
    let answer = deliver(&new_client(), &callback).await.expect("the small ingress answers");
    assert!(is_success(Gateway::Alipay, &answer), "{answer:?}");
    world.wait_paid(&order).await;
}

/// Whether the other end has answered or closed this connection. An open one would have to wait.
fn is_closed(connection: &TcpStream) -> bool {
    !matches!(connection.try_read(&mut [0; 1024]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// The database's side of the connections of a process.
async fn backends_of(world: &World, process: &Process) -> Vec<i32> {
    let all = "select pid, client_port from pg_stat_activity where datname = current_database() and client_port > 0";
    let all: Vec<(i32, i32)> = sqlx::query_as(all).fetch_all(&world.db).await.expect("the database answers");
    all.into_iter().filter(|(_, port)| process.owns_port(*port)).map(|(pid, _)| pid).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_forgeries_is_slowed_down_and_then_forgiven() {
    let world = World::start().await;
    let order = world.buy(Gateway::Wechat, "native", "5.00").await;
    let forged = world.gateways.callback(&world.gateways.invented(&order), &wrong(Wrong::Forged));
    // More at once than are let through in a row (60), however slow the machine: one is forgiven each half second.
    let client = http_client();
    let flood = join_all((0..100).map(|_| deliver(&client, &forged))).await;
    assert!(flood.into_iter().all(|answer| [401, 429].contains(&answer.expect("payment-api answers").status)));
    eventually("an answer of 429", SOON, async || {
        let answer = deliver(&client, &forged).await.expect("payment-api answers");
        assert!([401, 429].contains(&answer.status), "{answer:?}");
        (answer.status == 429).then_some(())
    })
    .await;
    let counted = world.api.metrics().await.by("callbacks_received_total", "outcome");
    assert!(counted["bad_signature"] >= 60.0 && counted["too_many"] >= 1.0, "{counted:?}");
    // The gateway itself is at the same address here: it repeats until it gets an answer.
    still_payable(&world, &[order]).await;
}

/// Everything that is known about orders and money, without the rows about callbacks.
async fn rows(world: &World) -> Vec<String> {
    all_of(world, "select row(o.*)::text from payment_orders o order by id").await
}

/// The same without the members of orders that show money that is not theirs.
async fn moneys(world: &World) -> Vec<String> {
    let own = "select (to_jsonb(o) - '{extra_state,extra_amount,version,updated_at}'::text[])::text
               from payment_orders o order by id";
    all_of(world, own).await
}

async fn all_of(world: &World, orders: &'static str) -> Vec<String> {
    let payments = "select row(t.*)::text from payment_transactions t order by id";
    let events = "select event_id from events where type not like 'case.%' order by seq";
    let checks = "select row(kind, ref_id)::text from jobs order by id";
    let mut rows = Vec::new();
    for sql in [orders, payments, events, checks] {
        rows.extend(world.texts(sql).await);
    }
    rows
}

/// After everything, the same orders are paid like any other.
async fn still_payable(world: &World, orders: &[Order]) {
    for order in orders {
        assert_eq!(world.status(order).await, "pending");
        world.pay(order).await;
        world.wait_paid(order).await;
    }
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    world.logs_are_clean();
}

/// The answer is the gateway's own form of "not taken".
fn is_refusal(gateway: Gateway, answer: &Answer, what: &str) {
    match gateway {
        Gateway::Alipay => assert_eq!(answer.text, "fail", "{what}"),
        Gateway::Wechat => {
            let body = answer.json();
            assert_eq!(body["code"], "FAIL", "{what}: {answer:?}");
            assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()), "{what}: {answer:?}");
        }
    }
}

fn wrong(wrong: Wrong) -> Overrides {
    Overrides { wrong: Some(wrong), ..Overrides::default() }
}

fn header(name: &str, value: Option<&str>) -> Overrides {
    Overrides { headers: [(name.to_owned(), value.map(str::to_owned))].into(), ..Overrides::default() }
}

fn body(text: &str) -> Overrides {
    Overrides { body: Some(text.to_owned()), ..Overrides::default() }
}

fn field(name: &str, value: Value) -> Overrides {
    Overrides { fields: [(name.to_owned(), Some(value))].into(), ..Overrides::default() }
}

fn without(name: &str) -> Overrides {
    Overrides { fields: [(name.to_owned(), None)].into(), ..Overrides::default() }
}

fn envelope(pointer: &str, value: Value) -> Overrides {
    Overrides { envelope: [(pointer.to_owned(), Some(value))].into(), ..Overrides::default() }
}

fn seconds_ago(seconds: i64) -> Overrides {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    Overrides { at: Some(i64::try_from(now).expect("seconds") - seconds), ..Overrides::default() }
}

fn refusable(world: &World, order: &Order) -> Vec<Refused> {
    let make = |what, overrides: Overrides, status, outcome| {
        let callback = world.gateways.callback(&world.gateways.invented(order), &overrides);
        Refused { what, callback, status, outcome }
    };
    let mut all = vec![
        make("forged", wrong(Wrong::Forged), 401, "bad_signature"),
        make("tampered", wrong(Wrong::Tamper), 401, "bad_signature"),
        make("64 KiB + 1", body(&"x".repeat(64 * 1024 + 1)), 413, "too_large"),
    ];
    for (what, account) in [("an unknown account", "nobody"), ("no account name", "MAIN"), ("a path", "main%2Fmain")] {
        let mut refused = make(what, Overrides::default(), 404, "unknown_account");
        refused.callback.url = refused.callback.url.replace("/main", &format!("/{account}"));
        all.push(refused);
    }
    all.extend(match order.gateway {
        Gateway::Alipay => vec![
            make("a signature that is no base64", wrong(Wrong::Probe), 401, "bad_signature"),
            make("an empty body", body(""), 400, "malformed"),
            make("no sign", body("notify_id=1&sign_type=RSA2"), 400, "malformed"),
            make("no form", body("{\"a\": \"\u{0}\"}"), 400, "malformed"),
            make("another scheme", body("notify_id=1&sign_type=RSA&sign=AAAA"), 401, "bad_signature"),
            make("a return, which is signed too", without("notify_id"), 400, "malformed"),
            make("a notice of no type", without("notify_type"), 400, "malformed"),
        ],
        Gateway::Wechat => vec![
            make("a probe", wrong(Wrong::Probe), 401, "probe"),
            make("an unknown serial", wrong(Wrong::WrongSerial), 503, "unknown_serial"),
            make("stale", seconds_ago(330), 401, "stale"),
            make("from the future", seconds_ago(-330), 401, "stale"),
            make("a signature that is no base64", header("Wechatpay-Signature", Some("%%%")), 401, "bad_signature"),
            make("another nonce than signed", header("Wechatpay-Nonce", Some("n")), 401, "bad_signature"),
            make("no signature", header("Wechatpay-Signature", None), 400, "malformed"),
            make("no serial", header("Wechatpay-Serial", None), 400, "malformed"),
            make("no timestamp", header("Wechatpay-Timestamp", None), 400, "malformed"),
            make("a timestamp that is no number", header("Wechatpay-Timestamp", Some("1e9")), 400, "malformed"),
            make(
                "another scheme",
                header("Wechatpay-Signature-Type", Some("WECHATPAY2-SM2-WITH-SM3")),
                400,
                "malformed",
            ),
            make("broken base64", envelope("/resource/ciphertext", json!("%%% not base64")), 503, "unopened"),
            make("a short ciphertext", envelope("/resource/ciphertext", json!("AAAA")), 503, "unopened"),
            make("a short nonce", envelope("/resource/nonce", json!("short")), 503, "unopened"),
            make("an empty nonce", envelope("/resource/nonce", json!("")), 503, "unopened"),
            make("a long nonce", envelope("/resource/nonce", json!("thirteen char")), 503, "unopened"),
            make("another algorithm", envelope("/resource/algorithm", json!("AEAD_SM4_GCM")), 503, "unopened"),
        ],
    });
    let mut twice = make("a header twice", Overrides::default(), 400, "malformed");
    let (name, value) = match order.gateway {
        Gateway::Alipay => ("Content-Type", "text/plain"),
        Gateway::Wechat => ("Wechatpay-Signature", "AAAA"),
    };
    twice.callback.headers.push((name.to_owned(), value.to_owned()));
    all.push(twice);
    all
}

fn unsettleable(world: &World, order: &Order, orders: &[Order; 2]) -> Vec<Unsettled> {
    let make = |what, overrides: Overrides, verdict, case| {
        let mut overrides = overrides;
        overrides.id = Some(e2e::unique());
        let callback = world.gateways.callback(&world.gateways.invented(order), &overrides);
        Unsettled { what, callback, verdict, case }
    };
    let amount = |fen| Overrides { amount_fen: Some(fen), ..Overrides::default() };
    let mut all = vec![
        make("a fen less", amount(499), "amount_mismatch", "amount_mismatch"),
        make("a fen more", amount(501), "amount_mismatch", "amount_mismatch"),
    ];
    let mut unknown = world.gateways.invented(order);
    unknown.out_trade_no = format!("NOT_OURS_{}", slug(order.gateway));
    let callback = world.gateways.callback(&unknown, &Overrides::default());
    all.push(Unsettled { what: "an unknown order", callback, verdict: "unknown_order", case: "unknown_order" });

    // Authentic at the account "second", about an order of "main".
    let mut foreign = world.gateways.invented(order);
    foreign.account = "second".to_owned();
    let mut callback = world.gateways.callback(&foreign, &Overrides::default());
    callback.url = callback.url.replace("/main", "/second");
    all.push(Unsettled { what: "another account", callback, verdict: "wrong_merchant", case: "wrong_merchant" });

    // Authentic at this gateway, about an order of the other one.
    let other = orders.iter().find(|other| other.gateway != order.gateway).expect("an order at each gateway");
    let mut crossed = world.gateways.invented(order);
    crossed.out_trade_no.clone_from(&other.order_no);
    let callback = world.gateways.callback(&crossed, &Overrides::default());
    all.push(Unsettled { what: "the other gateway", callback, verdict: "wrong_method", case: "wrong_method" });

    all.extend(match order.gateway {
        Gateway::Alipay => vec![
            make("another app", field("app_id", json!("2021000000000000")), "wrong_merchant", "wrong_merchant"),
            make("another payee", field("seller_id", json!("2088000000000000")), "wrong_merchant", "wrong_merchant"),
            make(
                "no order number",
                Overrides { fields: [("out_trade_no".to_owned(), None)].into(), ..Default::default() },
                "undecodable",
                "dead_letter",
            ),
            make("an amount in words", field("total_amount", json!("five")), "undecodable", "dead_letter"),
        ],
        Gateway::Wechat => vec![
            make("another merchant", field("/mchid", json!("1900000000")), "wrong_merchant", "wrong_merchant"),
            make("another app", field("/appid", json!("wx0000000000000000")), "wrong_merchant", "wrong_merchant"),
            make("another currency", field("/amount/currency", json!("USD")), "amount_mismatch", "amount_mismatch"),
            make("broken JSON", body("{\"id\":"), "undecodable", "dead_letter"),
            make("no JSON", body(""), "undecodable", "dead_letter"),
            make("JSON of another shape", body("[]"), "undecodable", "dead_letter"),
        ],
    });
    all
}
