//! Nothing secret is ever logged, counted or shown.

use std::time::Duration;

use e2e::gateways::deliver;
use e2e::http::{answer, http_client};
use e2e::shop::{Purchase, RefundRequest};
use e2e::{Gateway, Order, Overrides, SOON, Setup, World, Wrong, eventually, unique};
use url::Url;

/// A refund with an unknown outcome is queried after ten seconds.
const LONG: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_logs_and_metrics_of_a_whole_run_hold_no_secret() {
    // More is logged than in production, and still no secret.
    let setup = Setup { log: "debug", check_workers: 1, refund_workers: 1, ..Setup::default() };
    let world = World::with(setup.trusting_this_machine()).await;
    let planted = format!("planted-{}", &unique()[..16]);
    let mut secrets = world.secrets();
    let mut orders = Vec::new();
    for (gateway, scene) in
        [(Gateway::Alipay, "page"), (Gateway::Alipay, "qr"), (Gateway::Wechat, "jsapi"), (Gateway::Wechat, "app")]
    {
        let order = world.buy(gateway, scene, "12.34").await;
        world.pay(&order).await;
        world.wait_paid(&order).await;
        secrets.push(("a view token", order.view_token.clone()));
        secrets.extend(payment_secrets(&order));
        orders.push(order);
    }
    for order in &orders {
        world.shop.refund(order, &RefundRequest::of_the_rest()).await;
    }
    eventually("each order is returned", LONG, async || {
        let sql = "select count(*) from payment_orders where status = 'refunded'";
        (world.number(sql).await? == orders.len() as i64).then_some(())
    })
    .await;
    secrets.extend(wrong_callbacks(&world, &orders).await);
    let answers = wrong_requests(&world, &planted, &mut secrets).await;
    world.wait_quiet(SOON).await;
    for process in world.processes() {
        let (status, _) = process.terminate().await;
        assert!(status.success(), "{}: {status}", process.name);
        process.start().await;
    }
    let mut seen = world.logs() + &answers;
    for process in world.processes() {
        seen += &process.metrics().await.text;
    }
    // The control: what is logged on purpose is found, so the search would find the rest.
    assert!(seen.contains(&planted), "the user id of a request is not in the logs");
    assert!(seen.contains(&orders[0].order_no), "an order number is not in the logs");
    assert!(secrets.len() > 100, "only {} secrets to look for", secrets.len());
    assert!(secrets.iter().all(|(what, secret)| secret.len() >= 11 || panic!("{what} is too short to look for")));
    let found: Vec<_> = secrets.iter().filter(|(_, secret)| seen.contains(secret.as_str())).collect();
    let lines: Vec<&str> =
        seen.lines().filter(|line| found.iter().any(|(_, secret)| line.contains(secret.as_str()))).take(5).collect();
    assert!(found.is_empty(), "in the logs: {found:?}\n{}", lines.join("\n"));
    world.logs_are_clean();
}

/// The values that the buyer's device received: a person who has them can pay, or pretend to have paid.
fn payment_secrets(order: &Order) -> Vec<(&'static str, String)> {
    let params = &order.payment["params"];
    let mut secrets = Vec::new();
    for name in ["paySign", "sign", "package", "prepayid", "order_string"] {
        if let Some(value) = params[name].as_str().filter(|value| *value != "Sign=WXPay") {
            secrets.push(("a client parameter", value.to_owned()));
        }
    }
    if let Some(url) = order.payment["url"].as_str() {
        let url = Url::parse(url).expect("a URL");
        let sign = url.query_pairs().find(|(name, _)| name == "sign").expect("a signature").1.into_owned();
        secrets.push(("a raw signature", sign));
    }
    secrets
}

/// Callbacks that go wrong in every place where one could be logged.
async fn wrong_callbacks(world: &World, orders: &[Order]) -> Vec<(&'static str, String)> {
    let mut secrets = Vec::new();
    let wrong = |wrong| Overrides { wrong: Some(wrong), ..Overrides::default() };
    let body = |text: &str| Overrides { body: Some(text.to_owned()), ..Overrides::default() };
    let other_amount = Overrides { amount_fen: Some(1), id: Some(unique()), ..Overrides::default() };
    let kinds = [
        Overrides::default(),
        wrong(Wrong::Forged),
        wrong(Wrong::Tamper),
        wrong(Wrong::Probe),
        wrong(Wrong::WrongSerial),
        body("{\"id\": \"secret-body-of-a-callback\"}"),
        other_amount,
    ];
    for order in orders {
        for overrides in &kinds {
            let callback = world.gateways.callback(&world.gateways.invented(order), overrides);
            deliver(&http_client(), &callback).await.expect("payment-api answers");
            let signature = callback.headers.iter().find(|(name, _)| name == "Wechatpay-Signature");
            secrets.extend(signature.map(|(_, value)| ("a raw signature", value.clone())));
            let form: Vec<(String, String)> = url::form_urlencoded::parse(&callback.body).into_owned().collect();
            let sign = form.into_iter().find(|(name, _)| name == "sign");
            secrets.extend(sign.map(|(_, value)| ("a raw signature", value)));
            if let Ok(body) = serde_json::from_slice::<serde_json::Value>(&callback.body) {
                let sealed = body.pointer("/resource/ciphertext").and_then(|text| text.as_str());
                secrets.extend(sealed.map(|text| ("a raw body", text.chars().take(64).collect())));
            }
        }
    }
    secrets.push(("a raw body", "secret-body-of-a-callback".to_owned()));
    secrets
}

/// Requests with tokens, good and bad; gives what was answered.
async fn wrong_requests(world: &World, planted: &str, secrets: &mut Vec<(&'static str, String)>) -> String {
    let mut answers = String::new();
    let good = world.shop.token(planted);
    let bad = format!("{}x", world.shop.token("somebody"));
    let mut purchase = Purchase::new(Gateway::Wechat, "jsapi", "1.00");
    purchase.user = planted.to_owned();
    answers += &world.shop.request_order(&purchase).await.expect("payment-api answers").text.replace("view_token", "");
    purchase.yuan = "0".to_owned();
    purchase.attempt = unique();
    answers += &world.shop.request_order(&purchase).await.expect("payment-api answers").text;
    for token in [&good, &bad] {
        let url = format!("{}/v1/orders", world.public_url);
        let answer = answer(http_client().get(url).bearer_auth(token)).await.expect("payment-api answers");
        answers += &answer.text;
        let signature = token.rsplit('.').next().unwrap_or_default().to_owned();
        secrets.push(("a token", signature));
    }
    let path = format!("/v1/orders/{}?view_token={}", "0".repeat(32), "not-a-view-token-but-secret");
    answers += &world.shop.request(reqwest::Method::GET, &path, Vec::new()).await.text;
    secrets.push(("a view token", "not-a-view-token-but-secret".to_owned()));
    answers
}
