//! Cases listed, shown, replayed, discarded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use broker::callback_of;
use domain::{CaseId, CaseKind, CaseStatus};
use paymentctl::answer::{Answer, Problem};
use paymentctl::cases::{self, Command};
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::{cases as rows, dead_letters};
use time::Duration;

use crate::world::{case, line, place, texts};

const NOW: Duration = Duration::ZERO;

async fn run(db: &PgPool, words: &str) -> Result<Answer, Problem> {
    cases::run(&place(db), &line::<Command>(words), Some("alice")).await
}

async fn ids(db: &PgPool, words: &str) -> Vec<String> {
    let answer = run(db, words).await.unwrap();
    answer.json["cases"].as_array().unwrap().iter().map(|case| case["id"].as_str().unwrap().to_owned()).collect()
}

/// A dead letter as an older release kept it: with the bytes of the callback.
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

/// What the relay does with cases of an older release, in steps of two.
async fn move_bytes(db: &PgPool) {
    let mut connection = db.acquire().await.unwrap();
    let callback = |bytes: &[u8]| callback_of(bytes).ok();
    while dead_letters::move_bytes(&mut connection, callback, 2).await.unwrap().reached.is_some() {}
}

/// A case of a dead letter whose bytes are kept apart.
async fn filed(db: &PgPool, number: &str) -> CaseId {
    let id = case(db, (CaseKind::DeadLetter, number), letter(), NOW).await;
    move_bytes(db).await;
    id
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
    let id = filed(&db, "job:7").await;
    let evidence = rows::get(&db, id).await.unwrap().unwrap().evidence;
    let before = everything(&db).await;
    let dry = run(&db, &format!("replay {id}")).await.unwrap();
    let what = "would be replayed: a callback of alipay for account main, received at 2026-01-05T02:21:08Z";
    assert!(dry.done && dry.text.contains(what), "{}", dry.text);
    assert_eq!(everything(&db).await, before);

    let done = run(&db, &format!("replay {id} {id} --yes")).await.unwrap();
    assert!(done.done && done.text.ends_with("1 of 1 case replayed"), "{}", done.text);
    let payload: Value = sqlx::query_scalar("select payload from jobs").fetch_one(&db).await.unwrap();
    let stored = json!({
        "method": "alipay", "account": "main", "headers": [["x-signed", "yes"]], "body": "YnV5ZXI9c2VjcmV0",
        "received_at": "2026-01-05T02:21:08Z",
    });
    assert_eq!(payload, stored);
    let ended = rows::get(&db, id).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.resolved_by.as_deref()), (CaseStatus::Resolved, Some("paymentctl/alice")));
    assert_eq!((&ended.history[0]["what"], &ended.evidence), (&json!("replayed"), &evidence));

    let again = run(&db, &format!("replay {id} --yes")).await.unwrap();
    assert!(!again.done && again.text.contains("is resolved already, by paymentctl/alice"), "{}", again.text);
    assert_eq!(texts(&db, "select kind from jobs").await.len(), 1, "no second job");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_no_callback_stays_and_stops_no_other(db: PgPool) {
    let mut nudge = letter();
    nudge["queue"] = json!("payment.checks");
    let mut gone = letter();
    gone.as_object_mut().unwrap().remove("body");
    let poison = json!({ "queue": "payment.callbacks", "body": STANDARD.encode("{\"method\":\"alipay\"}\n") });
    let wrong = [
        (CaseKind::LatePayment, json!({}), "holds no message to replay"),
        (CaseKind::DeadLetter, nudge, "whose job goes on by itself"),
        (CaseKind::DeadLetter, gone, "its bytes are no longer kept"),
        (CaseKind::DeadLetter, json!({ "body": "AA==" }), "is no callback that can be read"),
        (CaseKind::DeadLetter, poison, "is no callback that can be read"),
    ];
    let mut words = "replay --yes".to_owned();
    for (n, (kind, evidence, _)) in wrong.iter().enumerate() {
        words += &format!(" {}", case(&db, (*kind, &n.to_string()), evidence.clone(), NOW).await);
    }
    words += &format!(" {}", filed(&db, "good").await);
    let late = case(&db, (CaseKind::DeadLetter, "not moved yet"), letter(), NOW).await;
    words += &format!(" {late}");
    let answer = run(&db, &words).await.unwrap();
    assert!(!answer.done && answer.text.ends_with("1 of 7 cases replayed"), "{}", answer.text);
    assert!(answer.text.contains("its bytes are still in the case"), "{}", answer.text);
    for (_, _, why) in wrong {
        assert!(answer.text.contains(why), "{why}: {}", answer.text);
    }
    assert_eq!(texts(&db, "select subject_ref from cases where status = 'resolved'").await, ["good"]);
    assert_eq!(texts(&db, "select kind from jobs").await, ["callback"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_case_is_discarded_with_a_reason_and_nothing_before_yes(db: PgPool) {
    let id = case(&db, (CaseKind::UnknownOrder, "4200"), json!({}), NOW).await;
    let words = format!("discard {id} --reason test-shop");
    let before = everything(&db).await;
    assert!(run(&db, &words).await.unwrap().text.contains("nothing was changed; --yes does it"));
    assert_eq!(everything(&db).await, before);
    let command = line::<Command>(&format!("{words} --yes"));
    let problem = cases::run(&place(&db), &command, None).await.unwrap_err();
    assert!(problem.usage && problem.said == "no operator is named", "{problem}");
    assert_eq!(everything(&db).await, before);
    run(&db, &format!("{words} --yes")).await.unwrap();
    let ended = rows::get(&db, id).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.resolution.as_deref()), (CaseStatus::Resolved, Some("test-shop")));
    let user = texts(&db, "select session_user::text").await;
    assert_eq!(ended.history[0]["database_user"], user[0].as_str(), "beside the name that the operator gives");
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

/// Another operator acts between the read and the write.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_second_operator_changes_nothing(db: PgPool) {
    let id = case(&db, (CaseKind::DeadLetter, "1"), letter(), NOW).await;
    let seen = rows::get(&db, id).await.unwrap().unwrap();
    propose(&db, id).await;
    let end = rows::End { resolution: "r", by: "b", entry: &json!({}) };
    let moved = rows::end(&mut db.acquire().await.unwrap(), &seen, &end).await;
    assert!(matches!(moved, Err(store::DbError::Moved)), "{moved:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_case_is_shown_without_the_bytes_that_name_the_payer(db: PgPool) {
    // One whose bytes are moved, and one of an older release.
    let ids = [filed(&db, "job:7").await, case(&db, (CaseKind::DeadLetter, "job:8"), letter(), NOW).await];
    for id in ids {
        let shown = run(&db, &format!("show {id}")).await.unwrap();
        let listed = run(&db, "list").await.unwrap();
        for text in [&shown.text, &shown.json.to_string(), &listed.json.to_string()] {
            assert!(!text.contains("zZWNyZXQ"), "{text}");
            assert!(text.contains("payment.in/payment.callbacks"), "{text}");
        }
        let evidence = &shown.json["evidence"];
        assert_eq!((&evidence["size"], evidence.get("body")), (&json!(128), None));
        assert!(evidence["digest"].as_str().unwrap().starts_with("sha256:"));
    }
    let problem = run(&db, &format!("show {}", CaseId::from_u128(1))).await.unwrap_err();
    assert!(!problem.usage && problem.said.contains("there is no case"), "{problem}");
}

/// The cases of an older release: nothing is lost, nothing else changes, and a second round finds nothing.
#[sqlx::test(migrator = "MIGRATOR")]
async fn bytes_move_out_of_the_cases_of_an_older_release(db: PgPool) {
    let poison = json!({ "body": STANDARD.encode("poison"), "queue": "q" });
    for (number, evidence) in [("1", letter()), ("2", poison), ("3", json!({ "body": "no base64" })), ("4", json!({}))]
    {
        case(&db, (CaseKind::DeadLetter, number), evidence, NOW).await;
    }
    case(&db, (CaseKind::UnknownOrder, "5"), json!({ "body": "of another kind" }), NOW).await;
    for _ in 0..2 {
        move_bytes(&db).await;
        assert_eq!(
            texts(&db, "select subject_ref from cases where evidence ? 'body'").await,
            ["5"],
            "other kinds keep their facts"
        );
        let stored = "select subject_ref || ' ' || coalesce(job->>'body', encode(body, 'escape'))
                    from dead_letters join cases on id = case_id order by 1";
        assert_eq!(texts(&db, stored).await, ["1 YnV5ZXI9c2VjcmV0", "2 poison", "3 no base64"]);
        assert_eq!(
            texts(&db, "select distinct version::text from cases").await,
            ["1"],
            "what was seen can be confirmed"
        );
    }
}

/// The database refuses what the tool refuses: for each kind, with and without money that is to go back.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_function_ends_no_case_whose_end_moves_money(db: PgPool) {
    for kind in CaseKind::ALL {
        for (number, evidence) in [("1", json!({})), ("2", json!({ "not_refunded": "later" }))] {
            let id = case(&db, (*kind, number), evidence, NOW).await;
            let seen = rows::get(&db, id).await.unwrap().unwrap();
            let by = async |by: &str| {
                let end = rows::End { resolution: "r", by, entry: &json!({}) };
                rows::end(&mut db.acquire().await.unwrap(), &seen, &end).await
            };
            assert!(by("a1").await.is_err(), "no step that looks like an administrator's");
            assert_eq!(by("paymentctl/b").await.is_err(), seen.end_moves_money(), "{kind} {number}");
        }
    }
}

#[test]
fn a_reason_that_steers_a_terminal_is_refused() {
    use clap::Parser as _;
    #[derive(clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        discard: cases::discard::Discard,
    }
    let id = CaseId::from_u128(1).to_string();
    let parsed = |reason: &str| {
        CommandLine::try_parse_from(["test", &id, "--reason", reason]).map(|line| line.discard.reason).is_ok()
    };
    assert!(parsed("two\nlines"));
    for reason in ["\u{1b}[2K", "a\u{7}", "a\u{202E}b", "a\rb", "\u{9b}2J"] {
        assert!(!parsed(reason), "{reason:?}");
    }
}
