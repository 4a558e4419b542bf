//! Dead at every point of `shared/runtime/src/crash.rs`, and in every process that comes there; then everything comes
//! to rest, and the witnesses agree. How to run the long form is in `ops/e2e/README.md`.

mod buyers;
mod errors;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use buyers::BUYERS;
use domain::message::job::JobKind;
use e2e::process::Process;
use e2e::{Order, SOON, Setup, World, eventually};
use futures_util::future::join_all;
use runtime::crash::Point;
use runtime::service::Service;
use testkit::jobs::{leases_end, leases_end_of};

/// How long anything may take while processes die all the time.
const LONG: Duration = Duration::from_secs(120);
/// In later rounds a process dies when it comes to a point for the second, third … time.
const PASSINGS: usize = 3;

/// What leads to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circumstance {
    /// Buyers: purchases, payments with and without a callback, closed orders, refunds.
    Usual,
    /// The broker does not accept callbacks.
    Unbound,
    /// Another session locks the row of an order.
    Held,
    /// A message that is no callback.
    Garbage,
    /// The broker seems to be wiped.
    Lost,
}

/// The services that reach a point, and by which route. A new point must be added here, or nothing compiles.
fn comers(point: Point) -> &'static [(Circumstance, Service)] {
    use Circumstance::{Garbage, Held, Lost, Unbound, Usual};
    use Service::{CallbackWorker, CheckWorker, PaymentApi, RefundWorker, Relay};
    match point {
        Point::IntakeRead
        | Point::IntakeVerified
        | Point::IntakeConfirmed
        | Point::OrderDrafted
        | Point::OrderPlaced
        | Point::OrderOffered
        | Point::OrderAnswered
        | Point::CloseRequested
        | Point::RefundRequested
        | Point::RefundAccepted => &[(Usual, PaymentApi)],
        Point::IntakeUnpublished | Point::IntakeStored => &[(Unbound, PaymentApi)],
        Point::PublishSent => &[(Usual, PaymentApi), (Usual, Relay)],
        Point::BatchTaken | Point::BatchSettled | Point::BatchAcked => {
            &[(Usual, CallbackWorker), (Usual, CheckWorker), (Usual, RefundWorker), (Garbage, Relay)]
        }
        Point::BatchRejected => &[(Garbage, CallbackWorker)],
        Point::CallbackExamined | Point::CallbackMoved | Point::CallbackRecorded | Point::CallbackCommitted => {
            &[(Usual, CallbackWorker)]
        }
        Point::CallbackStored => &[(Held, CallbackWorker)],
        Point::JobTaken => &[(Usual, CheckWorker), (Usual, RefundWorker)],
        Point::CheckQueried
        | Point::CheckClosed
        | Point::CheckSettled
        | Point::CheckRecorded
        | Point::CheckCommitted => &[(Usual, CheckWorker)],
        Point::RefundMarked
        | Point::RefundAnswered
        | Point::RefundQueried
        | Point::RefundSettled
        | Point::RefundRecorded
        | Point::RefundCommitted => &[(Usual, RefundWorker)],
        Point::RelayLeased
        | Point::RelayCarried
        | Point::OutboxTaken
        | Point::OutboxConfirmed
        | Point::OutboxMarked => &[(Usual, Relay)],
        Point::LetterOpened | Point::LetterFiled => &[(Garbage, Relay)],
        Point::TopologyDeclared | Point::TopologyRebuilt => &[(Lost, Relay)],
    }
}

/// The deaths of a route, in the order in which their points are declared.
fn deaths(circumstance: Circumstance) -> Vec<(Point, Service)> {
    let comers = Point::ALL.iter().flat_map(|point| comers(*point).iter().map(|comer| (*point, *comer)));
    comers.filter(|(_, (on, _))| *on == circumstance).map(|(point, (_, service))| (point, service)).collect()
}

/// How often each process dies at each of its points: `CRASH_ROUNDS`, or once.
fn rounds() -> usize {
    let rounds = std::env::var("CRASH_ROUNDS").unwrap_or_else(|_| "1".to_owned());
    rounds.parse().ok().filter(|rounds| *rounds > 0).unwrap_or_else(|| panic!("CRASH_ROUNDS is no number: {rounds:?}"))
}

