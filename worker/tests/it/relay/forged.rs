//! We do not trust messages: the tests forge every message of the topology, as every user, with the numbers of real
//! rows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use broker::topology::{self, Binding, CALLBACKS, CHECKS, PAYMENT_IN, PAYMENT_JOBS, REFUNDS};
use broker::{Delivery, callback_from, callback_message};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::callback::Callback;
use domain::message::job::{CheckRequest, JobKind, JobMessage, JobRequest, RefundRequest};
use domain::{AccountName, RefundId};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation};
use runtime::clock::Clock;
use runtime::service::Service;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use store::MIGRATOR;
use store::tables::jobs;
use testkit::jobs::publish;
use tokio_util::sync::CancellationToken;
use worker::consumer::{self, BatchOptions};
use worker::jobs::run_batch;

use super::{PATIENCE, Setup};
use crate::bench::Bench;

/// Tables in which rows that were there must not change. New rows are evidence, cases, and callbacks that wait.
const TABLES: &[&str] = &[
    "jobs",
    "payment_orders",
    "payment_transactions",
    "refund_records",
    "callbacks",
    "cases",
    "events",
    "idempotency_keys",
];
/// The cases of the last message of each queue: all before it are dealt with.
const ENDS: &str = "select count(*) from cases where subject_ref like 'last %'";

/// A job as a forger knows it who has read the database, yet has no message of the relay.
struct Row {
    id: i64,
    kind: JobKind,
    fence: i64,
    leased: bool,
    payload: Value,
}

/// Every row, by table and text of its primary key.
async fn all_rows(db: &PgPool) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    for table in TABLES {
        let key = match *table {
            "events" => "event_id",
            "idempotency_keys" => "user_id || key",
            _ => "id::text",
        };
        let sql = format!("select '{table} ' || ({key}), to_jsonb(t) from {table} t");
        let found: Vec<(String, Value)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(db).await.unwrap();
        rows.extend(found);
    }
    rows
}

/// A check, a refund and a callback in each state that a job can have: not due, leased by the relay, taken by a worker.
async fn jobs_in_each_state(bench: &Bench) -> Vec<Row> {
    let (db, hour) = (&bench.world.db, time::Duration::hours(1));
    for state in ["waits", "published", "taken"] {
        let order = bench.world.pending_order(Alipay, "8").await.id;
        let refund = RefundId::from_u128(Clock::system().fresh_bits());
        let check = JobRequest::Check(order, CheckRequest::default());
        for job in [check, JobRequest::Refund(refund, RefundRequest::default())] {
            let (kind, ref_id) = (job.kind(), job.ref_id());
            jobs::request(db, &job, hour).await.unwrap();
            if state != "waits" {
                let nudge = publish(db, kind, &ref_id).await.unwrap();
                if state == "taken" {
                    jobs::take(db, &[kind], nudge, hour).await.unwrap().expect("a published job");
                }
            }
        }
        let callback = bench.world.paid(&bench.world.pending_order(Wechat, "8").await);
        let id = jobs::insert_callback(db, &callback, hour).await.unwrap();
        let sql = "update jobs set due_at = now(), fence = 4711, publishes = 1, lease_until = now() + interval '1 hour'
            where id = $1 and $2 <> 'waits'";
        sqlx::query(sql).bind(id).bind(state).execute(db).await.unwrap();
    }
    // The relay of this test has nothing to do with them.
    let sql = "update jobs set lease_until = lease_until + interval '1 hour',
        due_at = case when lease_until is null then now() + interval '1 hour' else due_at end";
    sqlx::query(sql).execute(db).await.unwrap();
    let sql = "select id, kind, fence, lease_until is not null, payload from jobs order by id";
    let found: Vec<(i64, String, i64, bool, Value)> = sqlx::query_as(sql).fetch_all(db).await.unwrap();
    let row = |(id, kind, fence, leased, payload): (i64, String, i64, bool, Value)| Row {
        id,
        kind: kind.parse().unwrap(),
        fence,
        leased,
        payload,
    };
    found.into_iter().map(row).collect()
}

