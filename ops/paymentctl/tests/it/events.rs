//! Events listed, shown and published again, and an order explained.

use domain::OrderId;
use domain::message::event::Event;
use paymentctl::answer::{Answer, Problem};
use paymentctl::events::{self, Command};
use paymentctl::explain;
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::events as outbox;

use crate::world::{PAYER, line, order, place, texts};

async fn run(db: &PgPool, words: &str) -> Result<Answer, Problem> {
    events::run(&place(db), &line::<Command>(words), Some("alice")).await
}

/// Writes `order.paid` and `order.closed` of an order, and whatever `others` are called; the first two are out, for `ago`.
async fn write(db: &PgPool, order: OrderId, ago: &str) {
    testkit::make_up_facts(db).await;
    let event = |kind: &'static str| Event {
        event_id: format!("{kind}:{order}"),
        kind,
        order_id: Some(order),
        data: json!({ "order_no": "1" }),
    };
    let mut connection = db.acquire().await.unwrap();
    let now = Clock::system().now();
    outbox::append(&mut connection, &[event("order.paid"), event("order.closed")], now).await.unwrap();
    sqlx::query("update events set published_at = now() - $2::text::interval where order_id = $1")
        .bind(order.to_string())
        .bind(ago)
        .execute(db)
        .await
        .unwrap();
}

