//! The same fact, reported again and again; the same request, sent again and again.

use e2e::gateways::{deliver, is_success};
use e2e::http::new_client;
use e2e::shop::{self, Purchase};
use e2e::{Gateway, Overrides, SOON, World, eventually};
use futures_util::future::join_all;
use serde_json::json;

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
    world.logs_are_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_killed_between_order_and_answer_leaves_the_order_to_the_repeat() {
    let world = World::start().await;
    world.gateways.faults(&json!({ "api": { "slow_ms": 20_000 } })).await;
    let purchase = Purchase::new(Gateway::Wechat, "native", "12.34");
    let killed = async {
        let made = eventually("the order is committed", SOON, async || {
            world.texts("select id::text from payment_orders").await.pop()
        });
        let id = made.await;
        world.api.kill();
        id
    };
    let (answer, id) = tokio::join!(world.shop.request_order(&purchase), killed);
    answer.expect_err("the ingress died with the order made and the gateway asked");
    world.gateways.faults(&json!({})).await;
    world.api.start().await;
    // The dead process's hold on the key expires; until then a repeat gets the answer to try again.
    let answer = eventually("the repeat is answered", SOON, async || {
        let answer = world.shop.request_order(&purchase).await.expect("payment-api answers");
        if answer.status == 409 {
            assert_eq!((answer.code().as_str(), answer.retry_after), ("request_in_flight", Some(1)));
            return None;
        }
        Some(answer)
    })
    .await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let order = shop::order(&purchase, &answer);
    assert_eq!(order.id, id);
    let repeats = join_all((0..64).map(|_| world.shop.request_order(&purchase))).await;
    assert!(repeats.into_iter().all(|again| again.is_ok_and(|again| again.text == answer.text)));
    world.pay(&order).await;
    world.wait_paid(&order).await;
    assert_eq!(world.number("select count(*) from payment_orders").await, Some(1));
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    world.logs_are_clean();
}
