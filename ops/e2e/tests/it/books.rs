//! The control: the comparison of the books finds what is wrong.

use std::panic::AssertUnwindSafe;

use e2e::{Gateway, World};
use futures_util::FutureExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_show_a_payment_that_nobody_was_told_of() {
    let world = World::start().await;
    let told = world.buy(Gateway::Alipay, "page", "1.00").await;
    world.pay(&told).await;
    world.wait_paid(&told).await;
    world.events_of(&told).await;
    world.books_agree().await;
    let silent = world.buy(Gateway::Wechat, "native", "1.00").await;
    world.gateways.pay_silently(&silent).await;
    let compared = AssertUnwindSafe(world.books_agree()).catch_unwind().await;
    let found = compared.expect_err("the books agree on what is not so");
    let found = found.downcast_ref::<String>().expect("a message");
    assert!(found.contains(&silent.order_no) && found.contains(&told.order_no), "{found}");
}
