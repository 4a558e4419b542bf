//! `GET /pay/success` and `GET /pay/cancel`: what a returning browser sees, and what it never sees.

use axum::body::Body;
use axum::http::Request;
use domain::OrderId;
use gateway_sim::crypto::Signer;
use runtime::clock::Clock;
use serde_json::Value;
use sqlx::PgPool;
use time::Duration;
use url::form_urlencoded::Serializer;

use crate::world::{Answer, Setup, World, alipay_order, token, wechat_order};

pub const PLATFORM: &str =
    include_str!("../../../shared/gateway/tests/fixtures/vectors/keys/alipay_platform_private_pkcs8.pem");
const STRANGER: &str =
    include_str!("../../../shared/gateway/tests/fixtures/vectors/keys/alipay_other_private_pkcs8.pem");
const PAGES: [&str; 2] = ["/pay/success", "/pay/cancel"];
const NEUTRAL: &str = "Please look into the merchant’s app";

/// What Alipay appends to a return address, signed with this key. The signed text is built here by hand and the
/// signature made by the simulator: neither shares code with what is tested.
pub fn returned(key: &str, order_no: &str) -> String {
    let fields = [
        ("app_id", "2021000122671080"),
        ("auth_app_id", "2021000122671080"),
        ("charset", "utf-8"),
        ("method", "alipay.trade.page.pay.return"),
        ("out_trade_no", order_no),
        ("seller_id", "2088621955702100"),
        ("timestamp", "2026-01-06 00:20:30"),
        ("total_amount", "99999.99"),
        ("trade_no", "2026010522001400001000000002"),
        ("version", "1.0"),
    ];
    let text = fields.map(|(name, value)| format!("{name}={value}")).join("&");
    let sign = Signer::from_pem(key).unwrap().sign(text.as_bytes());
    let mut query = Serializer::new(String::new());
    query.extend_pairs(fields).append_pair("sign_type", "RSA2").append_pair("sign", &sign).finish()
}

fn text<'a>(placed: &'a Value, name: &str) -> &'a str {
    placed["order"][name].as_str().unwrap()
}

pub fn with_token(placed: &Value) -> String {
    format!("order={}&view_token={}", text(placed, "id"), placed["view_token"].as_str().unwrap())
}

async fn open(world: &World, page: &str, query: &str) -> Answer {
    let request = Request::get(format!("{page}?{query}")).header("accept-language", "en");
    let answer = world.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status.as_u16(), 200, "{query}");
    answer
}

/// The page without an order, and the same bytes for whatever brought us here.
#[track_caller]
fn is_neutral(answer: &Answer, query: &str) {
    assert!(answer.body.contains(NEUTRAL), "{query}: {}", answer.body);
    for part in ["<script", "data-stream", "<dl>", "¥", "http-equiv"] {
        assert!(!answer.body.contains(part), "{query}: {part}");
    }
}

