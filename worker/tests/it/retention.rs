//! Which rows are deleted when their time is over, and above all which are not.

use domain::PaymentMethod::{Alipay, Wechat};
use domain::{CaseId, CaseKind, first_id_at};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use runtime::clock::Clock;
use serde_json::json;
use sqlx::{Executor, PgConnection, PgPool};
use store::upkeep::retention::{self, Step, step_aside};
use store::{DbError, MIGRATOR};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use worker::relay::retention::{Periods, round};

use crate::support::World;

/// Rows that were over before this are removed.
const BOUND: OffsetDateTime = datetime!(2026-01-05 10:00 UTC);
const SECOND: Duration = Duration::seconds(1);

/// Deletes every row that may be deleted, two rows a step, and returns how many rows each step deleted.
async fn removed<P: Copy>(
    db: &PgPool,
    mut place: P,
    step: impl AsyncFn(&mut PgConnection, P, i64) -> Result<Step<P>, DbError>,
) -> Vec<u64> {
    let mut steps = Vec::new();
    loop {
        let mut tx = db.begin().await.unwrap();
        step_aside(&mut tx).await.unwrap();
        let done = step(&mut tx, place, 2).await.unwrap();
        tx.commit().await.unwrap();
        steps.push(done.removed);
        let Some(reached) = done.reached else { return steps };
        place = reached;
    }
}

async fn remove_keys(db: &PgPool) -> Vec<u64> {
    removed(db, (), async |tx, (), limit| retention::idempotency_keys(tx, BOUND, limit).await).await
}

async fn remove_events(db: &PgPool) -> Vec<u64> {
    removed(db, (), async |tx, (), limit| retention::events(tx, BOUND, limit).await).await
}

async fn remove_callbacks(db: &PgPool) -> Vec<u64> {
    removed(db, 0, async |tx, from, limit| retention::callbacks(tx, BOUND, from, limit).await).await
}

async fn remove_cases(db: &PgPool) -> Vec<u64> {
    let first = CaseId::from_u128(0);
    removed(db, first, async |tx, from, limit| retention::cases(tx, BOUND, from, limit).await).await
}

async fn texts(db: &PgPool, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(db).await.unwrap()
}

const KEYS: &str = "select key::text from idempotency_keys order by key";
const EVENTS: &str = "select event_id::text from events order by event_id";
const CALLBACKS: &str = "select notice_id::text from callbacks order by notice_id";
const CASES: &str = "select subject_ref::text from cases order by subject_ref";

async fn key(db: &PgPool, name: &str, expires_at: OffsetDateTime, held_until: Option<OffsetDateTime>) {
    let sql =
        "insert into idempotency_keys (user_id, key, route, request_hash, ref_id, created_at, expires_at, held_until)
               values ('u', $1, 'r', sha256(''), 'o', $2, $3, $4)";
    let insert = sqlx::query(sql).bind(name).bind(expires_at - Duration::days(1)).bind(expires_at).bind(held_until);
    insert.execute(db).await.unwrap();
}

async fn event(db: &PgPool, id: &str, published_at: Option<OffsetDateTime>) {
    let sql =
        "insert into events (event_id, type, data, occurred_at, published_at) values ($1, 'case.opened', '{}', $2, $3)";
    let occurred_at = BOUND - Duration::days(30);
    testkit::make_up_facts(db).await;
    sqlx::query(sql).bind(id).bind(occurred_at).bind(published_at).execute(db).await.unwrap();
}

/// The statistics have seen the events up to `seq`.
async fn seen(db: &PgPool, seq: i64) {
    let sql = "insert into stats_progress (seq, next_seq, hour, refreshed_at) values ($1, $1, now(), now())
               on conflict on constraint stats_progress_pkey do update set seq = $1";
    sqlx::query(sql).bind(seq).execute(db).await.unwrap();
}

