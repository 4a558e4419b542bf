//! Resolved cases that people need again, and payments that were partly refunded.

use axum::http::Method;
use domain::{AccountName, LatePaymentPolicy, PaymentMethod, Policies, RefundReport, RefundState};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::cases::{A, B, both, step};
use crate::support::{Who, returned};
use crate::world::World;

async fn resolved(world: &World, case: &str) {
    let done = step(world, A, case, "resolve", json!({ "note": "seen" })).await;
    assert_eq!((done.status.as_u16(), &done.json()["status"]), (200, &json!("resolved")), "{}", done.body);
}

/// The ids of the events about reopened cases.
async fn reopenings(world: &World) -> Vec<String> {
    let reopened = "select event_id from events where type = 'case.reopened' order by seq";
    sqlx::query_scalar(reopened).fetch_all(&world.db).await.unwrap()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_resolved_case_is_reopened_with_a_reason(db: PgPool) {
    let world = World::new(db).await;
    let case = world.case("unknown_order", None, "4200").await;
    step(&world, A, &case, "reopen", json!({ "reason": "r" })).await.is(409, "case_not_resolved");
    resolved(&world, &case).await;
    for reason in [json!(""), json!(null), json!("x".repeat(2001)), json!("a\u{0}b")] {
        step(&world, A, &case, "reopen", json!({ "reason": reason })).await.is(400, "invalid_fields");
    }
    step(&world, Who::User("u1"), &case, "reopen", json!({ "reason": "r" })).await.is(403, "scope_missing");
    step(&world, A, &"0".repeat(32), "reopen", json!({ "reason": "r" })).await.is(404, "case_not_found");
    assert_eq!(reopenings(&world).await, [""; 0], "what was refused changed nothing");

    let open = step(&world, B, &case, "reopen", json!({ "reason": "the shop found the order" })).await;
    assert_eq!(open.status.as_u16(), 200, "{}", open.body);
    let open = open.json();
    assert_eq!((&open["status"], &open["version"], &open["resolution"]), (&json!("open"), &json!(3), &Value::Null));
    assert_eq!((&open["resolved_by"], &open["proposed_by"]), (&Value::Null, &Value::Null));
    let entry = &open["history"][1];
    assert_eq!((&entry["who"], &entry["what"]), (&json!("a2"), &json!("reopened")));
    assert_eq!(entry["action"], json!({ "reason": "the shop found the order" }));
    assert_eq!(entry["ended"], json!({ "resolution": "seen", "resolved_by": "a1" }));
    assert_eq!(reopenings(&world).await, [format!("case.reopened:{case}:3")]);
    step(&world, A, &case, "reopen", json!({ "reason": "r" })).await.is(409, "case_not_resolved");
    resolved(&world, &case).await;
    step(&world, A, &case, "reopen", json!({ "reason": "once more" })).await;
    assert_eq!(reopenings(&world).await.len(), 2, "each reopening has an event of its own");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_abnormal_refund_that_was_noted_by_mistake_is_redirected(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let refund = world.refund("u1", &id, "k1", &json!({})).await.json();
    world.tell(refund["id"].as_str().unwrap(), &RefundReport::of(RefundState::Abnormal)).await;
    let case: String = world.one("select id::text from cases where kind = 'refund_abnormal'").await;
    resolved(&world, &case).await;
    let open = step(&world, A, &case, "reopen", json!({ "reason": "the card is closed" })).await.json();
    assert_eq!(open["actions"], json!(["abnormal_refund", "note"]));
    let done = both(&world, &case, json!({ "action": "abnormal_refund" })).await;
    assert_eq!(done.status.as_u16(), 200, "{}", done.body);
    let requested: Value = world.one("select payload from jobs where kind = 'refund'").await;
    assert_eq!(requested, json!({ "redirect": "merchant" }));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_case_stays_while_a_rest_of_its_payment_is_left(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    world.close_locally(&id).await;
    let case = world.late_payment(&id, "4200000042").await;
    let part = both(&world, &case, json!({ "action": "refund", "amount": "5" })).await.json();
    assert_eq!((&part["status"], &part["proposed_by"]), (&json!("open"), &Value::Null), "7.34 yuan are left");
    assert!(part["history"][1]["done"].as_str().unwrap().ends_with("7.34 yuan of the payment are left"));
    let first: String = world.one("select id::text from refund_records").await;
    world.tell(&first, &returned()).await;
    let rest = both(&world, &case, json!({ "action": "refund" })).await.json();
    assert_eq!(rest["status"], json!("resolved"), "{rest}");
    let amounts: String =
        world.one("select string_agg(refund_amount::text, ' ' order by id) from refund_records").await;
    assert_eq!(amounts, "5.00 7.34");
}

/// Two people decide that the money stays, and in the meantime the service has requested its refund.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_was_proposed_before_a_new_fact_cannot_be_confirmed(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let refund = world.refund("u1", &id, "k1", &json!({ "amount": "1" })).await.json();
    let case = world.late_payment(&id, "4200000042").await;
    sqlx::query("update cases set kind = 'double_payment', evidence = '{\"not_refunded\": \"another refund\"}'")
        .execute(&world.db)
        .await
        .unwrap();
    let proposed = step(&world, A, &case, "resolve", json!({ "note": "it stays" })).await.json();
    assert_eq!(proposed["status"], json!("proposed"));
    let account = AccountName::parse("main").unwrap();
    let policies: Policies = [(PaymentMethod::Wechat, account, LatePaymentPolicy::Refund)].into_iter().collect();
    world.tell_under(&policies, refund["id"].as_str().unwrap(), &returned()).await;
    step(&world, B, &case, "confirm", json!({ "version": proposed["version"] })).await.is(409, "case_changed");
    let shown = world.request(A, Method::GET, &format!("/v1/admin/cases/{case}"), None).await.json();
    assert_eq!((&shown["status"], &shown["version"]), (&json!("proposed"), &json!(3)));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_case_says_what_can_be_chosen_about_it(db: PgPool) {
    let world = World::new(db).await;
    for (kind, actions) in [
        ("late_payment", json!(["refund", "fulfil", "book_refund", "note"])),
        ("refunded_elsewhere", json!(["refund", "fulfil", "book_refund", "note"])),
        ("double_payment", json!(["refund", "book_refund", "note"])),
        ("refund_closed", json!(["refund_again", "note"])),
        ("dead_letter", json!(["note"])),
    ] {
        let case = world.case(kind, None, kind).await;
        let shown = world.request(A, Method::GET, &format!("/v1/admin/cases/{case}"), None).await.json();
        assert_eq!(shown["actions"], actions, "{kind}");
        resolved(&world, &case).await;
        let shown = world.request(A, Method::GET, &format!("/v1/admin/cases/{case}"), None).await.json();
        assert_eq!(shown["actions"], json!(["reopen"]), "{kind}");
    }
}
