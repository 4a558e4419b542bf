//! The same fact, told again and again.

use e2e::gateways::{deliver, is_success};
use e2e::shop::new_client;
use e2e::{Gateway, Overrides, SOON, World, eventually};
use futures_util::future::join_all;

const COPIES: usize = 200;
const CONNECTIONS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_callback_200_times_at_once_pays_once_and_is_answered_with_success_each_time() {
    let world = World::with(e2e::Setup { workers: 2, ..e2e::Setup::default() }).await;
    for (gateway, scene) in [(Gateway::Alipay, "page"), (Gateway::Wechat, "native")] {
        let order = world.buy(gateway, scene, "88.88").await;
        world.gateways.pay_silently(&order).await;
        let trade = world.gateways.paid_trade(&order).await;
        let callback = world.gateways.callback(&trade, &Overrides::default());
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| new_client()).collect();
        let copies = (0..COPIES).map(|copy| deliver(&clients[copy % CONNECTIONS], &callback));
        for answer in join_all(copies).await {
            let answer = answer.expect("payment-api answers");
            assert!(is_success(gateway, &answer), "{answer:?}");
        }
        world.wait_paid(&order).await;
        // A copy whose confirm came too late went to the database as well, and is seen once more.
        eventually("every copy is counted on the one piece of evidence", SOON, async || {
            let seen: Vec<(String, i32)> =
                sqlx::query_as("select verdict, times_seen from callbacks where order_no = $1")
                    .bind(&order.order_no)
                    .fetch_all(&world.db)
                    .await
                    .expect("the database answers");
            assert!(seen.len() <= 1, "{seen:?}");
            seen.first().filter(|(verdict, times)| verdict == "settled" && *times >= 200).map(drop)
        })
        .await;
        assert_eq!(world.events_of(&order).await.len(), 1);
        assert_eq!(world.shop.order(&order).await["version"], 2);
    }
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    assert_eq!(world.downstream.all().len(), 2, "nothing was told twice");
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    let received = world.api.metrics().await.by("callbacks_received_total", "outcome");
    assert_eq!(received, [("accepted".to_owned(), 2.0 * COPIES as f64)].into());
    world.no_panics();
}