async fn waiting(db: &PgPool) -> Vec<String> {
    texts(db, "select event_id from events where published_at is null order by seq").await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn events_are_published_again_by_id_by_order_and_by_time(db: PgPool) {
    let ((old, old_no), (new, _)) = (order(&db).await, second(&db).await);
    write(&db, old, "3 hours").await;
    write(&db, new, "1 minute").await;
    let (paid, closed) = (format!("order.paid:{old}"), format!("order.closed:{old}"));

    for words in [format!("--id {paid}"), format!("--order {old_no}"), "--since 4h --until 2h".to_owned()] {
        let dry = run(&db, &format!("republish {words}")).await.unwrap();
        assert!(dry.text.contains("nothing was changed, --yes does it"), "{}", dry.text);
        assert_eq!(waiting(&db).await, [""; 0]);
    }
    let first = run(&db, "list --since 4h --limit 1").await.unwrap();
    assert!(first.text.contains("there are later ones than these 1") && first.text.contains(&paid), "{}", first.text);
    run(&db, &format!("republish --id {paid} --yes")).await.unwrap();
    assert_eq!(waiting(&db).await, [&*paid]);
    let rest = run(&db, &format!("republish --order {old} --yes")).await.unwrap();
    assert_eq!((&rest.json["events"], &rest.json["not_out_yet"]), (&json!([closed]), &json!([paid])));
    assert_eq!(waiting(&db).await, [&*paid, &closed], "in the order in which they happened");
    assert!(run(&db, "republish --since 4h --until 2h --yes").await.unwrap().text.contains("nothing to publish again"));
    run(&db, "republish --since 2h --until 0s --yes").await.unwrap();
    assert_eq!(waiting(&db).await.len(), 4);
}

/// Another order of another user: a key is used once.
async fn second(db: &PgPool) -> (OrderId, ()) {
    sqlx::query("update idempotency_keys set user_id = 'buyer-2'").execute(db).await.unwrap();
    (order(db).await.0, ())
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_had_an_event_published_again_is_written_down_with_it(db: PgPool) {
    let (id, _) = order(&db).await;
    write(&db, id, "1 minute").await;
    let paid = format!("order.paid:{id}");
    let was_out = texts(&db, "select date_trunc('second', published_at)::text from events limit 1").await;
    run(&db, &format!("republish --order {id}")).await.unwrap();
    assert_eq!(run(&db, &format!("show {paid}")).await.unwrap().json["republishes"], json!([]), "not by a dry run");
    run(&db, &format!("republish --id {paid} --yes")).await.unwrap();
    run(&db, &format!("republish --order {id} --yes")).await.unwrap();

    let shown = run(&db, &format!("show {paid}")).await.unwrap();
    let once = shown.json["republishes"].as_array().unwrap();
    assert_eq!(once.len(), 1, "the second found it waiting: {once:?}");
    assert_eq!(once[0]["republished_by"], "paymentctl/alice");
    assert_eq!(once[0]["database_user"], texts(&db, "select session_user::text").await[0].as_str());
    let before = "select date_trunc('second', published_at)::text from event_republishes order by id limit 1";
    assert_eq!(texts(&db, before).await, was_out);
    assert!(shown.text.contains("and again at the request of paymentctl/alice"), "{}", shown.text);
    let text = explain::run(&place(&db), &id.to_string()).await.unwrap().text;
    for line in ["order.paid:{} published", "order.paid:{} to be published again, by paymentctl/alice"] {
        assert!(text.contains(&line.replace("{}", &id.to_string())), "{line}: {text}");
    }
    for words in [format!("republish --id {paid} --yes"), format!("republish --order {id} --yes")] {
        let unsigned = events::run(&place(&db), &line::<Command>(&words), None).await.unwrap_err();
        assert!(unsigned.usage && unsigned.said == "no operator is named", "{unsigned}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_slip_publishes_nothing(db: PgPool) {
    let (id, _) = order(&db).await;
    write(&db, id, "1 minute").await;
    for (words, usage, named) in [
        ("republish --since 1h --until 0s --limit 1 --yes", false, "more than 1 events are requested"),
        ("republish --since 1h --until 2h --yes", true, "before it begins"),
        ("republish --since 1h --until 1h --yes", true, "before it begins"),
        ("republish --id order.paid:nobody --yes", false, "there is no event order.paid:nobody"),
        ("republish --order NOBODY --yes", false, "there is no order NOBODY"),
        ("show nothing", false, "there is no event nothing"),
    ] {
        let problem = run(&db, words).await.unwrap_err();
        assert_eq!(problem.usage, usage, "{problem}");
        assert!(problem.to_string().contains(named), "{problem}");
    }
    assert_eq!(waiting(&db).await, [""; 0]);
    let all = run(&db, &format!("republish --order {id} --limit 2 --yes")).await.unwrap();
    assert_eq!(all.json["republished"], 2, "as many as the limit are not too many");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn events_are_listed_and_shown(db: PgPool) {
    let (id, _) = order(&db).await;
    write(&db, id, "1 minute").await;
    run(&db, &format!("republish --id order.closed:{id} --yes")).await.unwrap();
    let ids = async |words: &str| -> Vec<String> {
        let answer = run(&db, words).await.unwrap();
        answer.json["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["type"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids("list").await, ["order.paid", "order.closed"]);
    assert_eq!(ids("list --unpublished").await, ["order.closed"]);
    assert_eq!(ids("list --since 1h").await, ["order.paid"]);
    assert_eq!(ids("list --limit 1").await, ["order.closed"], "the newest");
    assert_eq!(ids(&format!("list --order {id}")).await, ["order.paid", "order.closed"]);
    for (words, more) in [("list --limit 1", "older"), ("list --since 1h --limit 1", ""), ("list --limit 2", "")] {
        let answer = run(&db, words).await.unwrap();
        assert_eq!(answer.json["more"], !more.is_empty(), "{words}");
        assert_eq!(answer.text.contains("ones than these"), !more.is_empty(), "{words}: {}", answer.text);
        assert!(answer.text.contains(more) && answer.json["events"][0]["data"].is_null(), "{words}: {}", answer.text);
    }
    let shown = run(&db, &format!("show order.paid:{id}")).await.unwrap();
    assert!(shown.text.contains("\"order_no\": \"1\""), "{}", shown.text);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_pending_order_is_explained_with_what_is_expected_next(db: PgPool) {
    let (id, order_no) = order(&db).await;
    let answer = explain::run(&place(&db), order_no.as_str()).await.unwrap();
    for part in ["created for user buyer-1", "payment P", "begun", "POST /v1/orders", "check created as job"] {
        assert!(answer.text.contains(part), "{part}: {}", answer.text);
    }
    let next = answer.json["next"].as_array().unwrap();
    let starts = |n: usize, with: &str| assert!(next[n].as_str().unwrap().starts_with(with), "{next:?}");
    starts(0, "the buyer can pay until");
    starts(1, "check due at");
    for text in [&answer.text, &answer.json.to_string()] {
        assert!(!text.contains(PAYER) && !text.contains("secret-key"), "{text}");
    }
    sqlx::query("delete from jobs").execute(&db).await.unwrap();
    let alone = explain::run(&place(&db), &id.to_string()).await.unwrap();
    assert!(alone.text.contains("no check is due"), "{}", alone.text);
    let problem = explain::run(&place(&db), "NOBODY").await.unwrap_err();
    assert!(problem.said.contains("there is no order NOBODY"), "{problem}");
}
