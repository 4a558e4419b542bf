//! The exports of a process: whose they are, how many run, and when they go.

use export::desk::{Busy, Desk, Known, NoFile, Order, State};
use export::{Format, Selection};
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::order_list::OrderFilter;
use time::Duration;
use tokio_util::sync::CancellationToken;

use crate::world::{AT, Barrier, Place, desk, placed, seen_with, set, until};

fn order(maker: &str) -> Order {
    let selection = Selection::Orders(OrderFilter::default());
    let filters = json!({ "created_from": "2026-11-01" });
    Order { maker: maker.to_owned(), subject: "alice".to_owned(), selection, format: Format::Csv, filters }
}

async fn ended(desk: &Desk, id: &str, maker: &str) -> Known {
    until("the export ends", || !matches!(desk.get(id, maker).unwrap().state, State::Running)).await;
    desk.get(id, maker).unwrap()
}

fn code(known: &Known) -> &'static str {
    match &known.state {
        State::Running => "running",
        State::Done { .. } => "done",
        State::Failed { code, .. } => code,
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_export_is_its_makers_and_leaves_a_row_in_the_log(db: PgPool) {
    placed(&db).await;
    let place = Place::new();
    let desk = desk(&db, &place);
    let id = desk.begin(order("staff alice")).unwrap();
    let known = ended(&desk, &id, "staff alice").await;
    let State::Done { sealed, sums } = &known.state else { panic!("{known:?}") };
    assert_eq!((known.total, known.written, sums.total().count), (Some(6), 6, 6));
    assert_eq!(known.expires_at, Some(AT + Duration::hours(24)));
    let download = desk.fetch(&id, "staff alice").unwrap();
    assert_eq!(download.name, format!("orders-20261129-003005-{}.csv", &id[26..]));
    assert_eq!((download.bytes, download.file.metadata().unwrap().len()), (sealed.bytes, sealed.bytes));
    for stranger in ["alice", "key alice", "staff bob", "staff Alice", ""] {
        assert!(desk.get(&id, stranger).is_none());
        assert!(matches!(desk.fetch(&id, stranger), Err(NoFile::Unknown)));
    }
    assert!(desk.get(&id.to_uppercase(), "staff alice").is_none_or(|_| id == id.to_uppercase()));

    let row: (String, String, String, Value) =
        sqlx::query_as("select subject, act, object, detail from audit_log").fetch_one(&db).await.unwrap();
    let detail = json!({ "kind": "orders", "format": "csv", "filters": { "created_from": "2026-11-01" }, "rows": 6,
        "sha256": sealed.sha256, "bytes": sealed.bytes });
    assert_eq!(row, ("alice".to_owned(), "export.made".to_owned(), format!("export:{id}"), detail));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_third_export_at_once_is_refused(db: PgPool) {
    placed(&db).await;
    let barrier = Barrier::set(&db).await;
    let place = Place::new();
    let desk = desk(&db, &place);
    let ids = [desk.begin(order("a")).unwrap(), desk.begin(order("b")).unwrap()];
    until("both wait", || ids.iter().zip(["a", "b"]).all(|(id, maker)| desk.get(id, maker).unwrap().written == 2))
        .await;
    assert_eq!(desk.begin(order("c")), Err(Busy));
    let known = desk.get(&ids[0], "a").unwrap();
    assert_eq!((code(&known), known.total, known.expires_at), ("running", Some(6), None));
    assert!(matches!(desk.fetch(&ids[0], "a"), Err(NoFile::NotReady)));
    // Time alone ends no export that runs.
    desk.purge(AT + Duration::days(9));
    barrier.open().await;
    for (id, maker) in ids.iter().zip(["a", "b"]) {
        assert_eq!(code(&ended(&desk, id, maker).await), "done");
    }
    until("a slot is free", || desk.begin(order("c")).is_ok()).await;
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_file_is_deleted_after_a_day(db: PgPool) {
    placed(&db).await;
    let place = Place::new();
    let desk = desk(&db, &place);
    let id = desk.begin(order("a")).unwrap();
    ended(&desk, &id, "a").await;
    desk.purge(AT + Duration::hours(24) - Duration::SECOND);
    assert_eq!((desk.get(&id, "a").is_some(), place.files()), (true, vec![format!("{id}.csv")]));
    desk.purge(AT + Duration::hours(24));
    assert_eq!((desk.get(&id, "a").is_none(), place.files().len()), (true, 0));
    assert!(matches!(desk.fetch(&id, "a"), Err(NoFile::Unknown)));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_oldest_of_many_goes_and_only_that_of_the_same_maker(db: PgPool) {
    placed(&db).await;
    let place = Place::new();
    let desk = desk(&db, &place);
    let of_b = desk.begin(order("b")).unwrap();
    ended(&desk, &of_b, "b").await;
    let mut ids = Vec::new();
    for _ in 0..9 {
        let mut id = String::new();
        until("a slot is free", || desk.begin(order("a")).map(|begun| id = begun).is_ok()).await;
        ended(&desk, &id, "a").await;
        ids.push(id);
    }
    let known: Vec<bool> = ids.iter().map(|id| desk.get(id, "a").is_some()).collect();
    assert_eq!(known, [vec![false], vec![true; 8]].concat());
    assert!(desk.get(&of_b, "b").is_some());
    assert_eq!(place.files().len(), 9);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_stop_ends_what_runs_and_deletes_every_file(db: PgPool) {
    placed(&db).await;
    let place = Place::new();
    let desk = desk(&db, &place);
    let done = desk.begin(order("a")).unwrap();
    ended(&desk, &done, "a").await;
    let barrier = Barrier::set(&db).await;
    let running = desk.begin(order("a")).unwrap();
    until("it waits", || desk.get(&running, "a").unwrap().written == 2).await;
    assert_eq!(place.files().len(), 2);
    let stop = CancellationToken::new();
    stop.cancel();
    desk.run(stop).await;
    assert_eq!(place.files(), [""; 0]);
    assert_eq!(code(&desk.get(&running, "a").unwrap()), "cancelled");
    assert_eq!(std::fs::read_dir(place.file("exports")).unwrap().count(), 1, "the lock of the directory");
    assert_eq!(desk.begin(order("a")), Err(Busy), "nothing starts after the stop");
    let acts: i64 = sqlx::query_scalar("select count(*) from audit_log").fetch_one(&db).await.unwrap();
    assert_eq!(acts, 1);
    barrier.open().await;
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_fails_says_why_and_has_no_file(db: PgPool) {
    placed(&db).await;
    let place = Place::new();
    let desk = desk(&db, &place);
    let fails = async |expected: &str| {
        let mut id = String::new();
        until("a slot is free", || desk.begin(order("a")).map(|begun| id = begun).is_ok()).await;
        let known = ended(&desk, &id, "a").await;
        assert_eq!(code(&known), expected, "{known:?}");
        assert!(matches!(desk.fetch(&id, "a"), Err(NoFile::NotReady)));
        assert_eq!(place.files(), [""; 0]);
    };
    // No row in the log, no file.
    set(&db, "alter table audit_log rename to no_log").await;
    fails("database").await;
    set(&db, "alter table no_log rename to audit_log").await;
    seen_with(&db, "amount", "(amount + (random() * 1000000)::int)::numeric(10, 2)").await;
    fails("sums_differ").await;
    set(&db, "drop view payment_orders").await;
    fails("database").await;
    let acts: i64 = sqlx::query_scalar("select count(*) from audit_log").fetch_one(&db).await.unwrap();
    assert_eq!(acts, 0);
}

/// The process itself goes on: it only makes no export.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_directory_that_cannot_be_used_fails_the_export_alone(db: PgPool) {
    placed(&db).await;
    let place = Place::new();
    std::fs::write(place.file("exports"), "a file").unwrap();
    let desk = desk(&db, &place);
    let id = desk.begin(order("a")).unwrap();
    assert_eq!(code(&ended(&desk, &id, "a").await), "disk");
    std::fs::remove_file(place.file("exports")).unwrap();
    let mut id = String::new();
    until("a slot is free", || desk.begin(order("a")).map(|begun| id = begun).is_ok()).await;
    assert_eq!(code(&ended(&desk, &id, "a").await), "done");
}
