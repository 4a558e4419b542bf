//! No callback ever arrives: queries find the payments.

use std::time::Duration;

use domain::message::job::JobKind;
use e2e::{Gateway, Order, SOON, Setup, World, eventually};
use futures_util::future::join_all;
use serde_json::json;
use testkit::jobs::come_due;

/// Orders that are paid.
const PAID: usize = 60;
/// Orders that are not: half of them never opened, so that Alipay knows no such trade.
const UNPAID: usize = 8;
const LONG: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_paid_at_a_gateway_that_loses_each_callback_becomes_paid_by_polling() {
    let world = World::with(Setup { check_workers: 2, ..Setup::default() }).await;
    world.gateways.faults(&json!({ "callbacks": { "lose": 1.0 } })).await;
    let orders = world.buy_many(PAID + UNPAID).await;
    let (paid, unpaid) = orders.split_at(PAID);
    for few in paid.chunks(16) {
        join_all(few.iter().map(|order| world.pay(order))).await;
    }
    join_all(unpaid[..UNPAID / 2].iter().map(|order| world.gateways.open(order))).await;
    eventually("a callback of each payment is lost", SOON, async || {
        (world.gateways.injected().await.get("lose") >= Some(&(PAID as u64))).then_some(())
    })
    .await;

    first_poll(&world).await;
    eventually("every order that was paid is found paid", LONG, async || {
        (world.number("select count(*) from payment_orders where status = 'paid'").await? == PAID as i64).then_some(())
    })
    .await;
    eventually("every other order was asked about", LONG, async || {
        (world.number(QUERIED_AGAIN_LATER).await? == UNPAID as i64).then_some(())
    })
    .await;
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    for order in unpaid {
        assert_eq!(world.status(order).await, "pending");
    }
    assert_eq!(world.number("select count(*) from callbacks").await, Some(0), "no callback came");
    assert_eq!(
        world.number("select count(*) from jobs where kind <> 'look_back'").await,
        Some(UNPAID as i64),
        "a paid order needs no check"
    );
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    still_found_when_paid_later(&world, &unpaid[0], &unpaid[1]).await;
    world.logs_are_clean();
}

/// Checks that were answered and have a later date.
const QUERIED_AGAIN_LATER: &str = "
    select count(*) from jobs j join payment_orders o on o.id = j.ref_id
    where j.kind = 'check' and o.status = 'pending' and o.checked_at is not null and j.due_at > now()";

/// Time passes until the first poll of each order, half a minute after it was placed.
async fn first_poll(world: &World) {
    come_due(&world.db, Some(JobKind::Check)).await;
}

/// The next poll finds what the one before did not.
async fn still_found_when_paid_later(world: &World, alipay: &Order, wechat: &Order) {
    assert_eq!((alipay.gateway, wechat.gateway), (Gateway::Alipay, Gateway::Wechat));
    for order in [alipay, wechat] {
        world.pay(order).await;
    }
    first_poll(world).await;
    for order in [alipay, wechat] {
        world.wait_paid(order).await;
    }
    world.wait_quiet(SOON).await;
    world.books_agree().await;
}