async fn callback(db: &PgPool, notice_id: &str, order_no: Option<&str>, last_seen_at: OffsetDateTime) {
    let sql = "insert into callbacks (payment_method, account, notice_id, order_no, verdict, headers, body, received_at, last_seen_at)
               values ('wechat', 'main', $1, $2, 'settled', '{}', '', $3, $3)";
    sqlx::query(sql).bind(notice_id).bind(order_no).bind(last_seen_at).execute(db).await.unwrap();
}

/// An order in a state, named by its number.
async fn order(db: &PgPool, order_no: &str, status: &str) {
    let sql = "insert into payment_orders
                 (id, user_id, order_no, product_type, subject, amount, payment_method, scene, account, status, trade_no,
                  expires_at, paid_at, closed_at, prepay, created_at, updated_at)
               values (md5($1), 'u', $1, 'p', 's', 8, 'wechat', 'native', 'main', $2, 'T' || $1, $3, $3, $3, '{}', $3, $3)";
    let past = BOUND - Duration::days(9);
    sqlx::query(sql).bind(order_no).bind(status).bind(past).execute(db).await.unwrap();
}

/// A refund of that order, in a state.
async fn refund(db: &PgPool, order_no: &str, status: &str) {
    let sql = "with paid as (
                 insert into payment_transactions
                   (id, order_id, transaction_no, payment_method, action_type, amount, created_at, updated_at)
                 values (md5($1 || $2), md5($1), $1 || $2, 'wechat', 'payment', 8, $3, $3)
               )
               insert into refund_records
                 (id, order_id, transaction_id, refund_no, refund_amount, status, requested_by, created_at, updated_at)
               values (md5($1 || $2), md5($1), md5($1 || $2), 'R' || $1 || $2, 1, $2, 'u', $3, $3)";
    sqlx::query(sql).bind(order_no).bind(status).bind(BOUND - Duration::days(9)).execute(db).await.unwrap();
}

struct Case<'a> {
    kind: CaseKind,
    name: &'a str,
    status: &'a str,
    /// The number of an order of ours.
    of: Option<&'a str>,
    /// What the evidence says.
    order_no: Option<&'a str>,
    updated_at: OffsetDateTime,
}

/// Removed, if nothing else is said.
fn over(name: &str) -> Case<'_> {
    let (kind, updated_at) = (CaseKind::LatePayment, BOUND - SECOND);
    Case { kind, name, status: "resolved", of: None, order_no: None, updated_at }
}