/// Nudges for this queue that the relay did not publish. The fence of a lease is the relay's secret on the queue that
/// it chose, and everywhere else it is guessed right.
fn nudges(queue: &str, row: &Row) -> Vec<Vec<u8>> {
    let mut fences = BTreeSet::from([0, 1, row.fence - 1, row.fence, row.fence + 1, i64::MAX, i64::MIN]);
    if row.leased && queue == format!("payment.{}s", row.kind) {
        fences.remove(&row.fence);
    }
    fences.into_iter().map(|fence| serde_json::to_vec(&JobMessage { id: row.id, fence }).unwrap()).collect()
}

/// Callbacks that claim this row, none of them with all that it holds.
fn callbacks(genuine: &Callback, row: &Row) -> Vec<Vec<u8>> {
    let unconfigured = AccountName::parse("nobody").unwrap();
    let with = |callback: &Callback, name: &str, change: fn(&str) -> String| {
        let mut changed = callback.clone();
        changed.headers.iter_mut().filter(|header| header.0 == name).for_each(|header| header.1 = change(&header.1));
        changed
    };
    let unsigned = Callback { job_id: Some(row.id), body: "x".into(), ..genuine.clone() };
    let mut forged = vec![
        Callback { account: unconfigured.clone(), ..unsigned.clone() },
        Callback { headers: Vec::new(), ..unsigned.clone() },
        Callback { body: vec![b'x'; 64 * 1024 + 1].into(), ..unsigned.clone() },
        with(&unsigned, "wechatpay-serial", |_| "7FFF".to_owned()),
        with(&unsigned, "wechatpay-nonce", |_| "a\0b".to_owned()),
        unsigned,
    ];
    if let Ok(own) = serde_json::from_value::<Callback>(row.payload.clone()) {
        // The bytes themselves, without what proves them.
        let own = Callback { job_id: Some(row.id), ..own };
        forged.extend([
            with(&own, "wechatpay-signature", |signature| signature.chars().rev().collect()),
            with(&own, "wechatpay-serial", |_| "7FFF".to_owned()),
            Callback { headers: Vec::new(), ..own.clone() },
            Callback { account: unconfigured, ..own },
        ]);
    }
    forged.iter().map(|callback| callback_message(callback, String::new()).body.to_vec()).collect()
}

/// Everything that a forger sends to this binding.
fn forged(binding: &Binding, genuine: &Callback, rows: &[Row]) -> Vec<Vec<u8>> {
    let mut bodies = vec![Vec::new(), b"null".to_vec(), b"{}\n".to_vec(), vec![0xff; 100]];
    for row in rows {
        bodies.push(json!({ "id": row.id }).to_string().into());
        bodies.extend(match binding.queue {
            CALLBACKS => callbacks(genuine, row),
            queue => nudges(queue, row),
        });
    }
    bodies
}

