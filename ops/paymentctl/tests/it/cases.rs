//! Cases listed, shown, replayed, discarded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paymentctl::answer::{Answer, Problem};
use paymentctl::cases::replay::With;
use paymentctl::cases::{self, Command};
use serde_json::{Value, json};
use shared::db::{MIGRATOR, cases as rows};
use shared::domain::{CaseId, CaseKind, CaseStatus};
use sqlx::PgPool;
use time::Duration;

use crate::world::{case, line, place, texts};

const NOW: Duration = Duration::ZERO;

async fn run(db: &PgPool, words: &str) -> Result<Answer, Problem> {
    let with = With { gateways: None, operator: Some("alice") };
    cases::run(&place(db), &line::<Command>(words), with).await
}

async fn ids(db: &PgPool, words: &str) -> Vec<String> {
    let answer = run(db, words).await.unwrap();
    answer.json["cases"].as_array().unwrap().iter().map(|case| case["id"].as_str().unwrap().to_owned()).collect()
}

/// A callback as the relay keeps it of a dead letter.
fn letter() -> Value {
    let message = concat!(
        r#"{"method":"alipay","account":"main","received_at":"2026-01-05T02:21:08Z","job_id":7,"headers":[["x-signed","yes"]]}"#,
        "\nbuyer=secret",
    );
    json!({
        "queue": "payment.callbacks",
        "reason": "rejected",
        "origin": "payment.in/payment.callbacks",
        "headers": [],
        "callback": {
            "method": "alipay", "account": "main", "received_at": "2026-01-05T02:21:08Z", "headers": [["x-signed", "yes"]],
        },
        "body": STANDARD.encode(message),
    })
}

async fn everything(db: &PgPool) -> Vec<String> {
    let mut rows = texts(db, "select row(j.*)::text from jobs j order by id").await;
    rows.extend(texts(db, "select row(c.*)::text from cases c order by id").await);
    rows
}