async fn case(db: &PgPool, case: Case<'_>) {
    let opened = case.updated_at - Duration::days(9);
    // An id of its own, as one that was made then.
    let bits: i64 = sqlx::query_scalar("select count(*) from cases").fetch_one(db).await.unwrap();
    let id = CaseId::from_u128(first_id_at(opened) + u128::try_from(bits).unwrap());
    let sql = "insert into cases (id, kind, order_id, subject_ref, evidence, status, created_at, updated_at)
               values ($1, $2, md5($3), $4, $5, $6, $7, $8)";
    let insert = sqlx::query(sql).bind(id.to_string()).bind(case.kind.as_str()).bind(case.of).bind(case.name);
    let insert = insert.bind(json!({ "order_no": case.order_no })).bind(case.status).bind(opened);
    insert.bind(case.updated_at).execute(db).await.unwrap();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_goes_once_it_has_expired_and_is_not_held(db: PgPool) {
    key(&db, "expires now", BOUND, None).await;
    key(&db, "expired", BOUND - SECOND, None).await;
    key(&db, "held", BOUND - SECOND, Some(BOUND)).await;
    key(&db, "was held", BOUND - SECOND, Some(BOUND - SECOND)).await;
    remove_keys(&db).await;
    assert_eq!(texts(&db, KEYS).await, ["expires now", "held"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_goes_once_it_was_published_and_counted(db: PgPool) {
    event(&db, "just published", Some(BOUND)).await;
    event(&db, "published", Some(BOUND - SECOND)).await;
    event(&db, "never published", None).await;
    event(&db, "not counted yet", Some(BOUND - SECOND)).await;
    remove_events(&db).await;
    assert_eq!(texts(&db, EVENTS).await.len(), 4, "nothing was counted yet");
    seen(&db, 3).await;
    remove_events(&db).await;
    assert_eq!(texts(&db, EVENTS).await, ["just published", "never published", "not counted yet"]);
    seen(&db, 4).await;
    remove_events(&db).await;
    assert_eq!(texts(&db, EVENTS).await, ["just published", "never published"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_callback_goes_once_its_order_is_done_and_no_open_case_needs_it(db: PgPool) {
    let gone = BOUND - SECOND;
    callback(&db, "gone: unreadable", None, gone).await;
    callback(&db, "gone: unknown order", Some("NOBODYS"), gone).await;
    callback(&db, "kept: seen just now", None, BOUND).await;
    for status in ["paid", "closed", "partially_refunded", "refunded"] {
        order(&db, status, status).await;
        callback(&db, &format!("gone: {status}"), Some(status), gone).await;
    }
    for status in ["pending", "refunding"] {
        order(&db, status, status).await;
        callback(&db, &format!("kept: {status}"), Some(status), gone).await;
    }
    // Of late money, whose refunds the order does not follow.
    for (status, fate) in
        [("pending", "kept"), ("processing", "kept"), ("abnormal", "kept"), ("succeeded", "gone"), ("failed", "gone")]
    {
        let order_no = format!("refund_{status}");
        order(&db, &order_no, "closed").await;
        refund(&db, &order_no, status).await;
        callback(&db, &format!("{fate}: {order_no}"), Some(&order_no), gone).await;
    }
    for (status, fate) in [("open", "kept"), ("proposed", "kept"), ("resolved", "gone")] {
        let ours = format!("case_{status}");
        order(&db, &ours, "paid").await;
        callback(&db, &format!("{fate}: {ours}"), Some(&ours), gone).await;
        case(&db, Case { status, of: Some(&ours), ..over(&ours) }).await;
        let theirs = format!("unknown_{status}");
        callback(&db, &format!("{fate}: {theirs}"), Some(&theirs), gone).await;
        case(&db, Case { status, order_no: Some(&theirs), ..over(&theirs) }).await;
    }
    remove_callbacks(&db).await;
    let left = texts(&db, CALLBACKS).await;
    assert!(left.iter().all(|name| name.starts_with("kept: ")), "{left:?}");
    assert_eq!(left.len(), 10, "{left:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_case_goes_once_it_is_resolved_and_its_order_is_done(db: PgPool) {
    case(&db, over("gone")).await;
    case(&db, Case { updated_at: BOUND, ..over("kept: just resolved") }).await;
    case(&db, Case { status: "open", ..over("kept: open") }).await;
    case(&db, Case { status: "proposed", ..over("kept: proposed") }).await;
    for (status, fate) in [("pending", "kept"), ("refunding", "kept"), ("paid", "gone"), ("closed", "gone")] {
        order(&db, status, status).await;
        let name = format!("{fate}: {status}");
        case(&db, Case { of: Some(status), ..over(&name) }).await;
    }
    order(&db, "stuck", "paid").await;
    refund(&db, "stuck", "abnormal").await;
    case(&db, Case { of: Some("stuck"), ..over("kept: stuck") }).await;
    for kind in CaseKind::ALL {
        let name = format!("{}: {kind}", if kind.is_its_only_memory() { "kept" } else { "gone" });
        case(&db, Case { kind: *kind, ..over(&name) }).await;
    }
    remove_cases(&db).await;
    let left = texts(&db, CASES).await;
    assert!(left.iter().all(|name| name.starts_with("kept: ")), "{left:?}");
    assert_eq!(left.len(), 6 + 5, "{left:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_step_is_small_and_one_that_was_broken_off_is_done_again(db: PgPool) {
    for n in 0..5 {
        key(&db, &format!("k{n}"), BOUND - SECOND, None).await;
        event(&db, &format!("e{n}"), Some(BOUND - SECOND)).await;
        case(&db, over(&format!("c{n}"))).await;
    }
    seen(&db, 5).await;
    order(&db, "pending", "pending").await;
    for n in 0..5 {
        // What must stay lies in the way of what must go.
        callback(&db, &format!("kept {n}"), Some("pending"), BOUND - SECOND).await;
    }
    for n in 0..5 {
        callback(&db, &format!("gone {n}"), None, BOUND - SECOND).await;
    }
    // The process dies before its commit.
    let mut tx = db.begin().await.unwrap();
    assert_eq!(retention::callbacks(&mut tx, BOUND, 5, 4).await.unwrap().removed, 4);
    assert_eq!(retention::events(&mut tx, BOUND, 4).await.unwrap().removed, 4);
    tx.rollback().await.unwrap();
    assert_eq!(remove_keys(&db).await, [2, 2, 1]);
    assert_eq!(remove_events(&db).await, [2, 2, 1]);
    assert_eq!(remove_callbacks(&db).await, [0, 0, 1, 2, 2, 0]);
    assert_eq!(remove_cases(&db).await, [2, 2, 1, 0]);
    assert_eq!(texts(&db, CALLBACKS).await, ["kept 0", "kept 1", "kept 2", "kept 3", "kept 4"]);
}

/// The relay's own round, with its bounds: `Periods` decides what stays, and `None` means for ever.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_round_purges_only_what_is_past_its_period(db: PgPool) {
    let day = Duration::days(1);
    let periods = Periods { events: Some(day), callbacks: Some(2 * day), cases: Some(3 * day) };
    for (n, at) in [(0, BOUND), (1, BOUND - SECOND)] {
        key(&db, &format!("k{n}"), at - Duration::hours(1), None).await;
        event(&db, &format!("e{n}"), Some(at - day)).await;
        callback(&db, &format!("n{n}"), None, at - 2 * day).await;
        case(&db, Case { updated_at: at - 3 * day, ..over(&format!("c{n}")) }).await;
    }
    seen(&db, 2).await;
    let clock = Clock::fixed(BOUND);
    round(&db, &clock, Periods { events: None, callbacks: None, cases: None }).await;
    assert_eq!(texts(&db, KEYS).await, ["k0"]);
    assert_eq!(texts(&db, EVENTS).await.len() + texts(&db, CALLBACKS).await.len() + texts(&db, CASES).await.len(), 6);
    round(&db, &clock, periods).await;
    assert_eq!(texts(&db, EVENTS).await, ["e0"]);
    assert_eq!(texts(&db, CALLBACKS).await, ["n0"]);
    assert_eq!(texts(&db, CASES).await, ["c0"]);
}

/// Another session locks rows: the other rows are deleted at once, the locked ones when it ends.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_held_row_is_passed_over_and_waits_for_the_next_round(db: PgPool) {
    order(&db, "done", "paid").await;
    for n in 0..3 {
        key(&db, &format!("k{n}"), BOUND - SECOND, None).await;
        event(&db, &format!("e{n}"), Some(BOUND - SECOND)).await;
        callback(&db, &format!("n{n}"), Some("done"), BOUND - SECOND).await;
        case(&db, Case { of: Some("done"), ..over(&format!("c{n}")) }).await;
    }
    seen(&db, 3).await;
    let mut settling = db.begin().await.unwrap();
    for held in [
        "select 1 from payment_orders for update",
        "select 1 from idempotency_keys where key = 'k1' for update",
        "select 1 from events where event_id = 'e1' for update",
        "update callbacks set times_seen = times_seen + 1 where notice_id = 'n1'",
        "select 1 from cases where subject_ref = 'c1' for update",
    ] {
        settling.execute(held).await.unwrap();
    }
    let left = async || {
        let mut left = Vec::new();
        for table in [KEYS, EVENTS, CALLBACKS, CASES] {
            left.extend(texts(&db, table).await);
        }
        left
    };
    let all = async || {
        remove_keys(&db).await;
        remove_events(&db).await;
        remove_callbacks(&db).await;
        remove_cases(&db).await;
    };
    all().await;
    assert_eq!(left().await, ["k1", "e1", "n1", "c1"]);
    settling.commit().await.unwrap();
    all().await;
    assert_eq!(left().await, [""; 0]);
}

/// A message that arrives again while its evidence is being deleted is settled as usual, and is evidence again.
#[sqlx::test(migrator = "MIGRATOR")]
async fn settling_goes_on_beside_a_removal(db: PgPool) {
    let world = World::new(db.clone());
    let order = world.pending_order(Wechat, "8").await;
    let notice = world.paid(&order);
    world.settle(vec![notice.clone()]).await;
    let later = Clock::system().now() + Duration::hours(1);
    let mut removing = db.begin().await.unwrap();
    assert_eq!(retention::callbacks(&mut removing, later, 0, 500).await.unwrap().removed, 1);
    // Another order, and another message about the same order.
    let other = world.pending_order(Alipay, "9").await;
    let again = world.notice_of(&world.paid_trade(&order), &Default::default());
    world.settle(vec![world.paid(&other), again]).await;
    assert_eq!(world.status(&other).await.to_string(), "paid");
    // The message itself waits for the removal, which is short.
    let repeat = world.settle(vec![notice]);
    let end = async {
        let waits =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&db).await.unwrap() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        removing.commit().await.unwrap();
    };
    tokio::join!(repeat, end);
    let verdicts = world.verdicts().await;
    assert_eq!(verdicts.len(), 3, "{verdicts:?}");
    assert_eq!(verdicts.last().unwrap(), &("duplicate".to_owned(), 1));
    let mut kinds: Vec<String> = world.events().await.into_iter().map(|(kind, _)| kind).collect();
    kinds.sort();
    assert_eq!(kinds, ["extra_payment.received", "order.paid", "order.paid"], "one payment each, and a second one");
}

/// For random rows, exactly those are deleted that the rule names, written a second time in another way.
#[sqlx::test(migrator = "MIGRATOR")]
async fn of_random_rows_exactly_those_go_that_may(db: PgPool) {
    const ORDERS: [&str; 8] =
        ["pending", "paid", "closed", "refunding", "partially_refunded", "refunded", "paid", "closed"];
    for (n, status) in ORDERS.iter().enumerate() {
        order(&db, &format!("O{n}"), status).await;
    }
    let age = || (-3..3i64).prop_map(|seconds| BOUND + SECOND * i32::try_from(seconds).unwrap());
    let row = (age(), age(), any::<bool>(), 0..12usize, prop::sample::select(CaseKind::ALL), 0..30usize);
    let rows = prop::collection::vec(row, 60..90);
    let mut rows = rows.new_tree(&mut TestRunner::deterministic()).unwrap().current();
    // Callbacks come as time goes on.
    rows.sort_by_key(|row| row.0);
    let (mut keys, mut events, mut cases) = (Vec::new(), Vec::new(), Vec::new());
    let mut stored = Vec::new();
    for (n, (at, other, flag, which, kind, status)) in rows.iter().enumerate() {
        let name = format!("{n:03}");
        key(&db, &name, *at, flag.then_some(*other)).await;
        event(&db, &name, flag.then_some(*at)).await;
        let of = format!("O{which}");
        let ours = ORDERS.get(*which);
        callback(&db, &name, Some(&of), *at).await;
        let status = ["open", "proposed", "resolved"][(*status).min(2)];
        let order = ours.map(|_| of.as_str());
        case(&db, Case { kind: *kind, status, of: order, updated_at: *other, ..over(&name) }).await;
        let done = ours.is_none_or(|status| !matches!(*status, "pending" | "refunding"));
        let is_old = |at: OffsetDateTime| at < BOUND;
        keys.extend((!is_old(*at) || *flag && !is_old(*other)).then(|| name.clone()));
        events.extend((!*flag || !is_old(*at)).then(|| name.clone()));
        let goes = status == "resolved" && is_old(*other) && done && !kind.is_its_only_memory();
        cases.extend((!goes).then(|| name.clone()));
        stored.push((name, *at, order.map(str::to_owned), done, status));
    }
    seen(&db, 1000).await;
    remove_keys(&db).await;
    remove_events(&db).await;
    remove_callbacks(&db).await;
    remove_cases(&db).await;
    assert_eq!(texts(&db, KEYS).await, keys);
    assert_eq!(texts(&db, EVENTS).await, events);
    assert_eq!(texts(&db, CASES).await, cases);
    let needed = |order: &Option<String>| {
        order.is_some() && stored.iter().any(|(_, _, of, _, status)| of == order && *status != "resolved")
    };
    let callbacks = stored.iter().filter(|(_, at, of, done, _)| *at >= BOUND || !*done || needed(of));
    let callbacks: Vec<&str> = callbacks.map(|(name, ..)| name.as_str()).collect();
    assert_eq!(texts(&db, CALLBACKS).await, callbacks);
    for left in [keys.len(), events.len(), cases.len(), callbacks.len()] {
        assert!((10..rows.len() - 10).contains(&left), "{left} of {}: some went, some stayed", rows.len());
    }
}

/// Removes whatever is over by the clock of the next day, for a test that asks what is left to know. Every event counts
/// as published, every case as resolved.
pub async fn forget(db: &PgPool) {
    let mut connection = db.acquire().await.unwrap();
    for sql in [
        "update events set published_at = now()",
        "update cases set status = 'resolved'",
        "insert into stats_progress (seq, next_seq, hour, refreshed_at) values (1000000, 1000000, now(), now())
         on conflict do nothing",
    ] {
        connection.execute(sql).await.unwrap();
    }
    drop(connection);
    let none = Some(Duration::ZERO);
    let periods = Periods { events: none, callbacks: none, cases: none };
    round(db, &Clock::fixed(Clock::system().now() + Duration::days(1)), periods).await;
}

/// The bytes of a dead letter leave with the callbacks, and not while people may still replay them.
#[sqlx::test(migrator = "MIGRATOR")]
async fn bytes_of_dead_letters_leave_when_their_case_is_resolved(db: PgPool) {
    let sql = "insert into cases (id, kind, subject_ref, evidence, status, created_at, updated_at)
               values (lpad($1, 32, '0'), 'dead_letter', $1, '{}', $2, $3, $3)";
    let letter = "insert into dead_letters (case_id, body, filed_at) values (lpad($1, 32, '0'), '', $2)";
    for (number, status, at) in [
        ("1", "resolved", BOUND - SECOND),
        ("2", "open", BOUND - SECOND),
        ("3", "proposed", BOUND - SECOND),
        ("4", "resolved", BOUND),
        ("5", "resolved", BOUND - SECOND),
        ("6", "resolved", BOUND - SECOND),
    ] {
        sqlx::query(sql).bind(number).bind(status).bind(at).execute(&db).await.unwrap();
        sqlx::query(letter).bind(number).bind(at).execute(&db).await.unwrap();
    }
    let steps = removed(&db, (), async |tx, (), limit| retention::dead_letters(tx, BOUND, limit).await).await;
    assert_eq!(steps, [2, 1]);
    let left = "select subject_ref::text from cases join dead_letters on case_id = id order by 1";
    assert_eq!(texts(&db, left).await, ["2", "3", "4"]);
    assert_eq!(texts(&db, CASES).await.len(), 6, "the cases stay");
}
