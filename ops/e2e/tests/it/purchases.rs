//! From the order to the fulfilment event, at each gateway in every scene.

use e2e::downstream::Delivery;
use e2e::shop::{BUYER, OPENID};
use e2e::{Gateway, Order, SOON, World, eventually, slug};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Every scene, what the frontend gets there, and a price.
const SCENES: [(Gateway, &str, &str, &str); 9] = [
    (Gateway::Alipay, "page", "redirect", "12.34"),
    (Gateway::Alipay, "wap", "redirect", "0.01"),
    (Gateway::Alipay, "app", "invoke", "100.00"),
    (Gateway::Alipay, "qr", "qr", "99999999.99"),
    (Gateway::Wechat, "native", "qr", "0.01"),
    (Gateway::Wechat, "jsapi", "invoke", "88.88"),
    (Gateway::Wechat, "mini", "invoke", "1.10"),
    (Gateway::Wechat, "h5", "redirect", "0.10"),
    (Gateway::Wechat, "app", "invoke", "19.90"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purchase_in_every_scene_of_each_gateway_ends_in_one_event() {
    let world = World::start().await;
    let mut bought = Vec::new();
    for (gateway, scene, kind, yuan) in SCENES {
        let order = world.buy(gateway, scene, yuan).await;
        assert_eq!(order.payment["kind"], kind, "{order:?}");
        assert_eq!(world.shop.order(&order).await["status"], "pending");
        world.pay(&order).await;
        bought.push((order, yuan));
    }
    for (order, yuan) in &bought {
        world.wait_paid(order).await;
        let trade = world.gateways.trade(order).await;
        let events = world.events_of(order).await;
        let [event] = &events[..] else { panic!("{} events: {events:?}", events.len()) };
        check_event(event, order, yuan, &trade);
        // What it was before may be shown for a second more.
        let shown = eventually("the order is shown paid", SOON, async || {
            Some(world.shop.order(order).await).filter(|shown| shown["status"] == "paid")
        })
        .await;
        assert_eq!((&shown["status"], &shown["trade_no"]), (&"paid".into(), &trade["trade_no"]), "{shown}");
        assert_eq!((&shown["amount"], &shown["version"]), (&(*yuan).into(), &2.into()), "{shown}");
    }
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    let ids = world.downstream.times();
    assert_eq!((ids.len(), ids.values().sum::<usize>()), (SCENES.len(), SCENES.len()), "{ids:?}");
    let outcomes = world.api.metrics().await.by("callbacks_received_total", "outcome");
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), ["accepted"]);
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    assert_eq!(
        world.number("select count(*) from jobs where kind <> 'look_back'").await,
        Some(0),
        "a paid order needs no check"
    );
    assert!(!world.logs().contains(OPENID));
    world.logs_are_clean();
}

/// A CloudEvent 1.0 in AMQP binary mode, with the data that downstream systems need to fulfil.
fn check_event(event: &Delivery, order: &Order, yuan: &str, trade: &Value) {
    let header = |name: &str| event.headers.get(&format!("cloudEvents:{name}")).map(String::as_str);
    assert_eq!(event.kind, "order.paid");
    assert_eq!(event.content_type, "application/json");
    assert_eq!(header("specversion"), Some("1.0"));
    assert_eq!(header("id"), Some(format!("order.paid:{}", order.id).as_str()));
    assert_eq!(header("type"), Some("order.paid"));
    assert_eq!(header("source"), Some("/payment"));
    assert_eq!(header("subject"), Some(order.id.as_str()));
    OffsetDateTime::parse(header("time").expect("a time"), &Rfc3339).expect("RFC 3339");

    let mut data = event.data.clone();
    let time = |value: &Value| OffsetDateTime::parse(value.as_str().expect("a time"), &Rfc3339).expect("RFC 3339");
    assert_eq!(time(&data["paid_at"]), time(&trade["paid_at"]), "the gateway's time of payment");
    data["paid_at"] = "…".into();
    assert!(data["metadata"]["cart"].is_string());
    data["metadata"] = json!({});
    let expected = json!({
        "order_id": order.id, "order_no": order.order_no, "merchant_order_no": null, "vouched_by": "buyer",
        "user_id": BUYER, "product_type": "membership", "amount": yuan, "currency": "CNY",
        "payment_method": slug(order.gateway), "order_status": "paid", "order_version": 2,
        "trade_no": trade["trade_no"], "paid_at": "…", "metadata": {},
    });
    assert_eq!(data, expected);
}
