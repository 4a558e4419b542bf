//! The audit log is linked while people's actions are written to it concurrently.

use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use store::tables::audit::{self, Act, BEGINNING, Root};
use store::{DbError, MIGRATOR};
use time::Duration;

use super::{PATIENCE, Setup};

/// Links the rows of the last hour, at most this many.
async fn link(connection: &mut PgConnection, limit: i64) -> Result<usize, DbError> {
    let rows = audit::recent(&mut *connection, Duration::hours(1), limit).await?;
    audit::link(connection, &rows).await.map(|_| rows.len())
}

async fn act(connection: &mut PgConnection, who: &str, n: u32) {
    let act = Act { subject: who, act: "case.resolved", object: format!("case:{n}"), detail: &json!({}) };
    audit::record(connection, &act).await.unwrap();
}

/// Where the chain ends; every link of it holds.
async fn end(db: &PgPool) -> Root {
    let from = Root { n: 0, hash: BEGINNING };
    audit::follow(db, from, 1_000_000).await.unwrap_or_else(|fault| panic!("{fault}"))
}

/// Ten thousand by twenty people at once, some of whom roll back: every row is linked, and the chain holds.
#[sqlx::test(migrator = "MIGRATOR")]
async fn ten_thousand_acts_at_once_are_all_linked(db: PgPool) {
    let setup = Setup::new(db.clone()).await;
    setup.start();
    let people = PgPoolOptions::new().max_connections(20).connect_with((*db.connect_options()).clone()).await.unwrap();
    let writing = (0..20).map(|person| {
        let people = people.clone();
        tokio::spawn(async move {
            let who = format!("person-{person}");
            for n in 0..500 {
                let mut tx = people.begin().await.unwrap();
                act(&mut tx, &who, n).await;
                tx.commit().await.unwrap();
                if n % 50 == 0 {
                    let mut tx = people.begin().await.unwrap();
                    act(&mut tx, &who, n).await;
                    tx.rollback().await.unwrap();
                }
            }
        })
    });
    for done in futures_util::future::join_all(writing).await {
        done.unwrap();
    }
    let linked = async {
        while audit::root(&db).await.unwrap().n < 10_000 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, linked).await.expect("all rows are linked");
    assert_eq!(end(&db).await.n, 10_000);
    assert_eq!(audit::unlinked(&db, 0, i64::MAX, Duration::ZERO).await.unwrap(), [0; 0]);
}

/// A relay that has lost the lead without noticing links beside the new one: one of them fails, and nothing forks.
#[sqlx::test(migrator = "MIGRATOR")]
async fn of_two_that_link_at_once_one_fails(db: PgPool) {
    let mut connection = db.acquire().await.unwrap();
    for n in 0..3 {
        act(&mut connection, "alice", n).await;
    }
    let (mut one, mut two) = (db.begin().await.unwrap(), db.begin().await.unwrap());
    assert_eq!(link(&mut one, 2).await.unwrap(), 2);
    let second = async {
        let linked = link(&mut two, 1000).await;
        assert!(matches!(linked, Err(DbError::Constraint(_))), "{linked:?}");
    };
    let commit = async {
        let waits = "select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'";
        let second_waits = async {
            while sqlx::query_scalar::<_, i64>(waits).fetch_one(&db).await.unwrap() == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, second_waits).await.expect("the second waits for the first");
        one.commit().await.unwrap();
    };
    tokio::join!(second, commit);
    two.rollback().await.unwrap();
    assert_eq!(end(&db).await.n, 2);
    assert_eq!(link(&mut connection, 1000).await.unwrap(), 1);
    assert_eq!(end(&db).await.n, 3);
}

/// A row whose transaction began first and ended last is linked after those that were faster.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_row_that_comes_late_is_linked_all_the_same(db: PgPool) {
    let mut slow = db.begin().await.unwrap();
    act(&mut slow, "alice", 1).await;
    let mut connection = db.acquire().await.unwrap();
    act(&mut connection, "bob", 2).await;
    assert_eq!(link(&mut connection, 1000).await.unwrap(), 1);
    slow.commit().await.unwrap();
    assert_eq!(link(&mut connection, 1000).await.unwrap(), 1);
    let order: Vec<i64> =
        sqlx::query_scalar("select audit_id from audit_chain order by n").fetch_all(&db).await.unwrap();
    assert_eq!(order, [2, 1]);
    assert_eq!(end(&db).await.n, 2);
}

/// Rows that came while no relay led for more than an hour, among them one beyond the first slice of numbers.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_relay_that_was_away_links_what_is_old(db: PgPool) {
    let mut connection = db.acquire().await.unwrap();
    act(&mut connection, "alice", 1).await;
    sqlx::query("select setval(pg_get_serial_sequence('audit_log', 'id'), 50000)").execute(&db).await.unwrap();
    act(&mut connection, "bob", 2).await;
    sqlx::query("update audit_log set at = at - interval '2 hours'").execute(&db).await.unwrap();
    assert_eq!(link(&mut connection, 1000).await.unwrap(), 0, "not by the short look");
    let setup = Setup::new(db.clone()).await;
    setup.start();
    let linked = async {
        while audit::root(&db).await.unwrap().n < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, linked).await.expect("all rows are linked");
    assert_eq!(end(&db).await.n, 2);
}
