//! Workers of checks and of refunds killed between the gateway's answer and the commit.
//!
//! The rows of a few orders are locked. A worker that has queried a gateway about one of them gets as far as its
//! transaction and no further, and is killed there. Then the rows are released, and other workers find out what the
//! killed one knew.

use std::time::Duration;

use e2e::process::Process;
use e2e::shop::RefundRequest;
use e2e::{Gateway, Order, Setup, World, eventually};
use futures_util::future::join_all;
use serde_json::json;
use sqlx::AssertSqlSafe;
use testkit::jobs::leases_end_of;

/// Kills of check workers. Each strike kills one at least, so there are orders for as many strikes.
const CHECK_KILLS: usize = 100;
const CHECKS_PER_STRIKE: usize = 4;
/// Kills of refund workers. Each strike is at two refunds.
const REFUND_KILLS: usize = 40;
/// Workers of the kind that is killed.
const WORKERS: usize = 4;
const LONG: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_workers_killed_between_the_gateways_answer_and_the_commit_100_times_settle_each_order_once() {
    let world = World::with(Setup { check_workers: WORKERS, ..Setup::default() }).await;
    world.gateways.faults(&json!({ "callbacks": { "lose": 1.0 } })).await;
    let target = Target { world: &world, service: "check-worker", kind: "check", workers: &world.check_workers };
    let mut orders = Vec::new();
    while orders.len() < CHECK_KILLS * CHECKS_PER_STRIKE {
        let few = world.buy_many(2 * CHECKS_PER_STRIKE).await;
        target.postpone_all().await;
        join_all(few.iter().map(|order| world.pay(order))).await;
        orders.extend(few);
    }
    let (mut kills, mut strikes) = (0, 0);
    for few in orders.chunks(CHECKS_PER_STRIKE) {
        let (orders, ids): (Vec<_>, Vec<_>) = few.iter().map(|order| (order, order.id.as_str())).unzip();
        if kills < CHECK_KILLS {
            kills += target.strike(&orders, &ids).await;
            strikes += 1;
        }
        target.time_passes(&ids).await;
    }
    println!("{kills} kills of check workers in {strikes} strikes at {} orders", orders.len());
    target.recover(&orders.iter().map(|order| order.id.as_str()).collect::<Vec<_>>()).await;
    world.wait_all_paid(LONG).await;
    same_end(&world, "check-worker", kills).await;
    assert_eq!(
        world.number("select count(*) from jobs where kind <> 'look_back'").await,
        Some(0),
        "a paid order needs no check"
    );
    assert_eq!(world.number("select count(*) from callbacks").await, Some(0), "no callback came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refund_workers_killed_between_the_gateways_answer_and_the_commit_40_times_return_each_refund_once() {
    let world = World::with(Setup { refund_workers: WORKERS, ..Setup::default() }).await;
    // Without notifications only the workers learn the result of a refund.
    world.gateways.faults(&json!({ "refund": { "no_notice": true } })).await;
    let target = Target { world: &world, service: "refund-worker", kind: "refund", workers: &world.refund_workers };
    let orders = world.buy_many(2 * REFUND_KILLS).await;
    for few in orders.chunks(16) {
        join_all(few.iter().map(|order| world.pay(order))).await;
    }
    world.wait_all_paid(LONG).await;
    let ids = target.request_refunds(&orders).await;
    let (mut kills, mut strikes) = (0, 0);
    // One at each gateway: Alipay has just answered that the money went back; the query to WeChat Pay is under way.
    for (few, refunds) in orders.chunks(2).zip(ids.chunks(2)) {
        let (orders, ids): (Vec<_>, Vec<_>) = few.iter().zip(refunds).map(|(order, id)| (order, id.as_str())).unzip();
        kills += target.strike(&orders, &ids).await;
        strikes += 1;
        target.time_passes(&ids).await;
    }
    println!("{kills} kills of refund workers in {strikes} strikes at {} refunds", ids.len());
    assert!(kills >= REFUND_KILLS, "only {kills} kills");
    target.recover(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    eventually("every refund has succeeded", LONG, async || {
        let sql = "select count(*) from refund_records where status = 'succeeded'";
        (world.number(sql).await? == ids.len() as i64).then_some(())
    })
    .await;
    same_end(&world, "refund-worker", kills).await;
    assert_eq!(world.number("select count(*) from jobs where kind = 'refund'").await, Some(0));
}

/// The books agree as if no worker had been killed.
async fn same_end(world: &World, service: &str, kills: usize) {
    world.wait_quiet(LONG).await;
    world.books_agree().await;
    assert_eq!(world.number("select count(*) from cases").await, Some(0));
    let starts = world.logs().matches(&format!("{service} is running")).count();
    let (events, deliveries) = (world.downstream.times().len(), world.downstream.all().len());
    println!("{starts} starts of {service}; {events} events in {deliveries} deliveries");
    assert!(starts >= WORKERS + kills, "{starts} starts after {kills} kills: whoever was killed lived again");
    world.logs_are_clean();
}

/// The workers that are killed.
struct Target<'a> {
    world: &'a World,
    /// Their name at the database.
    service: &'static str,
    /// What their jobs are called.
    kind: &'static str,
    workers: &'a [Process],
}

impl Target<'_> {
    /// Lets the workers claim these jobs, about orders that are locked meanwhile, and kills those that have received
    /// the gateway's answer and cannot commit. How many it killed: one at least.
    async fn strike(&self, orders: &[&Order], ids: &[&str]) -> usize {
        let held = self.world.hold(orders).await;
        self.time_passes(ids).await;
        let what = format!("a {} with an answer that it cannot commit", self.service);
        let victims = eventually(&what, LONG, async || {
            let stuck = self.world.stuck(self.service, self.workers).await;
            (!stuck.is_empty()).then_some(stuck)
        })
        .await;
        join_all(victims.iter().map(|victim| self.world.kill_stuck(victim))).await;
        held.release().await;
        victims.iter().for_each(|victim| victim.process.spawn());
        victims.len()
    }

    /// Time passes until these jobs are due, whatever they wait for: their date, the end of the lease of a worker that
    /// was killed, the seconds in which a gateway may not know yet what it has done.
    async fn time_passes(&self, ids: &[&str]) {
        leases_end_of(&self.world.db, ids).await;
        let sql = "update refund_records set sent_at = sent_at - interval '1 minute'
            where $1 = 'refund' and status = 'processing' and id = any($2::bpchar[])";
        self.run(sql, ids).await;
    }

    /// Waits until every worker works again, then lets time pass for whatever the killed ones have left.
    async fn recover(&self, ids: &[&str]) {
        join_all(self.workers.iter().map(Process::ready)).await;
        self.time_passes(ids).await;
    }

    /// No job is due by itself from now on; messages that are on the broker are stale by their fence.
    async fn postpone_all(&self) {
        self.put_off("true").await;
    }

    /// Asks for all the money of each order back; the refunds' ids. At WeChat Pay they are accepted already, at Alipay
    /// not sent yet; and no job is due.
    async fn request_refunds(&self, orders: &[Order]) -> Vec<String> {
        self.workers.iter().for_each(Process::kill);
        let mut ids = Vec::new();
        for few in orders.chunks(16) {
            let requests =
                few.iter().map(async |order| self.world.shop.refund(order, &RefundRequest::of_the_rest()).await);
            ids.extend(join_all(requests).await);
        }
        self.postpone_all().await;
        self.workers.iter().for_each(Process::spawn);
        let of_wechat = orders.iter().zip(&ids).filter(|(order, _)| order.gateway == Gateway::Wechat);
        let of_wechat: Vec<&str> = of_wechat.map(|(_, id)| id.as_str()).collect();
        self.time_passes(&of_wechat).await;
        eventually("WeChat Pay has accepted its refunds", LONG, async || {
            // Each is asked about ten seconds after it was sent: not yet.
            self.put_off("lease_until is null and due_at > now()").await;
            let sql = "select count(*) from refund_records r join jobs j on j.ref_id = r.id and j.kind = 'refund'
                where r.status = 'processing' and j.due_at > now() + interval '1 minute'";
            (self.world.number(sql).await? == of_wechat.len() as i64).then_some(())
        })
        .await;
        ids
    }

    async fn put_off(&self, which: &str) {
        let sql = format!(
            "update jobs set due_at = now() + interval '1 day', lease_until = null, publishes = 0, fence = fence + 1
             where kind = $1 and ({which})"
        );
        let put_off = sqlx::query(AssertSqlSafe(sql)).bind(self.kind).execute(&self.world.db);
        put_off.await.expect("the database answers");
    }

    async fn run(&self, sql: &'static str, ids: &[&str]) {
        sqlx::query(sql).bind(self.kind).bind(ids).execute(&self.world.db).await.expect("the database answers");
    }
}
