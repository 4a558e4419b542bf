//! The chain over what people did: whatever is changed or removed is named, and what the tool does is in it.

use paymentctl::answer::Answer;
use paymentctl::audit::{self, Command};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use store::MIGRATOR;
use store::tables::audit::{Act, link, recent, record, root};
use time::Duration;

use crate::world::{line, place, texts};

const HOUR: Duration = Duration::hours(1);

async fn run(db: &PgPool, words: &str) -> Answer {
    audit::run(&place(db), &line::<Command>(words)).await.unwrap()
}

async fn act(db: &PgPool, count: i64) {
    let mut connection = db.acquire().await.unwrap();
    for n in 0..count {
        let detail = json!({ "n": n, "note": "退款" });
        let act = Act { subject: "alice", act: "case.confirmed", object: format!("case:{n}"), detail: &detail };
        record(&mut connection, &act).await.unwrap();
    }
}

async fn linked(db: &PgPool, count: i64) {
    act(db, count).await;
    link_all(db).await;
}

async fn link_all(db: &PgPool) {
    let rows = recent(db, HOUR, 1000).await.unwrap();
    link(&mut db.acquire().await.unwrap(), &rows).await.unwrap();
}

async fn set(db: &PgPool, sql: &str) {
    for statement in sql.split(';') {
        sqlx::query(AssertSqlSafe(statement.to_owned()))
            .execute(db)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_empty_log_and_a_sound_one_hold(db: PgPool) {
    let empty = run(&db, "verify").await;
    assert_eq!((empty.text.as_str(), empty.done), ("0 rows linked and none was changed or removed", true));
    // More than one read, and two links at different times.
    linked(&db, 999).await;
    linked(&db, 2).await;
    let answer = run(&db, "verify").await;
    assert!(answer.done, "{}", answer.text);
    assert!(answer.text.starts_with("1001 rows linked and none was changed or removed\nroot 1001:"), "{}", answer.text);
    let noted = root(&db).await.unwrap().to_string();
    assert_eq!((&answer.json["root"], &answer.json["links"]), (&json!(noted), &json!(1001)));
    linked(&db, 1).await;
    assert!(run(&db, &format!("verify --root {noted}")).await.done);
    // What has just been written waits for its link.
    act(&db, 1).await;
    assert!(run(&db, "verify").await.done);
}

/// Each by hand, as the owner of the tables can, and what is said of it.
const TAMPERED: &[(&str, &str)] = &[
    (
        "update audit_log set subject = 'alicf' where id = 3",
        "row 3, or its link 3, was changed; up to link 2 the chain holds",
    ),
    ("update audit_log set at = at + interval '1 microsecond' where id = 3", "row 3, or its link 3, was changed"),
    ("update audit_log set detail = jsonb_set(detail, '{n}', '9') where id = 3", "row 3, or its link 3, was changed"),
    ("update audit_log set database_user = 'x' where id = 5", "row 5, or its link 5, was changed; up to link 4"),
    ("update audit_log set session = '' where id = 1", "row 1, or its link 1, was changed; up to link 0"),
    ("delete from audit_log where id = 3", "row 3 of link 3 is gone; up to link 2"),
    (
        "update audit_chain set hash = set_byte(hash, 31, get_byte(hash, 31) # 1) where n = 3",
        "row 3, or its link 3, was changed",
    ),
    (
        "update audit_chain set hash = set_byte(hash, 0, get_byte(hash, 0) # 1) where n = 5",
        "row 5, or its link 5, was changed",
    ),
    (
        "update audit_chain set prev_hash = set_byte(prev_hash, 0, get_byte(prev_hash, 0) # 1) where n = 3",
        "link 3 does not follow",
    ),
    ("delete from audit_chain where n = 3", "link 3 is gone; up to link 2"),
    ("delete from audit_chain where n = 1", "link 1 is gone; up to link 0"),
    ("delete from audit_log where id = 3; delete from audit_chain where n = 3", "link 3 is gone"),
    // Two rows that have changed places.
    (
        "update audit_chain set audit_id = -audit_id where n in (2, 3); update audit_chain set audit_id = 5 + audit_id where n in (2, 3)",
        "row 3, or its link 2, was changed",
    ),
    // A moment that no type of ours reads.
    ("update audit_log set at = 'infinity' where id = 3", "row 3, or its link 3, was changed"),
    // A link that the chain passes by would hide a row that is still to come.
    (
        "insert into audit_chain (n, audit_id, prev_hash, hash) select -n, 99, prev_hash, hash from audit_chain where n = 3",
        "link -3 is no link of the chain",
    ),
    // Its end is removed: only who noted a root before sees that.
    (
        "delete from audit_log where id = 5; delete from audit_chain where n = 5",
        "the chain ends before link 5, whose root was noted",
    ),
];

#[sqlx::test(migrator = "MIGRATOR")]
async fn whatever_is_changed_or_removed_is_named(db: PgPool) {
    linked(&db, 5).await;
    let noted = root(&db).await.unwrap();
    // As an owner could who goes about it thoroughly.
    set(&db, "alter table audit_chain drop constraint audit_chain_row_fkey; alter table audit_chain drop constraint audit_chain_n_range").await;
    set(&db, "create table log_before as table audit_log; create table chain_before as table audit_chain").await;
    for (sql, said) in TAMPERED {
        set(&db, sql).await;
        let answer = run(&db, &format!("verify --root {noted}")).await;
        assert!(!answer.done && answer.text.starts_with(said), "{sql}: {}", answer.text);
        set(&db, "delete from audit_chain; delete from audit_log").await;
        set(&db, "insert into audit_log overriding system value table log_before; insert into audit_chain table chain_before").await;
        assert!(run(&db, &format!("verify --root {noted}")).await.done, "as before");
    }
}

/// The owner of the tables links everything again, without the row about the owner's own act.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_chain_that_is_written_again_does_not_go_through_a_noted_root(db: PgPool) {
    linked(&db, 5).await;
    let noted = root(&db).await.unwrap();
    set(&db, "delete from audit_chain; update audit_log set subject = 'bob' where id = 4").await;
    link_all(&db).await;
    assert!(run(&db, "verify").await.done, "by itself it holds");
    let answer = run(&db, &format!("verify --root {noted}")).await;
    assert!(
        !answer.done && answer.text.starts_with("at link 5 the chain does not go through the root"),
        "{}",
        answer.text
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn rows_that_no_relay_links_are_named(db: PgPool) {
    linked(&db, 2).await;
    act(&db, 12).await;
    set(&db, "update audit_log set at = now() - interval '2 minutes' where id > 2").await;
    let answer = run(&db, "verify").await;
    assert!(!answer.done);
    assert!(answer.text.contains("12 in no link for a minute: 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, …"), "{}", answer.text);
    assert_eq!(answer.json["unlinked"], 12);
}

/// By SQL alone, as the operators' role could.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_functions_of_the_tool_write_down_who_and_as_which_user(db: PgPool) {
    testkit::make_up_facts(&db).await;
    let case = "lpad('1', 32, '0')";
    set(&db, &format!("insert into cases (id, kind, subject_ref, evidence, created_at, updated_at) values ({case}, 'dead_letter', 'g', '{{}}', now(), now()); \
        insert into dead_letters (case_id, job, filed_at) values ({case}, '{{}}', now()); \
        insert into events (event_id, type, data, occurred_at, published_at) values ('case.opened:1', 'case.opened', '{{}}', now(), now()); \
        select replay_dead_letter({case}); \
        select end_case({case}, 1, 'done', 'paymentctl/alice', '{{}}'); \
        select end_case({case}, 1, 'done', 'paymentctl/bob', '{{}}'); \
        select republish_events(array(select seq from events), 'paymentctl/alice')")).await;
    let acts = texts(&db, "select subject || ' ' || act || ' ' || object || ' ' || (database_user = session_user)::text from audit_log order by id").await;
    let user: String = sqlx::query_scalar("select session_user::text").fetch_one(&db).await.unwrap();
    let id = format!("{:0>32}", 1);
    assert_eq!(
        acts,
        [
            format!("{user} dead_letter.replayed case:{id} true"),
            format!("paymentctl/alice case.resolved case:{id} true"),
            "paymentctl/alice event.republished event:case.opened:1 true".to_owned(),
        ]
    );
    let shown = run(&db, &format!("list --object case:{id}")).await;
    assert!(shown.text.contains("case.resolved") && !shown.text.contains("republished"), "{}", shown.text);
    assert_eq!(run(&db, "list --limit 1").await.json["more"], true);
}
