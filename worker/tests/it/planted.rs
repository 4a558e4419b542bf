//! Planted panics, errors and slow statements, each on one piece of work among genuine ones. That work ends as it must,
//! and no other work is affected.

use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::callback::Callback;
use domain::message::job::{JobKind, JobMessage};
use domain::{OrderStatus, Scene};
use gateway_sim::notify::Overrides;
use runtime::crash::{Fault, Point, Sown, plant};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use store::MIGRATOR;
use store::tables::orders::{self, NewOrder, Order};
use testkit::jobs::publish;
use worker::callbacks::CallbackWorker;
use worker::consumer::Ack;
use worker::jobs::run_batch;

use crate::bench::Bench;
use crate::support::World;

/// Orders at both gateways, made together.
async fn many_orders(world: &World, count: usize) -> Vec<Order> {
    let new: Vec<NewOrder> = (0..count)
        .map(|n| match n % 2 {
            0 => NewOrder { payment_method: Alipay, scene: Scene::Page, ..testkit::new_order() },
            _ => testkit::new_order(),
        })
        .collect();
    let mut made = Vec::with_capacity(count);
    for some in new.chunks(500) {
        orders::create(&world.db, some).await.unwrap();
        for new in some {
            made.push(world.order(&new.id).await);
        }
    }
    made
}

/// The callbacks that lie in `jobs`, as the relay publishes them: whose last error is like this.
async fn deferred(world: &World, why: &'static str) -> Vec<Callback> {
    let sql = "select id, payload from jobs where kind = 'callback' and coalesce(last_error, '') like $1 order by id";
    let rows: Vec<(i64, serde_json::Value)> = sqlx::query_as(sql).bind(why).fetch_all(&world.db).await.unwrap();
    let read = |(id, payload)| Callback { job_id: Some(id), ..serde_json::from_value(payload).unwrap() };
    rows.into_iter().map(read).collect()
}

async fn number(db: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(db).await.unwrap()
}

fn planted(order: &Order, (point, fault): (Point, Fault)) -> Sown {
    plant(point, order.order_no.as_str(), fault)
}

const PAID: &str = "select count(*) from payment_orders where status = 'paid'";

/// What the planted faults of a callback are, and whether its own callback is settled all the same.
const CALLBACK_FAULTS: [((Point, Fault), bool); 7] = [
    ((Point::CallbackExamined, Fault::Panic), false),
    ((Point::CallbackExamined, Fault::Error), false),
    ((Point::CallbackMoved, Fault::Panic), false),
    ((Point::CallbackMoved, Fault::Error), false),
    ((Point::CallbackRecorded, Fault::Panic), false),
    ((Point::CallbackRecorded, Fault::Error), false),
    // It is committed then: only the report of it is lost.
    ((Point::CallbackCommitted, Fault::Panic), true),
];

#[sqlx::test(migrator = "MIGRATOR")]
async fn faults_at_each_stage_of_settling_concern_their_callback_among_2000(db: PgPool) {
    let world = World::new(db);
    let orders = many_orders(&world, 2000 + CALLBACK_FAULTS.len()).await;
    // One in each batch of 280, at another place in each.
    let bad = |n: usize| (n % 280 == 37 + n / 280 * 31).then(|| CALLBACK_FAULTS.get(n / 280)).flatten();
    let sown: Vec<Sown> =
        orders.iter().enumerate().filter_map(|(n, order)| bad(n).map(|(fault, _)| planted(order, *fault))).collect();
    assert_eq!(sown.len(), CALLBACK_FAULTS.len());
    let callbacks: Vec<Callback> = orders.iter().map(|order| world.paid(order)).collect();
    for (start, batch) in callbacks.chunks(280).enumerate() {
        let acks = world.settle(batch.to_vec()).await;
        for (n, ack) in acks.iter().enumerate() {
            // Unreadable callbacks are refused permanently; all others are settled, or stored for another try.
            let dead = bad(start * 280 + n).is_some_and(|(fault, _)| *fault == CALLBACK_FAULTS[1].0);
            assert_eq!(*ack, if dead { Ack::Dead } else { Ack::Done }, "{}", start * 280 + n);
        }
    }
    assert!(sown.iter().all(|sown| sown.met() > 0), "each fault was met");
    assert_eq!(number(&world.db, PAID).await, 2001);
    for (n, order) in orders.iter().enumerate() {
        let settled = bad(n).is_none_or(|(_, settled)| *settled);
        assert_eq!(world.status(order).await == OrderStatus::Paid, settled, "{n} {:?}", bad(n));
    }
    let panicked = deferred(&world, "settling panicked: planted at callback.%").await;
    assert_eq!((panicked.len(), world.count("callback jobs").await), (3, 5));

    // The faults pass: what was stored is settled.
    drop(sown);
    let jobs = deferred(&world, "%").await;
    assert_eq!(world.settle(jobs).await, [Ack::Done; 5]);
    assert_eq!((number(&world.db, PAID).await, world.count("callback jobs").await), (2006, 0));
}