/// Publishes as this user does; false: the broker does not let it.
async fn send(setup: &Setup, service: Service, binding: &Binding, bodies: Vec<Vec<u8>>) -> bool {
    let connection = broker::open(&setup.broker.uri_for(service).await, "forger").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for body in bodies {
        let (exchange, key) = (binding.exchange.into(), binding.routing_key.into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_message_id("job:1".into());
        let confirm = channel.basic_publish(exchange, key, options, &body, properties).await.unwrap();
        match confirm.await {
            Ok(Confirmation::Ack(None)) => {}
            Ok(other) => panic!("{service} to {binding:?}: {other:?}"),
            Err(_) => return false,
        }
    }
    true
}

/// Sends every message as every user, and returns which user reached which exchange.
async fn flood(setup: &Setup, genuine: &Callback, rows: &[Row]) -> BTreeSet<(Service, &'static str)> {
    let mut through = BTreeSet::new();
    for service in Service::ALL {
        for binding in topology::bindings() {
            if send(setup, *service, &binding, forged(&binding, genuine, rows)).await {
                through.insert((*service, binding.exchange));
            }
        }
    }
    let end = |binding: &Binding| broker::Message {
        exchange: binding.exchange.to_owned(),
        routing_key: binding.routing_key.to_owned(),
        id: format!("last {}", binding.queue),
        kind: None,
        content_type: "text/plain".to_owned(),
        headers: Vec::new(),
        body: "no job".into(),
    };
    setup.publish(topology::bindings().iter().map(end).collect()).await;
    through
}

/// Lets the workers of `bench` consume their queues until the last message of each is a case.
async fn everything_is_dealt_with(setup: &Setup, bench: &Bench) {
    let connection = broker::open(&setup.broker.uri(), "workers").await.unwrap();
    let (stop, options) = (CancellationToken::new(), BatchOptions::in_order(50, Duration::from_millis(20)));
    let nudges = |batch: &[Delivery]| batch.iter().map(|nudge| serde_json::from_slice(&nudge.data)).collect();
    let callbacks = consumer::run(&connection, CALLBACKS, options, stop.clone(), async |batch| {
        bench.world.worker.settle(batch.iter().map(callback_from).collect()).await
    });
    let checks = consumer::run(&connection, CHECKS, options, stop.clone(), async |batch| {
        run_batch(&bench.checks, nudges(batch)).await
    });
    let refunds = consumer::run(&connection, REFUNDS, options, stop.clone(), async |batch| {
        run_batch(&bench.refunds, nudges(batch)).await
    });
    let end = async {
        setup.until(ENDS, topology::bindings().len() as i64).await;
        stop.cancel();
    };
    let (callbacks, checks, refunds, ()) = tokio::join!(callbacks, checks, refunds, end);
    callbacks.and(checks).and(refunds).unwrap();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_forged_message_by_any_user_changes_a_row(db: PgPool) {
    let bench = Bench::new(db.clone(), "hold").await;
    let setup = Setup::new(db.clone()).await;
    // At its first sight of a broker the relay ends every lease.
    setup.start();
    let patience = tokio::time::Instant::now() + PATIENCE;
    while !topology::marker_exists(&setup.admin).await.unwrap() {
        assert!(tokio::time::Instant::now() < patience, "the relay did not set the broker up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rows = jobs_in_each_state(&bench).await;
    let genuine = bench.world.paid(&bench.world.pending_order(Wechat, "8").await);
    let before = all_rows(&db).await;

    let through = flood(&setup, &genuine, &rows).await;
    let may = [(Service::PaymentApi, PAYMENT_IN), (Service::Relay, PAYMENT_IN), (Service::Relay, PAYMENT_JOBS)];
    assert_eq!(through, BTreeSet::from(may), "who may write there");
    everything_is_dealt_with(&setup, &bench).await;

    let mut after = all_rows(&db).await;
    for (key, row) in &before {
        assert_eq!(after.remove(key).as_ref(), Some(row), "{key}");
    }
    // What is new is evidence, cases with their events, and callbacks that wait for a key.
    assert!(after.len() > rows.len(), "the messages were looked at");
    for (key, row) in after {
        let table = key.split(' ').next().unwrap();
        let expected = match table {
            "jobs" => row["kind"] == "callback" && row["lease_until"].is_null(),
            "callbacks" => row["verdict"] == "bad_signature" || row["verdict"] == "undecodable",
            "cases" => row["kind"] == "dead_letter",
            "events" => row["type"] == "case.opened",
            _ => false,
        };
        assert!(expected, "{key}: {row}");
    }

    // Only the relay's own messages, which none of them was, take the jobs that it has leased.
    for row in rows.iter().filter(|row| row.leased && row.kind != JobKind::Callback) {
        let genuine = JobMessage { id: row.id, fence: row.fence };
        let taken = jobs::take(&db, &[row.kind], genuine, time::Duration::MINUTE).await.unwrap();
        assert!(taken.is_some(), "{} {}", row.kind, row.id);
    }
}
