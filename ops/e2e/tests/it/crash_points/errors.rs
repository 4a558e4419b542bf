//! The points that only faults lead to: a broker that does not accept callbacks or seems to be wiped, a row that
//! another session locks, messages that are invalid.

use broker::topology;
use e2e::shop::Purchase;
use e2e::{Gateway, SOON, World, eventually};
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ExchangeDeleteOptions};
use lapin::types::FieldTable;

use super::{Circumstance, LONG, buyers, come_to_rest, deaths, process, rounds, world};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_dead_in_the_middle_of_errors_leave_books_that_agree() {
    let world = world().await;
    let mut garbage = 0;
    for round in 0..rounds() {
        let gateway = if round % 2 == 0 { Gateway::Alipay } else { Gateway::Wechat };
        the_broker_does_not_take_callbacks(&world, gateway).await;
        the_broker_seems_wiped(&world).await;
        another_holds_the_row(&world, gateway).await;
        garbage += messages_that_are_none(&world, gateway).await;
        come_to_rest(&world).await;
    }
    world.wait_all_paid(LONG).await;
    eventually("each dead letter is a case", SOON, async || {
        let cases = world.texts("select kind from cases").await;
        (cases == vec!["dead_letter"; garbage]).then_some(())
    })
    .await;
    come_to_rest(&world).await;
}

/// A callback goes the other way: into the database. It stays there, for the way out is the same.
async fn the_broker_does_not_take_callbacks(world: &World, gateway: Gateway) {
    let admin = world.broker().admin().await;
    let channel = admin.create_channel().await.expect("a channel");
    the_topology_is_whole(&admin).await;
    let (queue, exchange) = (topology::CALLBACKS.into(), topology::PAYMENT_IN.into());
    channel.queue_unbind(queue, exchange, topology::CALLBACKS.into(), FieldTable::default()).await.expect("unbound");
    for (point, service) in deaths(Circumstance::Unbound) {
        let order = purchase(world, gateway).await;
        let process = process(world, service);
        process.kill();
        process.arm(point, 1);
        world.pay(&order).await;
        process.dies_at(point, LONG).await;
        process.start().await;
    }
    eventually("callbacks wait in the database", LONG, async || {
        (world.number("select count(*) from jobs where kind = 'callback'").await? > 0).then_some(())
    })
    .await;
    broker::close(&admin).await;
}

/// The relay repairs the topology and dies while it does; its next process begins the repair again.
async fn the_broker_seems_wiped(world: &World) {
    let admin = world.broker().admin().await;
    let channel = admin.create_channel().await.expect("a channel");
    for (point, service) in deaths(Circumstance::Lost) {
        let process = process(world, service);
        process.kill();
        channel.exchange_delete(topology::MARKER.into(), ExchangeDeleteOptions::default()).await.expect("deleted");
        process.arm(point, 1);
        process.dies_at(point, LONG).await;
        // The relay has not yet declared the marker, which shows that the topology is complete.
        process.start().await;
        the_topology_is_whole(&admin).await;
    }
    broker::close(&admin).await;
}

/// Waits until the relay has declared the marker; until then it may still be repairing the topology.
async fn the_topology_is_whole(admin: &broker::Connection) {
    eventually("the road counts as whole", LONG, async || {
        topology::marker_exists(admin).await.expect("the broker answers").then_some(())
    })
    .await;
}

/// A delayed callback becomes a job, and the job is published again.
async fn another_holds_the_row(world: &World, gateway: Gateway) {
    for (point, service) in deaths(Circumstance::Held) {
        let order = purchase(world, gateway).await;
        let process = process(world, service);
        let held = world.hold(&[&order]).await;
        process.kill();
        process.arm(point, 1);
        world.pay(&order).await;
        process.dies_at(point, LONG).await;
        held.release().await;
        process.start().await;
    }
}

/// Each becomes a dead letter, and then a case. A genuine callback beside them is settled. How many there were.
async fn messages_that_are_none(world: &World, gateway: Gateway) -> usize {
    let admin = world.broker().admin().await;
    let channel = admin.create_channel().await.expect("a channel");
    let mut sent = 0;
    for (point, service) in deaths(Circumstance::Garbage) {
        let order = purchase(world, gateway).await;
        let process = process(world, service);
        process.kill();
        for _ in 0..2 {
            let properties = BasicProperties::default().with_message_id(e2e::unique().into()).with_delivery_mode(2);
            let options = BasicPublishOptions::default();
            let queue = topology::CALLBACKS.into();
            channel.basic_publish("".into(), queue, options, b"no callback", properties).await.expect("published");
            sent += 1;
        }
        world.pay(&order).await;
        process.arm(point, 1);
        process.dies_at(point, LONG).await;
        process.start().await;
    }
    broker::close(&admin).await;
    sent
}

async fn purchase(world: &World, gateway: Gateway) -> e2e::Order {
    let scene = if gateway == Gateway::Alipay { "page" } else { "native" };
    buyers::buy(world, &Purchase::new(gateway, scene, "1.00")).await
}