/// Authentic notices with times that no payment can have, such as one that is past year 9999 in UTC.
#[sqlx::test(migrator = "MIGRATOR")]
async fn odd_times_of_payments_do_not_touch_their_neighbours(db: PgPool) {
    let world = World::new(db);
    let orders = many_orders(&world, 60).await;
    let odd = |method| match method {
        Alipay => ["0000-01-01 00:00:00", "9999-12-31 23:59:59", "2026-02-30 00:00:00", "-999-01-01 00:00:00", "\u{0}"],
        Wechat => [
            "9999-12-31T23:59:59-08:00",
            "0000-01-01T00:00:00+08:00",
            "9999-12-31T23:59:60-23:59",
            "-9999-01-01T00:00:00+23:59",
            "2026-13-01T00:00:00+08:00",
        ],
    };
    let callbacks = orders.iter().enumerate().map(|(n, order)| {
        // Every sixth, so at both gateways alike.
        let text = (n % 6 == 0 || n % 6 == 3).then(|| odd(order.payment_method)[n / 12]);
        let field = if order.payment_method == Alipay { "gmt_payment" } else { "/success_time" };
        let fields = text.map(|text| (field.to_owned(), Some(text.into()))).into_iter().collect();
        world.notice_of(&world.paid_trade(order), &Overrides { fields, ..Overrides::default() })
    });
    let callbacks: Vec<Callback> = callbacks.collect();
    let acks = world.settle(callbacks).await;
    for (n, order) in orders.iter().enumerate().filter(|(n, _)| n % 3 != 0) {
        assert_eq!((acks[n], world.status(order).await), (Ack::Done, OrderStatus::Paid), "{n}");
    }
}

/// A defect of a release: each callback panics. Nothing is lost, nothing comes again at once, and none is dead for it.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_panic_at_each_callback_stores_them_all_and_only_the_sixth_gives_one_up(db: PgPool) {
    let world = World::new(db);
    let orders = many_orders(&world, 40).await;
    for point in [Point::CallbackExamined, Point::CallbackMoved] {
        let sown: Vec<Sown> = orders.iter().map(|order| planted(order, (point, Fault::Panic))).collect();
        let fresh: Vec<Callback> = orders.iter().map(|order| world.paid(order)).collect();
        assert_eq!(world.settle(fresh).await, [Ack::Done; 40]);
        for (attempt, seconds) in [(1, 10), (2, 60), (3, 600), (4, 3600), (5, 6 * 3600)] {
            let rows: Vec<(i32, f64)> = sqlx::query_as(
                "select attempts, extract(epoch from due_at - now())::float8 from jobs where kind = 'callback'",
            )
            .fetch_all(&world.db)
            .await
            .unwrap();
            assert_eq!(rows.len(), 40, "{point}");
            for (attempts, due) in rows {
                assert_eq!(attempts, attempt);
                assert!(due <= f64::from(seconds) && due > f64::from(seconds) - 60.0, "{attempt}: due in {due}");
            }
            let last = attempt == 5;
            let acks = world.settle(deferred(&world, "settling panicked: %").await).await;
            assert_eq!(acks, [if last { Ack::Dead } else { Ack::Done }; 40], "{attempt}");
        }
        // The case of its dead letter has the job until it is filed, and a redelivery of the letter changes nothing.
        let again = deferred(&world, "settling panicked: %").await;
        assert_eq!(world.settle(again).await, [Ack::Dead; 40]);
        assert_eq!(number(&world.db, PAID).await, 0);
        drop(sown);
        sqlx::query("delete from jobs where kind = 'callback'").execute(&world.db).await.unwrap();
    }
}

/// A number that is forged, or of a database from before a restore, ends nothing and counts nothing.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_panicking_callback_that_names_a_job_of_others_is_stored_by_itself(db: PgPool) {
    let world = World::new(db);
    let orders = many_orders(&world, 2).await;
    let _sown = planted(&orders[0], (Point::CallbackExamined, Fault::Panic));
    let other = {
        let _sown = planted(&orders[1], (Point::CallbackExamined, Fault::Panic));
        assert_eq!(world.settle(vec![world.paid(&orders[1])]).await, [Ack::Done]);
        deferred(&world, "%").await[0].job_id
    };
    for job_id in [other, Some(987_654)] {
        assert_eq!(world.settle(vec![Callback { job_id, ..world.paid(&orders[0]) }]).await, [Ack::Done]);
    }
    let attempts: Vec<i32> = sqlx::query_scalar("select attempts from jobs where kind = 'callback' order by id")
        .fetch_all(&world.db)
        .await
        .unwrap();
    assert_eq!(attempts, [1, 1, 1]);
}

