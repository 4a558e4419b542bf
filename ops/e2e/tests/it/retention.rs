//! The relay, with its own role, deletes expired rows, and reports how large the tables are.

use e2e::{Gateway, SOON, World, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_goes_and_what_it_was_about_stays() {
    let world = World::start().await;
    let old = world.buy(Gateway::Alipay, "page", "12.34").await;
    world.pay(&old).await;
    world.wait_paid(&old).await;
    world.wait_quiet(SOON).await;
    for aged in [
        "with aged as (update callbacks set last_seen_at = now() - interval '401 days' returning 1) select count(*) from aged",
        "with aged as (update idempotency_keys set expires_at = now() - interval '61 minutes' returning 1) select count(*) from aged",
    ] {
        assert_eq!(world.number(aged).await, Some(1));
    }
    let new = world.buy(Gateway::Wechat, "native", "8.88").await;
    world.pay(&new).await;
    world.wait_paid(&new).await;
    let relay = &world.relays[0];
    relay.terminate().await;
    relay.start().await;
    for gone in [
        "select count(*) from callbacks where last_seen_at < now() - interval '400 days'",
        "select count(*) from idempotency_keys where expires_at < now()",
    ] {
        eventually(gone, SOON, async || world.number(gone).await.filter(|count| *count == 0)).await;
    }
    assert_eq!(world.number("select count(*) from callbacks").await, Some(1));
    assert_eq!(world.number("select count(*) from idempotency_keys").await, Some(1));
    assert_eq!(world.number("select count(*) from events").await, Some(2));
    assert_eq!(world.shop.order(&old).await["status"], "paid");

    let metrics = eventually("what was removed is counted, and the tables are measured", SOON, async || {
        let metrics = relay.metrics().await;
        let removed = metrics.by("rows_removed_total", "table").get("callbacks").copied();
        (metrics.sum("table_bytes", &[("table", "payment_orders")]) > 0.0 && removed == Some(1.0)).then_some(metrics)
    })
    .await;
    assert!(metrics.by("table_bytes", "table").len() > 10);
    assert_eq!(metrics.by("table_oldest_row_seconds", "table").len(), 6);
    world.logs_are_clean();
}
