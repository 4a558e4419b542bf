//! Copies of orders, with Redis behind a fault proxy that hangs, breaks and comes back.

use std::time::{Duration, Instant};

use e2e::{Gateway, Order, SOON, Setup, World, eventually};
use testkit::Relay;
use url::Url;

/// How long a paid order may look unpaid.
const BOUND: Duration = Duration::from_secs(2);

/// The order as it is shown, which is never older than `known`.
async fn shown(world: &World, order: &Order, known: &mut i64) -> String {
    let shown = world.shop.order(order).await;
    let version = shown["version"].as_i64().expect("a version");
    assert!(version >= *known, "version {version} after {known}");
    *known = version;
    shown["status"].as_str().expect("a status").to_owned()
}

/// Buys, pays, and looks all the time.
async fn a_purchase_is_shown_paid_in_time(world: &World) {
    let order = world.buy(Gateway::Alipay, "page", "12.34").await;
    let mut known = 0;
    assert_eq!(shown(world, &order, &mut known).await, "pending");
    world.pay(&order).await;
    world.wait_paid(&order).await;
    let paid = Instant::now();
    eventually("it is shown paid", SOON, async || {
        let began = Instant::now();
        let status = shown(world, &order, &mut known).await;
        assert!(status == "paid" || began < paid + BOUND, "{status} two seconds after it was paid");
        (status == "paid").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_breaks_or_is_away_costs_speed_only() {
    let mut url = Url::parse(&testkit::env("REDIS_URL")).expect("a URL");
    let redis = format!("127.0.0.1:{}", url.port().expect("a port"));
    let between = Relay::to(redis).await;
    url.set_port(Some(between.port())).expect("a port");
    let setup = Setup { env: vec![("REDIS_URL", url.into())], ..Setup::default() };
    let world = World::with(setup.trusting_this_machine()).await;

    a_purchase_is_shown_paid_in_time(&world).await;
    let hits = world.api.metrics().await.sum("cache_requests_total", &[("cache", "order"), ("outcome", "hit")]);
    assert!(hits > 0.0, "nothing was shown from a copy");
    between.cut();
    a_purchase_is_shown_paid_in_time(&world).await;
    between.hold(true);
    a_purchase_is_shown_paid_in_time(&world).await;
    // A start does not wait for it either.
    let (status, _) = world.api.terminate().await;
    assert!(status.success(), "{status}");
    world.api.start().await;
    a_purchase_is_shown_paid_in_time(&world).await;
    between.hold(false);
    eventually("Redis is back", SOON, async || (world.api.metrics().await.sum("redis_up", &[]) > 0.0).then_some(()))
        .await;
    a_purchase_is_shown_paid_in_time(&world).await;
    world.logs_are_clean();
}