/// A slow statement holds its own callback up, each time for longer, and lets the others pass.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_slow_statement_of_one_callback_holds_up_that_one_alone(db: PgPool) {
    let world = World::new(db.clone());
    let slowly = (*db.connect_options()).clone().options([("statement_timeout", "1500ms")]);
    let pool = PgPoolOptions::new().max_connections(4).connect_with(slowly).await.unwrap();
    let world = World { worker: CallbackWorker { db: pool, ..world.worker }, ..world };
    let orders = many_orders(&world, 60).await;
    let slow = planted(&orders[23], (Point::CallbackMoved, Fault::Slow));
    let callbacks = orders.iter().map(|order| world.paid(order)).collect();
    assert_eq!(world.settle(callbacks).await, [Ack::Done; 60]);
    assert_eq!(number(&db, PAID).await, 59);
    let young = "update jobs set created_at = now() - interval '100 s' where kind = 'callback'";
    sqlx::query(young).execute(&db).await.unwrap();
    let job = deferred(&world, "%").await.remove(0);
    assert_eq!(world.settle(vec![job.clone()]).await, [Ack::Done]);
    let due = "select extract(epoch from due_at - now())::bigint from jobs where kind = 'callback'";
    assert!((15..=26).contains(&number(&db, due).await), "a quarter of its age: {}", number(&db, due).await);
    drop(slow);
    assert_eq!(world.settle(vec![job]).await, [Ack::Done]);
    assert_eq!((number(&db, PAID).await, world.count("callback jobs").await), (60, 0));
}

/// What the planted faults of a check are, and how many attempts each has cost.
const CHECK_FAULTS: [((Point, Fault), i32); 9] = [
    ((Point::CheckQueried, Fault::Panic), 1),
    ((Point::CheckQueried, Fault::Error), 1),
    ((Point::CheckClosed, Fault::Panic), 1),
    ((Point::CheckSettled, Fault::Panic), 1),
    ((Point::CheckSettled, Fault::Error), 1),
    ((Point::CheckSettled, Fault::Slow), 1),
    ((Point::CheckRecorded, Fault::Panic), 1),
    // Everything is committed then, and the job goes on as that has set it up.
    ((Point::CheckCommitted, Fault::Panic), 0),
    // Outside the job's own work: its row is left to its lease.
    ((Point::JobTaken, Fault::Panic), 0),
];

#[sqlx::test(migrator = "MIGRATOR")]
async fn faults_at_each_stage_of_a_check_concern_their_job_among_2000(db: PgPool) {
    let bench = Bench::new(db.clone(), "hold").await;
    let slowly = (*db.connect_options()).clone().options([("statement_timeout", "3s")]);
    let (checks, _) = bench.on(&PgPoolOptions::new().max_connections(8).connect_with(slowly).await.unwrap());
    let orders = many_orders(&bench.world, 2000 + CHECK_FAULTS.len()).await;
    let bad = |n: usize| (n % 200 == 101).then(|| CHECK_FAULTS.get(n / 200)).flatten();
    let mut sown = Vec::new();
    for (n, order) in orders.iter().enumerate() {
        let Some(((point, fault), _)) = bad(n) else { continue };
        let id = order.id.to_string();
        sown.push(plant(*point, if *point == Point::JobTaken { &id } else { order.order_no.as_str() }, *fault));
        if *point == Point::CheckClosed {
            bench.expire(order, time::Duration::minutes(1)).await;
        }
    }
    assert_eq!(sown.len(), CHECK_FAULTS.len());
    let published = "update jobs set due_at = now(), lease_until = now() + interval '1 hour', fence = id * 1000
                     where kind = 'check' returning id, fence";
    let rows: Vec<(i64, i64)> = sqlx::query_as(published).fetch_all(&db).await.unwrap();
    for batch in rows.chunks(16) {
        let nudges = batch.iter().map(|(id, fence)| Ok(JobMessage { id: *id, fence: *fence })).collect();
        assert_eq!(run_batch(&checks, nudges).await.unwrap(), vec![Ack::Done; batch.len()]);
    }
    assert!(sown.iter().all(|sown| sown.met() > 0), "each fault was met");
    let untried = "select count(*) from jobs where kind = 'check' and attempts = 0 and lease_until is null
                 and last_error in ('ORDER_NOT_EXIST', 'TRADE_NOT_EXIST')";
    assert_eq!(number(&db, untried).await, 2001, "the genuine ones, and the one that was committed");
    for (n, order) in orders.iter().enumerate() {
        let Some(((point, fault), attempts)) = bad(n) else { continue };
        let (why, found, leased): (Option<String>, i32, bool) =
            sqlx::query_as("select last_error, attempts, lease_until is not null from jobs where ref_id = $1")
                .bind(order.id.to_string())
                .fetch_one(&db)
                .await
                .unwrap();
        assert_eq!((found, leased), (*attempts, *point == Point::JobTaken), "{point} {fault:?}: {why:?}");
        if *fault == Fault::Panic && *attempts == 1 {
            assert_eq!(why, Some(format!("panicked: planted at {point}")));
        }
    }
    drop(sown);
    for (n, order) in orders.iter().enumerate() {
        if bad(n).is_some() {
            bench.check(order).await;
        }
    }
    let over =
        "select count(*) from jobs where kind = 'check' and last_error in ('ORDER_NOT_EXIST', 'TRADE_NOT_EXIST')";
    assert_eq!(number(&db, over).await, 2009, "and the others, once it has passed");
}

