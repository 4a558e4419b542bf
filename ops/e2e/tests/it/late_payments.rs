//! Money that arrives when none is owed: for a closed order, and for an order that was paid already. Each account's
//! policy decides what happens to it; the books show that nothing forbidden happened.

use std::fs;

use e2e::process::Process;
use e2e::{Gateway, Order, SOON, Setup, World, eventually};
use futures_util::future::join_all;

const WAYS: [(Gateway, &str); 2] = [(Gateway::Alipay, "page"), (Gateway::Wechat, "native")];

/// At each gateway an order that was closed and is paid all the same, and one that is paid twice. Each fact is reported
/// as often as gateways do.
struct Strays {
    late: Vec<Order>,
    twice: Vec<Order>,
}

/// A world where every account has this policy.
async fn under(policy: &str) -> World {
    let setup = Setup { check_workers: 1, refund_workers: 1, speed: 20_000.0, ..Setup::default() };
    let world = World::with(setup).await;
    let accounts = fs::read_to_string(world.gateways.file()).expect("the accounts");
    let line = format!("late_payment = \"{policy}\"\nscenes = [");
    let changed = accounts.replace("scenes = [", &line);
    assert_eq!(changed.matches(&line).count(), 4, "two accounts at each gateway: {changed}");
    fs::write(world.gateways.file(), changed).expect("the accounts can be written");
    join_all(world.processes().map(async |process: &Process| {
        process.terminate().await;
        process.start().await;
    }))
    .await;
    world
}

impl Strays {
    async fn pay(world: &World) -> Strays {
        let mut strays = Strays { late: Vec::new(), twice: Vec::new() };
        for (gateway, scene) in WAYS {
            let order = world.buy(gateway, scene, "3.00").await;
            world.gateways.open(&order).await;
            let answer = world.shop.close(&order).await.expect("payment-api answers");
            assert!([200, 202].contains(&answer.status), "{answer:?}");
            world.wait_status(&order, "closed").await;
            world.gateways.pay_again(&order).await;
            strays.late.push(order);
            let order = world.buy(gateway, scene, "5.00").await;
            world.pay(&order).await;
            world.wait_paid(&order).await;
            world.gateways.pay_again(&order).await;
            strays.twice.push(order);
        }
        eventually("each stray payment has its case", SOON, async || {
            let sql = "select count(*) from cases where kind in ('late_payment', 'double_payment')";
            (world.number(sql).await? == 4).then_some(())
        })
        .await;
        strays
    }

    /// The final states of the orders.
    async fn end(&self, world: &World, (late, twice): (&str, &str)) {
        world.wait_all_answered().await;
        world.wait_quiet(SOON * 3).await;
        for (orders, status) in [(&self.late, late), (&self.twice, twice)] {
            for order in orders {
                assert_eq!(world.status(order).await, status, "{order:?}");
            }
        }
        world.books_agree().await;
        world.logs_are_clean();
    }
}

/// How many orders the business has delivered for.
fn fulfilments(world: &World) -> usize {
    world.downstream.times().keys().filter(|id| id.starts_with("order.paid:")).count()
}

/// The number of cases of each kind and state.
async fn cases(world: &World) -> Vec<String> {
    world.texts("select kind || ' ' || status || ' ' || count(*) from cases group by kind, status order by 1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_money_waits_for_a_person_and_changes_no_order() {
    let world = under("hold").await;
    let strays = Strays::pay(&world).await;
    strays.end(&world, ("closed", "paid")).await;
    assert_eq!(cases(&world).await, ["double_payment open 2", "late_payment open 2"]);
    assert_eq!(world.number("select count(*) from refund_records").await, Some(0));
    assert_eq!(fulfilments(&world), 2, "nothing is delivered for money that is held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returned_money_goes_back_once_and_changes_no_order() {
    let world = under("refund").await;
    let strays = Strays::pay(&world).await;
    eventually("all of it has gone back", SOON * 3, async || {
        (world.number("select count(*) from refund_records where status = 'succeeded'").await? == 4).then_some(())
    })
    .await;
    strays.end(&world, ("closed", "paid")).await;
    let back: i64 = world.gateways.ledger().await.iter().filter_map(|trade| trade["refunded_fen"].as_i64()).sum();
    assert_eq!(back, 2 * (300 + 500), "what came beside, and nothing of what was owed");
    assert_eq!(fulfilments(&world), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honoured_money_pays_the_closed_order_once_and_a_second_payment_is_held() {
    let world = under("fulfil").await;
    let strays = Strays::pay(&world).await;
    // The gateway is asked before anything is delivered.
    eventually("each late payment is taken for its order", SOON * 3, async || {
        let taken = "select count(*) from cases where kind = 'late_payment' and status = 'resolved'";
        (world.number(taken).await? == 2).then_some(())
    })
    .await;
    strays.end(&world, ("paid", "paid")).await;
    assert_eq!(cases(&world).await, ["double_payment open 2", "late_payment resolved 2"]);
    assert_eq!(fulfilments(&world), 4);
    assert_eq!(world.number("select count(*) from refund_records").await, Some(0));
}