async fn world() -> World {
    World::with(Setup { check_workers: 1, refund_workers: 1, ..Setup::default() }).await
}

/// The process of a service in a world that has one of each.
fn process(world: &World, service: Service) -> &Process {
    let found = world.processes().find(|process| process.name.starts_with(service.as_str()));
    found.unwrap_or_else(|| panic!("no {service} in this world"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_dead_at_every_point_while_buyers_buy_leave_books_that_agree() {
    let (world, over, died) = (world().await, AtomicBool::new(false), AtomicUsize::new(0));
    let usual = deaths(Circumstance::Usual);
    let kill = async {
        let mortal = Service::ALL.iter().filter(|service| usual.iter().any(|(_, dies)| dies == *service));
        join_all(mortal.map(|service| die(&world, *service, &usual, &died))).await;
        over.store(true, Ordering::Relaxed);
    };
    let buy = join_all(BUYERS.iter().map(|buyer| buyer.until(&world, &over)));
    let ((), bought) = tokio::join!(kill, buy);
    let (died, bought) = (died.into_inner(), bought.concat());
    assert_eq!(died, usual.len() * rounds());
    come_to_rest(&world).await;
    for (order, end) in &bought {
        assert_eq!(world.status(order).await, *end, "{order:?}");
        // Copies that a dead process did not renew are shown for a second.
        eventually("the buyer sees it", SOON, async || (world.shop.order(order).await["status"] == *end).then_some(()))
            .await;
    }
    assert_eq!(world.number("select count(*) from cases").await, Some(0), "nobody has to look at anything");
    println!("{died} deaths, {} orders, {} deliveries", bought.len(), world.downstream.all().len());
}

#[test]
fn the_readme_names_every_point_and_no_other() {
    let readme = include_str!("../../../README.md");
    let rows = readme.lines().skip_while(|line| *line != "| who | point |").skip(2);
    let points = rows.filter_map(|row| row.split('|').nth(2));
    let mut named: Vec<&str> = points.flat_map(|points| points.split('`').skip(1).step_by(2)).collect();
    let mut all: Vec<&str> = Point::ALL.iter().map(|point| point.as_str()).collect();
    named.sort_unstable();
    named.dedup();
    all.sort_unstable();
    assert_eq!(named, all);
}

/// One process, dead at each of its points after the other: each life begins with what the last one has left.
async fn die(world: &World, service: Service, deaths: &[(Point, Service)], died: &AtomicUsize) {
    let process = process(world, service);
    process.kill();
    for round in 0..rounds() {
        for (point, _) in deaths.iter().filter(|(_, who)| *who == service) {
            process.arm(*point, 1 + round % PASSINGS);
            process.dies_at(*point, LONG).await;
            died.fetch_add(1, Ordering::Relaxed);
            world.books_hold().await;
        }
    }
    process.start().await;
}

/// All processes run, and the leases of the dead ones have ended: then nothing may be left to do, and all witnesses
/// agree.
async fn come_to_rest(world: &World) {
    for kind in [JobKind::Callback, JobKind::Refund] {
        leases_end(&world.db, Some(kind)).await;
    }
    world.wait_quiet(LONG).await;
    world.books_agree().await;
    world.logs_are_clean();
}

/// Time passes for an order, its check and its refunds: whatever waits is due, whatever a dead process had leased is
/// free, and the seconds are over in which a gateway may not know yet what it has done.
async fn time_passes(world: &World, order: &Order) {
    let sent = "update refund_records set sent_at = sent_at - interval '1 minute'
        where order_id = $1 and status = 'processing'";
    sqlx::query(sent).bind(&order.id).execute(&world.db).await.expect("the database answers");
    let refunds = sqlx::query_scalar("select id::text from refund_records where order_id = $1").bind(&order.id);
    let refunds: Vec<String> = refunds.fetch_all(&world.db).await.expect("the database answers");
    let ids: Vec<&str> = refunds.iter().map(String::as_str).chain([order.id.as_str()]).collect();
    leases_end_of(&world.db, &ids).await;
}
