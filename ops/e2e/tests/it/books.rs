//! The control: the comparison of the books finds what is wrong.

use std::panic::AssertUnwindSafe;

use e2e::shop::RefundRequest;
use e2e::{Gateway, SOON, Setup, World};
use futures_util::FutureExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_show_a_payment_that_was_never_reported() {
    let world = World::start().await;
    let reported = world.buy(Gateway::Alipay, "page", "1.00").await;
    world.pay(&reported).await;
    world.wait_paid(&reported).await;
    world.events_of(&reported).await;
    world.books_agree().await;
    let silent = world.buy(Gateway::Wechat, "native", "1.00").await;
    world.gateways.pay_silently(&silent).await;
    let compared = AssertUnwindSafe(world.books_agree()).catch_unwind().await;
    let found = compared.expect_err("the books agree on what is not so");
    let found = found.downcast_ref::<String>().expect("a message");
    assert!(found.contains(&silent.order_no) && !found.contains(&reported.order_no), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_show_whatever_is_wrong_about_a_refund() {
    let world = World::with(Setup { refund_workers: 1, ..Setup::default() }).await;
    for (gateway, scene, request) in
        [(Gateway::Alipay, "page", RefundRequest::of_the_rest()), (Gateway::Wechat, "native", RefundRequest::of(30))]
    {
        let order = world.buy(gateway, scene, "1.00").await;
        world.pay(&order).await;
        world.wait_paid(&order).await;
        world.shop.refund(&order, &request).await;
    }
    world.wait_quiet(SOON).await;
    world.books_agree().await;
    // It refuses a move that no refund makes.
    run(&world, "alter table refund_records disable trigger refund_records_moves").await;
    for (wrong, right, complaint) in TAMPERED {
        run(&world, wrong).await;
        let compared = AssertUnwindSafe(world.books_agree()).catch_unwind().await;
        let found = compared.expect_err(wrong);
        let found = found.downcast_ref::<String>().expect("a message");
        assert!(found.contains(complaint), "{wrong}: {found}");
        run(&world, right).await;
        world.books_agree().await;
    }
}

/// Something that is not so, how it is undone, and what the comparison says of it.
const TAMPERED: [(&str, &str, &str); 12] = [
    (
        "update callbacks set notice_id = notice_id || '.' where payment_method = 'alipay'",
        "update callbacks set notice_id = rtrim(notice_id, '.')",
        "Acknowledged: callback",
    ),
    (
        "update payment_transactions set gateway_no = gateway_no || '.' where action_type = 'payment'",
        "update payment_transactions set gateway_no = rtrim(gateway_no, '.') where action_type = 'payment'",
        "PaidOnce: paid at the gateway",
    ),
    (
        "update events set data = data || '{\"amount\": \"9.99\"}' where type = 'order.paid'",
        "update events set data = data || '{\"amount\": \"1.00\"}' where type = 'order.paid'",
        "Delivered: order.paid",
    ),
    (
        "update refund_records set sent_at = null",
        "update refund_records set sent_at = updated_at",
        "Moves: the gateway knows refund",
    ),
    (
        "update refund_records set refund_no = refund_no || 'x'",
        "update refund_records set refund_no = rtrim(refund_no, 'x')",
        "Created: key",
    ),
    (
        "update refund_records set refund_amount = refund_amount - 0.01",
        "update refund_records set refund_amount = refund_amount + 0.01",
        "refunded at the gateways",
    ),
    (
        "update refund_records set status = 'abnormal'",
        "update refund_records set status = 'succeeded'",
        "refunded at the gateways",
    ),
    (
        "update payment_transactions set amount = amount - 0.01 where action_type = 'refund'",
        "update payment_transactions set amount = amount + 0.01 where action_type = 'refund'",
        "refunds and their movements differ",
    ),
    (
        "update payment_orders set status = 'paid' where status = 'partially_refunded'",
        "update payment_orders set status = 'partially_refunded' where status = 'paid'",
        "orders do not stand as their refunds make them",
    ),
    (
        "update payment_orders set version = version + 1",
        "update payment_orders set version = version - 1",
        "moved more often",
    ),
    (
        "update events set event_id = event_id || '.' where type = 'refund.succeeded'",
        "update events set event_id = rtrim(event_id, '.')",
        "refund.succeeded",
    ),
    (
        "update events set event_id = event_id || '.' where type = 'order.refunded'",
        "update events set event_id = rtrim(event_id, '.')",
        "order.refunded",
    ),
];

async fn run(world: &World, sql: &'static str) {
    sqlx::query(sql).execute(&world.db).await.expect("the database answers");
}