async fn propose(db: &PgPool, id: CaseId) {
    let mut case = rows::get(db, id).await.unwrap().unwrap();
    (case.status, case.proposed_by) = (CaseStatus::Proposed, Some("bob".to_owned()));
    case.proposed_action = Some(json!({ "action": "fulfil" }));
    let now = case.created_at;
    rows::step(&mut db.acquire().await.unwrap(), &case, &json!({}), now).await.unwrap();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn lists_are_by_kind_state_and_age_the_oldest_first(db: PgPool) {
    assert_eq!(run(&db, "list").await.unwrap().text, "no such case");
    let old = case(&db, (CaseKind::DeadLetter, "1"), letter(), Duration::hours(3)).await.to_string();
    let late = case(&db, (CaseKind::LatePayment, "2"), json!({}), Duration::hours(2)).await;
    let new = case(&db, (CaseKind::DeadLetter, "3"), letter(), NOW).await.to_string();
    propose(&db, late).await;
    let late = late.to_string();
    assert_eq!(ids(&db, "list").await, [&*old, &late, &new], "open and proposed");
    assert_eq!(ids(&db, "list --kind dead_letter").await, [&*old, &new]);
    assert_eq!(ids(&db, "list --status proposed").await, [&*late]);
    assert_eq!(ids(&db, "list --older-than 1h").await, [&*old, &late]);
    assert_eq!(ids(&db, "list --older-than 150m").await, [&*old]);
    assert_eq!(ids(&db, "list --limit 1").await, [&*new], "the newest");
    for (words, more) in [("list --limit 2", true), ("list --limit 3", false)] {
        let answer = run(&db, words).await.unwrap();
        assert_eq!(
            (answer.text.contains("there are older ones"), &answer.json["more"]),
            (more, &json!(more)),
            "{words}"
        );
    }
    run(&db, &format!("discard {old} --reason seen --yes")).await.unwrap();
    assert_eq!(ids(&db, "list").await, [&*late, &new]);
    assert_eq!(ids(&db, "list --status resolved").await, [&*old]);
    assert_eq!(ids(&db, "list --status all").await.len(), 3);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_dead_letter_becomes_the_job_of_its_very_bytes_and_nothing_before_yes(db: PgPool) {
    let id = case(&db, (CaseKind::DeadLetter, "job:7"), letter(), NOW).await;
    let before = everything(&db).await;
    let dry = run(&db, &format!("replay {id}")).await.unwrap();
    assert!(dry.done && dry.text.contains("would be replayed; not verified here"), "{}", dry.text);
    assert_eq!(everything(&db).await, before);

    let done = run(&db, &format!("replay {id} {id} --yes")).await.unwrap();
    assert!(done.done && done.text.ends_with("1 of 1 case replayed"), "{}", done.text);
    let payload: Value = sqlx::query_scalar("select payload from jobs").fetch_one(&db).await.unwrap();
    let kept = json!({
        "method": "alipay", "account": "main", "headers": [["x-signed", "yes"]], "body": "YnV5ZXI9c2VjcmV0",
        "received_at": "2026-01-05T02:21:08Z",
    });
    assert_eq!(payload, kept);
    let ended = rows::get(&db, id).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.resolved_by.as_deref()), (CaseStatus::Resolved, Some("paymentctl/alice")));
    assert_eq!((&ended.history[0]["what"], &ended.evidence), (&json!("replayed"), &letter()));

    let again = run(&db, &format!("replay {id} --yes")).await.unwrap();
    assert!(!again.done && again.text.contains("is resolved already, by paymentctl/alice"), "{}", again.text);
    assert_eq!(texts(&db, "select kind from jobs").await.len(), 1, "no second job");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_no_callback_stays_and_stops_no_other(db: PgPool) {
    let mut nudge = letter();
    nudge["queue"] = json!("payment.checks");
    let poison = json!({ "queue": "payment.callbacks", "body": STANDARD.encode("{\"method\":\"alipay\"}\n") });
    let wrong = [
        (CaseKind::LatePayment, json!({}), "holds no message to replay"),
        (CaseKind::DeadLetter, nudge, "whose job goes on by itself"),
        (CaseKind::DeadLetter, json!({ "queue": "payment.callbacks" }), "its bytes were not kept"),
        (CaseKind::DeadLetter, json!({ "body": "AA==" }), "it has no first line"),
        (CaseKind::DeadLetter, poison, "missing field `account`"),
    ];
    let mut words = "replay --yes".to_owned();
    for (n, (kind, evidence, _)) in wrong.iter().enumerate() {
        words += &format!(" {}", case(&db, (*kind, &n.to_string()), evidence.clone(), NOW).await);
    }
    words += &format!(" {}", case(&db, (CaseKind::DeadLetter, "good"), letter(), NOW).await);
    let answer = run(&db, &words).await.unwrap();
    assert!(!answer.done && answer.text.ends_with("1 of 6 cases replayed"), "{}", answer.text);
    for (_, _, why) in wrong {
        assert!(answer.text.contains(why), "{why}: {}", answer.text);
    }
    assert_eq!(texts(&db, "select gateway_no from cases where status = 'resolved'").await, ["good"]);
    assert_eq!(texts(&db, "select kind from jobs").await, ["callback"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_case_is_discarded_with_a_reason_and_nothing_before_yes(db: PgPool) {
    let id = case(&db, (CaseKind::UnknownOrder, "4200"), json!({}), NOW).await;
    let words = format!("discard {id} --reason test-shop");
    let before = everything(&db).await;
    assert!(run(&db, &words).await.unwrap().text.contains("nothing was changed; --yes does it"));
    assert_eq!(everything(&db).await, before);
    let unnamed = With { gateways: None, operator: None };
    let command = line::<Command>(&format!("{words} --yes"));
    let problem = cases::run(&place(&db), &command, unnamed).await.unwrap_err();
    assert!(problem.usage && problem.said == "it is not said who does it", "{problem}");
    assert_eq!(everything(&db).await, before);
    run(&db, &format!("{words} --yes")).await.unwrap();
    let ended = rows::get(&db, id).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.resolution.as_deref()), (CaseStatus::Resolved, Some("test-shop")));
    let problem = run(&db, &format!("{words} --yes")).await.unwrap_err();
    assert!(problem.said.contains("is resolved already"), "{problem}");
}

/// Two people decide about money, and about what one of them has proposed.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_two_people_decide_cannot_be_ended_here(db: PgPool) {
    let reserved = case(&db, (CaseKind::UnknownRefund, "1"), json!({}), NOW).await;
    let waiting = json!({ "not_refunded": "another refund of the order is under way" });
    let goes_back = case(&db, (CaseKind::DoublePayment, "3"), waiting, NOW).await;
    let proposed = case(&db, (CaseKind::LatePayment, "2"), json!({}), NOW).await;
    propose(&db, proposed).await;
    let before = everything(&db).await;
    let held = "holds money until two people have agreed";
    for (id, why) in [(reserved, held), (goes_back, held), (proposed, "bob has proposed something")] {
        let problem = run(&db, &format!("discard {id} --reason r --yes")).await.unwrap_err();
        assert!(problem.said.contains(why) && problem.hint.contains("/v1/admin/cases/"), "{problem}");
        let answer = run(&db, &format!("replay {id} --yes")).await.unwrap();
        assert!(!answer.done && answer.text.contains(why), "{}", answer.text);
    }
    assert_eq!(everything(&db).await, before);
}

/// Somebody acts between the look and the write.
#[sqlx::test(migrator = "MIGRATOR")]
async fn whoever_is_second_changes_nothing(db: PgPool) {
    let id = case(&db, (CaseKind::DeadLetter, "1"), letter(), NOW).await;
    let seen = rows::get(&db, id).await.unwrap().unwrap();
    propose(&db, id).await;
    let end = rows::End { resolution: "r", by: "b", entry: &json!({}) };
    let moved = rows::end(&mut db.acquire().await.unwrap(), &seen, &end, seen.created_at).await;
    assert!(matches!(moved, Err(shared::db::DbError::Moved)), "{moved:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_case_is_shown_without_the_bytes_that_name_the_payer(db: PgPool) {
    let id = case(&db, (CaseKind::DeadLetter, "job:7"), letter(), NOW).await;
    let shown = run(&db, &format!("show {id}")).await.unwrap();
    for text in [&shown.text, &shown.json.to_string()] {
        assert!(text.contains("128 bytes, sha256:") && !text.contains("zZWNyZXQ"), "{text}");
        assert!(text.contains("payment.in/payment.callbacks"), "{text}");
    }
    let problem = run(&db, &format!("show {}", CaseId::from_u128(1))).await.unwrap_err();
    assert!(!problem.usage && problem.said.contains("there is no case"), "{problem}");
}
