//! Orders that arrive together are written together, and each request gets its own result.

use std::collections::HashSet;
use std::sync::Arc;

use domain::OrderNo;
use futures_util::future::join_all;
use payment_api::create::writer::OrderWriter;
use runtime::crash::{Fault, Point, plant};
use serde_json::json;
use sqlx::PgPool;
use store::DbError;
use store::tables::orders::{Created, NewOrder};
use time::Duration;
use tokio::task::JoinSet;

/// An order whose key is answered with a number of its own.
fn answered(number: i64) -> NewOrder {
    NewOrder { answer: Some(json!({ "number": number })), ..testkit::new_order() }
}

async fn count(db: &PgPool, table: &str) -> i64 {
    let counted = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
    sqlx::query_scalar(counted).fetch_one(db).await.unwrap()
}

/// How many statements wrote the orders: each leaves its transaction's number on the rows.
async fn statements(db: &PgPool) -> i64 {
    sqlx::query_scalar("select count(distinct xmin::text) from payment_orders").fetch_one(db).await.unwrap()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn many_at_once_share_statements_and_each_hears_its_own_answer(db: PgPool) {
    let writer = Arc::new(OrderWriter::start(db.clone()));
    let mut writing = JoinSet::new();
    for number in 0..300 {
        let writer = writer.clone();
        writing.spawn(async move { (number, writer.create(answered(number)).await) });
    }
    while let Some(written) = writing.join_next().await {
        let (number, created) = written.unwrap();
        let Ok(Created::Answered(saved)) = created else { panic!("order {number} is not answered") };
        assert_eq!(saved.answer, json!({ "number": number }));
    }
    for table in ["payment_orders", "payment_transactions", "jobs", "idempotency_keys"] {
        assert_eq!(count(&db, table).await, 300, "{table}");
    }
    let statements = statements(&db).await;
    assert!((2..150).contains(&statements), "{statements} statements for 300 orders");
}

/// Writes these as one group: a lock on the table holds up both lanes, with one order each, until all have come.
async fn together(db: &PgPool, new: Vec<NewOrder>) -> Vec<Result<Created, DbError>> {
    let writer = Arc::new(OrderWriter::start(db.clone()));
    let mut lock = db.begin().await.unwrap();
    sqlx::query("lock table idempotency_keys in access exclusive mode").execute(&mut *lock).await.unwrap();
    let mut busy = JoinSet::new();
    for lane in 1..=2 {
        let writer = writer.clone();
        busy.spawn(async move { writer.create(testkit::new_order()).await });
        while waiting(db).await < lane {
            tokio::task::yield_now().await;
        }
    }
    let (all, unlocked) = tokio::join!(join_all(new.into_iter().map(|new| writer.create(new))), lock.commit());
    unlocked.unwrap();
    assert!(busy.join_all().await.iter().all(Result::is_ok));
    all
}

/// Statements of this database that wait for a lock.
async fn waiting(db: &PgPool) -> i64 {
    let waiting = "select count(*) from pg_locks join pg_database on oid = database
                   where datname = current_database() and not granted";
    sqlx::query_scalar(waiting).fetch_one(db).await.unwrap()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_taken_key_an_expired_one_and_a_held_one_keep_their_places_in_a_group(db: PgPool) {
    let writer = OrderWriter::start(db.clone());
    let old = testkit::new_order();
    let (taken, expired) = (old.key.key.clone(), format!("{}-expired", old.key.key));
    assert!(matches!(writer.create(old).await, Ok(Created::Unanswered)));
    let mut past = testkit::new_order();
    past.key.key.clone_from(&expired);
    past.key.expires_at = past.created_at - Duration::minutes(1);
    assert!(matches!(writer.create(past).await, Ok(Created::Unanswered)));

    let mut repeat = answered(1);
    repeat.key.key = taken;
    let mut again = answered(2);
    again.key.key = expired;
    let mut held = testkit::new_order();
    held.key.held_until = Some(held.created_at + Duration::seconds(20));
    let outcomes = together(&db, vec![answered(0), repeat, again, held]).await;
    let outcomes: Vec<String> = outcomes
        .into_iter()
        .map(|created| match created.unwrap() {
            Created::Answered(saved) => saved.answer["number"].to_string(),
            Created::Unanswered => "unanswered".to_owned(),
            Created::Taken => "taken".to_owned(),
        })
        .collect();
    assert_eq!(outcomes, ["0", "taken", "2", "unanswered"]);
    // The two lanes' own, the two from before, and three of the four.
    assert_eq!(count(&db, "payment_orders").await, 2 + 2 + 3);
    assert_eq!(statements(&db).await, 2 + 2 + 1, "the three were written by one statement");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn one_that_cannot_be_written_fails_alone(db: PgPool) {
    let writer = OrderWriter::start(db.clone());
    let first = testkit::new_order();
    let number = first.order_no.clone();
    assert!(matches!(writer.create(first).await, Ok(Created::Unanswered)));

    let wrong = NewOrder { order_no: number, ..answered(1) };
    let twice = answered(2);
    let mut same = answered(3);
    same.key.key.clone_from(&twice.key.key);
    let outcomes = together(&db, vec![answered(0), wrong, twice, same, answered(4)]).await;
    let outcome_of = |n: usize| match &outcomes[n] {
        Ok(Created::Answered(saved)) => saved.answer["number"].to_string(),
        Ok(Created::Taken) => "taken".to_owned(),
        Ok(Created::Unanswered) => "unanswered".to_owned(),
        Err(error) => error.to_string(),
    };
    assert_eq!((outcome_of(0), outcome_of(4)), ("0".to_owned(), "4".to_owned()));
    assert_eq!(outcome_of(1), "constraint payment_orders_order_no_key refused the row");
    // Whichever of the two came first.
    let two = HashSet::from([outcome_of(2), outcome_of(3)]);
    assert!(
        two == HashSet::from(["2".into(), "taken".into()]) || two == HashSet::from(["3".into(), "taken".into()]),
        "{two:?}"
    );
    assert_eq!(count(&db, "payment_orders").await, 1 + 2 + 3);
    assert_eq!(count(&db, "idempotency_keys").await, 1 + 2 + 3, "no key without its order");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_caller_who_goes_leaves_an_order_and_no_trace_in_the_lanes(db: PgPool) {
    let writer = OrderWriter::start(db.clone());
    let gone = tokio::time::timeout(std::time::Duration::ZERO, writer.create(answered(1))).await;
    assert!(gone.is_err(), "it had no time");
    assert!(matches!(writer.create(answered(2)).await, Ok(Created::Answered(_))));
}

/// A panic affects only its own order, also in a group, and the lanes continue.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_that_panics_takes_no_other_with_it(db: PgPool) {
    let new: Vec<NewOrder> = (0..20).map(answered).collect();
    let bad = plant(Point::OrderDrafted, new[7].order_no.as_str(), Fault::Panic);
    for (number, created) in together(&db, new).await.into_iter().enumerate() {
        assert_eq!(matches!(created, Ok(Created::Answered(_))), number != 7, "{number}");
    }
    let writer = OrderWriter::start(db.clone());
    for _ in 0..4 {
        let alone = NewOrder { order_no: OrderNo::parse("ORD_BAD_1").unwrap(), ..answered(1) };
        let _bad = plant(Point::OrderDrafted, "ORD_BAD_1", Fault::Panic);
        assert!(writer.create(alone).await.is_err());
        assert!(matches!(writer.create(answered(2)).await, Ok(Created::Answered(_))), "its lane is there");
    }
    assert!(bad.met() >= 2, "in its group and alone");
    assert_eq!(count(&db, "payment_orders").await, 19 + 2 + 4);
}
