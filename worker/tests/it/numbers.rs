//! What the numbers in messages are worth: a job is taken, put off or ended only by the message that belongs to it.

use domain::OrderStatus::{Paid, Pending};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::message::callback::{Callback, LONGEST_BODY};
use domain::message::event::Event;
use domain::message::job::{JobKind, JobMessage};
use gateway_sim::notify::{Overrides, Wrong};
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::events as outbox;
use store::tables::jobs::{self, Cost, Lease};
use testkit::jobs::{come_due, leases_end};
use time::Duration;
use worker::consumer::Ack;

use crate::batches::stored;
use crate::support::World;

const LEASE: Duration = Duration::minutes(2);

async fn job(db: &PgPool, id: i64) -> Option<Value> {
    let sql = "select to_jsonb(j) from jobs j where id = $1";
    sqlx::query_scalar(sql).bind(id).fetch_optional(db).await.unwrap()
}

async fn leased(db: &PgPool, kind: JobKind, which: Lease) -> Vec<JobMessage> {
    let mut connection = db.acquire().await.unwrap();
    let due = jobs::lease_due(&mut connection, kind, which, 10).await.unwrap();
    due.iter().map(|due| JobMessage { id: due.id, fence: due.fence }).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_job_is_taken_by_the_message_of_its_lease_and_by_no_other(db: PgPool) {
    let world = World::new(db.clone());
    let order = world.pending_order(Alipay, "8").await.id.to_string();
    let id: i64 = sqlx::query_scalar("select id from jobs").fetch_one(&db).await.unwrap();
    let take = async |kind: JobKind, nudge: JobMessage| jobs::take(&db, &[kind], nudge, LEASE).await.unwrap();
    // Before the relay has published it, not even the right fence takes it; after, a counter does not guess it.
    let fresh = JobMessage { id, fence: 0 };
    assert!(take(JobKind::Check, fresh).await.is_none());
    assert_eq!(leased(&db, JobKind::Check, Lease::All).await, [], "it is not due");
    come_due(&db, None).await;
    assert!(take(JobKind::Check, fresh).await.is_none(), "due, and not published");
    let [nudge] = leased(&db, JobKind::Check, Lease::All).await[..] else { panic!("one lease") };
    assert!(nudge.fence > 1 << 32, "a fence that can be guessed: {}", nudge.fence);
    for fence in [0, 1, 2, nudge.fence - 1, nudge.fence + 1] {
        assert!(take(JobKind::Check, JobMessage { id, fence }).await.is_none(), "{fence}");
    }
    assert!(take(JobKind::Refund, nudge).await.is_none(), "another queue's");
    assert!(take(JobKind::Callback, nudge).await.is_none(), "no job of a worker");
    // Published early by a relay whose clock is ahead: it waits.
    sqlx::query("update jobs set due_at = now() + interval '1 minute'").execute(&db).await.unwrap();
    assert!(take(JobKind::Check, nudge).await.is_none(), "not due");
    sqlx::query("update jobs set due_at = now()").execute(&db).await.unwrap();
    // However long it lay in its queue.
    leases_end(&db, None).await;
    let taken = take(JobKind::Check, nudge).await.expect("the genuine one");
    assert_eq!(taken.ref_id, order);
    assert!(take(JobKind::Check, nudge).await.is_none(), "a repeat");

    // Given back, it is due after the wait, and no message that went before takes it.
    let mut tx = db.begin().await.unwrap();
    assert!(jobs::again(&mut tx, &taken, Duration::ZERO, Cost::Nothing, "so").await.unwrap());
    tx.commit().await.unwrap();
    let wait = "select due_at - now() between interval '0.5 s' and interval '1 s' from jobs";
    assert!(sqlx::query_scalar::<_, bool>(wait).fetch_one(&db).await.unwrap(), "never at once");
    come_due(&db, None).await;
    for fence in [nudge.fence, nudge.fence + 1, nudge.fence + 2] {
        assert!(take(JobKind::Check, JobMessage { id, fence }).await.is_none(), "{fence}");
    }
    let [next] = leased(&db, JobKind::Check, Lease::All).await[..] else { panic!("one lease") };
    assert!(next.fence.abs_diff(nudge.fence) > 1 << 20);
    // Published, and the confirm did not come: the message may arrive, and the next lease has another fence.
    let mut connection = db.acquire().await.unwrap();
    jobs::release(&mut connection, &[(next.id, next.fence)], Duration::ZERO).await.unwrap();
    assert!(take(JobKind::Check, next).await.is_none());
    come_due(&db, None).await;
    assert!(take(JobKind::Check, next).await.is_none());
}

/// A message that is older than the database, which has been restored: the number is another job's by now.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_message_from_before_a_restore_takes_nothing(db: PgPool) {
    let world = World::new(db.clone());
    let published = async || {
        world.pending_order(Alipay, "8").await;
        come_due(&db, None).await;
        let [nudge] = leased(&db, JobKind::Check, Lease::All).await[..] else { panic!("one lease") };
        nudge
    };
    let old = published().await;
    sqlx::raw_sql("delete from jobs; alter table jobs alter column id restart with 1").execute(&db).await.unwrap();
    let new = published().await;
    assert_eq!(new.id, old.id, "the number is used once more");
    let before = job(&db, new.id).await;
    assert!(jobs::take(&db, &[JobKind::Check], old, LEASE).await.unwrap().is_none());
    assert_eq!(job(&db, new.id).await, before);
    assert!(jobs::take(&db, &[JobKind::Check], new, LEASE).await.unwrap().is_some());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_callback_with_the_number_of_another_settles_itself_and_leaves_the_other(db: PgPool) {
    let world = World::new(db.clone());
    let (one, other) = (world.pending_order(Wechat, "8").await, world.pending_order(Alipay, "8").await);
    let theirs = world.paid(&other);
    let id = jobs::insert_callback(&db, &theirs, Duration::ZERO).await.unwrap();
    let before = job(&db, id).await;
    assert_eq!(world.settle(vec![Callback { job_id: Some(id), ..world.paid(&one) }]).await, [Ack::Done]);
    assert_eq!((world.status(&one).await, world.status(&other).await), (Paid, Pending));
    assert_eq!(job(&db, id).await, before);
    // Its very bytes under a broken signature, under none, and for an account that is not known: bad ones are dead, and what
    // has to wait is stored beside it.
    let mut broken = Callback { job_id: Some(id), ..theirs.clone() };
    broken.body = [&theirs.body[..], b"&x=1"].concat().into();
    let unconfigured = Callback { account: domain::AccountName::parse("nobody").unwrap(), ..theirs.clone() };
    let unconfigured = Callback { job_id: Some(id), ..unconfigured };
    assert_eq!(world.settle(vec![broken, unconfigured.clone()]).await, [Ack::Dead, Ack::Done]);
    assert_eq!(job(&db, id).await, before);
    assert_eq!(world.count("callback jobs").await, 2);
    // A number of no callback at all.
    let check: i64 = sqlx::query_scalar("select id from jobs where kind = 'check'").fetch_one(&db).await.unwrap();
    let before = job(&db, check).await;
    assert_eq!(world.settle(vec![Callback { job_id: Some(check), ..unconfigured }]).await, [Ack::Done]);
    assert_eq!(job(&db, check).await, before);
    // Its own message ends it.
    let own = stored(&world).await.into_iter().find(|stored| stored.job_id == Some(id)).unwrap();
    assert_eq!(world.settle(vec![own]).await, [Ack::Done]);
    assert_eq!(job(&db, id).await, None);
    assert_eq!(world.status(&other).await, Paid);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_or_an_account_that_stays_unknown_for_25_hours_is_a_dead_letter(db: PgPool) {
    let world = World::new(db.clone());
    let order = world.pending_order(Wechat, "5").await;
    let stranger = Overrides { wrong: Some(Wrong::WrongSerial), ..Overrides::default() };
    let unknown_key = world.notice_of(&world.paid_trade(&order), &stranger);
    let account = domain::AccountName::parse("nobody").unwrap();
    let unknown_account = Callback { account, ..world.paid(&order) };
    assert_eq!(world.settle(vec![unknown_key, unknown_account]).await, [Ack::Done; 2]);
    for (hours, ack) in [(0, Ack::Done), (24, Ack::Done), (26, Ack::Dead)] {
        let sql = "update jobs set created_at = now() - $1 * interval '1 hour' where kind = 'callback'";
        sqlx::query(sql).bind(f64::from(hours)).execute(&db).await.unwrap();
        // Beside one that settles.
        let paid = world.paid(&world.pending_order(Alipay, "5").await);
        let mut batch = stored(&world).await;
        batch.push(paid);
        assert_eq!(world.settle(batch).await, [ack, ack, Ack::Done], "after {hours} h");
        // The relay ends the rows with their letters, so nothing is lost in between.
        assert_eq!(world.count("callback jobs").await, 2, "after {hours} h");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_callback_longer_than_the_ingress_takes_is_dead_and_leaves_no_row(db: PgPool) {
    let world = World::new(db);
    let callback = world.paid(&world.pending_order(Alipay, "5").await);
    let longest = Callback { body: vec![b'x'; LONGEST_BODY].into(), ..callback.clone() };
    let too_long = Callback { body: vec![b'x'; LONGEST_BODY + 1].into(), ..callback.clone() };
    assert_eq!(world.settle(vec![too_long, callback]).await, [Ack::Dead, Ack::Done]);
    assert_eq!(world.verdicts().await.len(), 1, "of the genuine one");
    assert_eq!(world.settle(vec![longest]).await, [Ack::Dead]);
    assert_eq!(world.verdicts().await.len(), 2, "evidence of one that may have come from there");
}

/// What was put off is due by the database's clock, whatever the clock of the process that put it off.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_that_was_put_off_waits_by_the_databases_clock(db: PgPool) {
    testkit::make_up_facts(&db).await;
    let mut connection = db.acquire().await.unwrap();
    let event = Event { event_id: "e".to_owned(), kind: "case.opened", order_id: None, data: json!({}) };
    let hour_ahead = runtime::clock::Clock::system().now() + Duration::hours(1);
    outbox::append(&mut connection, &[event], hour_ahead).await.unwrap();
    let [waiting] = &outbox::waiting(&mut connection, 10).await.unwrap()[..] else { panic!("one event") };
    outbox::postpone(&mut connection, &[waiting.seq], Duration::minutes(1)).await.unwrap();
    assert!(outbox::waiting(&mut connection, 10).await.unwrap().is_empty());
    let sql = "select retry_at - now() between interval '50 s' and interval '1 minute' from events";
    assert!(sqlx::query_scalar::<_, bool>(sql).fetch_one(&db).await.unwrap());
    sqlx::query("update events set retry_at = now()").execute(&db).await.unwrap();
    assert_eq!(outbox::waiting(&mut connection, 10).await.unwrap().len(), 1);
}