async fn set(world: &World, status: &str) {
    testkit::make_up_facts(&world.db).await;
    sqlx::query(
        "update payment_orders set status = $1, version = version + 1, \
         trade_no = case when $1 in ('pending', 'closed') then null else 't1' end, \
         paid_at = case when $1 in ('pending', 'closed') then null else timestamptz '2026-01-05 16:20:30Z' end, \
         closed_at = case when $1 = 'closed' then now() end, \
         refunded_amount = case $1 when 'refunded' then amount when 'partially_refunded' then 1.00 else 0 end",
    )
    .bind(status)
    .execute(&world.db)
    .await
    .unwrap();
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_signed_return_shows_our_own_record(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    let query = returned(PLATFORM, text(&placed, "order_no"));
    for (status, heading) in [
        ("pending", "Confirming the payment"),
        ("paid", "Paid"),
        ("refunding", "A refund is on its way"),
        ("partially_refunded", "Partly refunded"),
        ("refunded", "Refunded in full"),
        ("closed", "The order is closed"),
    ] {
        set(&world, status).await;
        // The same return, again and again: it is worth what our record says at that moment.
        for _ in 0..2 {
            let body = open(&world, "/pay/success", &query).await.body;
            assert!(body.contains(&format!("<h1 role=\"status\">{heading}</h1>")), "{status}: {body}");
            assert!(body.contains("¥12.34") && body.contains("Premium, one month"), "{body}");
            assert!(!body.contains("99999.99"), "the return's own amount is not shown");
            let waits = matches!(status, "pending" | "refunding");
            assert_eq!(
                (body.contains("<script>"), body.contains("http-equiv=\"refresh\"")),
                (waits, waits),
                "{status}"
            );
        }
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_cancel_page_of_a_paid_order_says_paid(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    let queries = [returned(PLATFORM, text(&placed, "order_no")), with_token(&placed)];
    for query in &queries {
        assert!(open(&world, "/pay/cancel", query).await.body.contains("Not paid so far"));
    }
    set(&world, "paid").await;
    for query in &queries {
        let cancel = open(&world, "/pay/cancel", query).await.body;
        assert!(
            cancel.contains("<h1 role=\"status\">Paid</h1>") && cancel.contains("2026-01-06 00:20 UTC+8"),
            "{cancel}"
        );
        assert_eq!(cancel, open(&world, "/pay/success", query).await.body);
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_waiting_page_carries_a_short_token_of_its_own(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    for query in [returned(PLATFORM, text(&placed, "order_no")), with_token(&placed)] {
        let body = open(&world, "/pay/success", &query).await.body;
        let stream = body.split("data-stream=\"").nth(1).unwrap().split('"').next().unwrap();
        assert!(!stream.contains(placed["view_token"].as_str().unwrap()), "not the one that was brought");
        let answer = world.open(Request::get(stream).body(Body::empty()).unwrap()).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"].to_str().unwrap()),
            (200, &"text/event-stream")
        );

        let minted = stream.split("view_token=").nth(1).unwrap();
        let claims = minted.split('.').nth(1).unwrap();
        let claims = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims).unwrap();
        let exp = serde_json::from_slice::<Value>(&claims).unwrap()["exp"].as_i64().unwrap();
        let left = exp - world.app.clock.now().unix_timestamp();
        assert!((1700..=1800).contains(&left), "{left}");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn without_a_proof_there_is_no_order(db: PgPool) {
    let world = World::new(db).await;
    let (mine, other) = (world.order("u1").await, world.order("u2").await);
    let by_wechat = world.create("u1", "w", &wechat_order()).await.json();
    set(&world, "paid").await;
    let (id, order_no) = (text(&mine, "id"), text(&mine, "order_no"));
    let genuine = returned(PLATFORM, order_no);
    let mint = |at| world.app.tokens.view.mint(OrderId::parse(id).unwrap(), at).unwrap();
    let expired = mint(world.app.clock.now() - Duration::days(1) - Duration::seconds(5));
    let theirs = other["view_token"].as_str().unwrap();
    for query in [
        String::new(),
        format!("order={id}"),
        format!("out_trade_no={order_no}&trade_status=TRADE_SUCCESS"),
        format!("order={id}&view_token={theirs}"),
        format!("order={id}&view_token={expired}"),
        format!("order={id}&view_token={}", token("u1")),
        format!("view_token={}", mine["view_token"].as_str().unwrap()),
        format!("{}&view_token={theirs}", with_token(&mine)),
        format!("{}&order={}", with_token(&mine), text(&other, "id")),
        returned(STRANGER, order_no),
        returned(PLATFORM, "ORD_nobody_has"),
        // WeChat Pay signs no returns: Alipay's key has no say about its orders.
        returned(PLATFORM, text(&by_wechat, "order_no")),
        genuine.replace(order_no, text(&other, "order_no")),
        genuine.replace("99999.99", "0.01"),
        genuine.replace("RSA2", "RSA"),
        genuine.replace("page.pay.return", "page.pay"),
        format!("{genuine}&out_trade_no={}", text(&other, "order_no")),
        format!("{genuine}&sign=x"),
        genuine.split("&sign=").next().unwrap().to_owned(),
    ] {
        for page in PAGES {
            is_neutral(&open(&world, page, &query).await, &query);
        }
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn hostile_queries_leave_no_trace(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    let plain = open(&world, "/pay/success", "").await;
    let hostile = [
        "%3Cscript%3Ealert(1)%3C/script%3E",
        "x%22onload=%22alert(1)",
        "javascript:alert(1)",
        "%E2%80%AE%F0%9F%92%A9%E4%BB%98%E6%AC%BE%E6%88%90%E5%8A%9F",
        "%ff%fe%00%0d%0aset-cookie:a=b",
        "{{heading}}",
        "%",
        &"a".repeat(3500),
    ];
    let names = [
        "q",
        "order",
        "view_token",
        "sign",
        "out_trade_no",
        "total_amount",
        "subject",
        "lang",
        "return_url",
        "%3Cb%3E",
    ];
    for value in hostile {
        let all = names.map(|name| format!("{name}={value}")).join("&");
        let mut queries: Vec<String> = names.iter().map(|name| format!("{name}={value}")).collect();
        queries.extend([value.to_owned(), format!("order={value}&view_token={value}"), format!("q={value}&q={value}")]);
        queries.extend([all].into_iter().chain([format!("&&==&{value}")]));
        for query in queries.iter().filter(|query| query.len() < 4000) {
            let answer = open(&world, "/pay/success", query).await;
            assert_eq!(answer.body, plain.body, "{query}");
            assert_eq!(answer.header("content-security-policy"), plain.header("content-security-policy"));
        }
    }
    // Beside a proof too: the page is the same as without the rest.
    set(&world, "paid").await;
    for proof in [returned(PLATFORM, text(&placed, "order_no")), with_token(&placed)] {
        let shown = open(&world, "/pay/success", &proof).await;
        let decorated = format!("from=%3Cscript%3E&{proof}&subject=free&lang=%22&lang=x&status=refunded");
        assert_eq!(open(&world, "/pay/success", &decorated).await.body, shown.body);
        assert!(shown.body.contains("¥12.34"));
    }
    let huge = Request::get(format!("/pay/success?q=%3Cscript%3E{}", "a".repeat(5000))).body(Body::empty()).unwrap();
    let huge = world.send(huge).await;
    huge.is(414, "uri_too_long");
    assert!(!huge.body.contains("script"));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_the_merchant_wrote_stays_text(db: PgPool) {
    let world = World::new(db).await;
    let mut body = alipay_order();
    body["subject"] = "<img src onerror\"x\"> '{{text}}' 大乐透".into();
    let answer = world.create("u1", "k", &body).await;
    // The rule of subjects has no equals sign, and that is not what the page relies on.
    let placed = answer.json();
    let page = open(&world, "/pay/success", &with_token(&placed)).await.body;
    assert!(page.contains("&lt;img src onerror&quot;x&quot;&gt; &#39;{{text}}&#39; 大乐透"), "{page}");
    assert!(!page.contains("<img"));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_headers_make_the_browser_strict(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    for query in ["", &with_token(&placed)] {
        let answer = open(&world, "/pay/success", query).await;
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("x-robots-tag", "noindex, nofollow"),
        ] {
            assert_eq!(answer.header(name), value, "{name}");
        }
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("base-uri 'none'"), "{policy}");
        for part in ["http:", "https:", "//", " style=", " onclick", " onload"] {
            let markup = answer.body.split("<script>").next().unwrap();
            assert!(!markup.contains(part), "{part}");
        }
    }
    let post = Request::post("/pay/success").body(Body::empty()).unwrap();
    world.send(post).await.is(405, "method_not_allowed");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn both_languages_are_there_and_the_browser_chooses(db: PgPool) {
    let world = World::new(db).await;
    for (wanted, lang, last) in
        [("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN", "zh"), ("en-GB,zh;q=0.1", "en", "en"), ("fr", "zh-CN", "zh")]
    {
        let request = Request::get("/pay/cancel").header("accept-language", wanted).body(Body::empty()).unwrap();
        let body = world.send(request).await.body;
        assert!(body.contains(&format!("<html lang=\"{lang}\">")), "{wanted}");
        assert!(body.contains("href=\"#zh\"") && body.contains("href=\"#en\""), "{wanted}");
        // The last one is shown unless the other's link was followed.
        assert_eq!(body.rsplit("<section id=\"").next().unwrap().split('"').next(), Some(last), "{wanted}");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_proof_ends_a_day_after_the_order(db: PgPool) {
    let placed = World::new(db.clone()).await.order("u1").await;
    let at = time::OffsetDateTime::parse(text(&placed, "expires_at"), &time::format_description::well_known::Rfc3339);
    let end = at.unwrap() + Duration::days(1);
    let query = returned(PLATFORM, text(&placed, "order_no"));
    let before =
        World::with(db.clone(), Setup { clock: Clock::fixed(end - Duration::SECOND), ..Setup::default() }).await;
    assert!(open(&before, "/pay/success", &query).await.body.contains("¥12.34"));
    let after = World::with(db, Setup { clock: Clock::fixed(end), ..Setup::default() }).await;
    is_neutral(&open(&after, "/pay/success", &query).await, &query);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_database_that_is_away_makes_the_page_wait(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.order("u1").await;
    sqlx::query("alter table payment_orders rename to elsewhere").execute(&world.db).await.unwrap();
    for query in [returned(PLATFORM, text(&placed, "order_no")), with_token(&placed)] {
        let body = open(&world, "/pay/success", &query).await.body;
        assert!(body.contains("cannot be looked up right now") && body.contains("http-equiv=\"refresh\""), "{body}");
        assert!(!body.contains("12.34") && !body.contains("elsewhere"), "{body}");
    }
}