/// Each fault at its stage of a refund. A request sent before the panic is queried, and the money is returned once.
const REFUND_FAULTS: [&[(Point, Fault)]; 9] = [
    &[(Point::RefundMarked, Fault::Panic)],
    &[(Point::RefundMarked, Fault::Error)],
    &[(Point::RefundAnswered, Fault::Panic)],
    &[(Point::RefundAnswered, Fault::Panic), (Point::RefundQueried, Fault::Panic)],
    &[(Point::RefundSettled, Fault::Panic)],
    &[(Point::RefundSettled, Fault::Error)],
    &[(Point::RefundSettled, Fault::Slow)],
    &[(Point::RefundRecorded, Fault::Panic)],
    &[(Point::RefundCommitted, Fault::Panic)],
];

#[sqlx::test(migrator = "MIGRATOR")]
async fn faults_at_each_stage_of_a_refund_concern_their_job_and_return_once(db: PgPool) {
    let bench = Bench::new(db.clone(), "hold").await;
    let slowly = (*db.connect_options()).clone().options([("statement_timeout", "3s")]);
    let (_, worker) = bench.on(&PgPoolOptions::new().max_connections(8).connect_with(slowly).await.unwrap());
    let mut refunds = Vec::new();
    for n in 0..72 {
        let order = bench.paid(if n % 2 == 0 { Alipay } else { Wechat }).await;
        refunds.push((bench.world.request_refund(order.id, None).await.unwrap(), order));
    }
    // All of them at Alipay, which ends a refund with its first answer.
    let bad = |n: usize| REFUND_FAULTS.get(n / 8).copied().filter(|_| n % 8 == n / 8 * 2 % 8);
    let sown: Vec<Sown> = refunds
        .iter()
        .enumerate()
        .flat_map(|(n, (_, order))| bad(n).into_iter().flatten().map(move |fault| planted(order, *fault)))
        .collect();
    for round in 0..2 {
        for batch in refunds.chunks(16) {
            let mut nudges = Vec::new();
            for (refund, _) in batch {
                nudges.extend(publish(&db, JobKind::Refund, &refund.id.to_string()).await.map(Ok));
            }
            let many = nudges.len();
            assert_eq!(run_batch(&worker, nudges).await.unwrap(), vec![Ack::Done; many]);
        }
        for (n, (refund, _)) in refunds.iter().enumerate() {
            if let Some(faults) = bad(n).filter(|faults| round < faults.len()) {
                let job = bench.refund_job(refund.id).await;
                if faults[round].0 == Point::RefundCommitted {
                    assert!(job.is_none(), "everything was committed");
                    continue;
                }
                let (_, attempts, _) = job.expect("the refund goes on");
                assert_eq!(attempts as usize, round + 1, "{faults:?}");
            }
        }
        bench.pass(time::Duration::minutes(2)).await;
    }
    assert!(sown.iter().all(|sown| sown.met() > 0), "each fault was met");
    drop(sown);
    for (refund, order) in &refunds {
        bench.carry_to_its_end(refund.id).await;
        let (state, effects) = bench.booked(order, refund.refund_no.as_str()).await.unwrap();
        assert_eq!((state.as_str(), effects), ("success", 1), "{}", order.order_no);
        assert_eq!(bench.world.status(order).await, OrderStatus::Refunded);
    }
    assert_eq!(number(&db, "select count(*) from cases").await, 0);
}
