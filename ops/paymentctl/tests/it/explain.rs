//! An order explained, by any number that the operator has.

use domain::{CaseKind, OrderId};
use paymentctl::answer::{Answer, Problem};
use paymentctl::explain;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use time::Duration;

use crate::world::{case, order, place};

async fn run(db: &PgPool, number: &str) -> Result<Answer, Problem> {
    explain::run(&place(db), number).await
}

async fn set(db: &PgPool, sql: &'static str) {
    sqlx::raw_sql(sql).execute(db).await.unwrap();
}

/// Another order of another user: a key is used once.
async fn second(db: &PgPool) -> OrderId {
    set(db, "update idempotency_keys set user_id = 'buyer-2'").await;
    order(db).await.0
}

/// A refund, a second payment, a case and an event of the only order.
const WHOLE: &str = "
    update payment_transactions set status = 'succeeded', gateway_no = '4200002219202611';
    insert into payment_transactions (id, order_id, transaction_no, payment_method, action_type, amount, status, gateway_no, created_at,
        updated_at)
      select lpad('2', 32, '0'), id, 'P2', payment_method, 'payment', amount, 'succeeded', '4200002219202612', now(), now()
      from payment_orders;
    insert into refund_records (id, order_id, transaction_id, refund_no, refund_amount, gateway_refund_no, requested_by, created_at, updated_at)
      select lpad('e', 32, '0'), id, id, 'REFUND_0001', 1, '50300000000001', 'u', now(), now() from payment_orders;
    insert into cases (id, kind, order_id, subject_ref, evidence, created_at, updated_at)
      select lpad('f', 32, '0'), 'double_payment', id, '4200002219202612', '{}', now(), now() from payment_orders;
    insert into events (event_id, type, order_id, data, occurred_at)
      select 'order.paid:' || id, 'order.paid', id, '{\"secret\": true}', now() from payment_orders";

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_number_leads_to_the_order(db: PgPool) {
    testkit::make_up_facts(&db).await;
    let (id, order_no) = order(&db).await;
    set(&db, WHOLE).await;
    let (refund, case) = (format!("{:0>32}", "e"), format!("{:0>32}", "f"));
    for number in [
        &*id.to_string(),
        order_no.as_str(),
        &order_no.as_str()[..8],
        "4200002219202611",
        "4200002219202612",
        "420000221920261",
        "REFUND_0001",
        "REFUND_0",
        "50300000000001",
        "50300000",
        &refund,
        &case,
        &format!("order.paid:{id}"),
        &format!(" {order_no}\n"),
    ] {
        let told = run(&db, number).await.unwrap_or_else(|problem| panic!("{number}: {problem}"));
        assert_eq!(told.json["order"]["id"], json!(id.to_string()), "{number}");
        assert!(!told.json.to_string().contains("secret"), "{}", told.json);
    }
    let told = run(&db, order_no.as_str()).await.unwrap();
    for part in ["refund REFUND_0001 of 1.00 yuan requested by u", "(double_payment) opened", "order.paid:"] {
        assert!(told.text.contains(part), "{part}: {}", told.text);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn times_are_those_of_beijing(db: PgPool) {
    let (id, _) = order(&db).await;
    set(&db, "update payment_orders set created_at = '2026-01-05 18:21:08.5Z', expires_at = '2026-01-05 18:51:08Z'")
        .await;
    let told = run(&db, &id.to_string()).await.unwrap();
    assert!(told.text.contains("2026-01-06T02:21:08.500+08:00"), "{}", told.text);
    assert!(told.text.contains("the time to pay ended at 2026-01-06T02:51:08+08:00"), "{}", told.text);
    assert_eq!(told.json["order"]["created_at"], json!("2026-01-06T02:21:08+08:00"));
    let moments = told.json["timeline"].as_array().unwrap();
    assert!(moments.iter().all(|moment| moment["at"].as_str().unwrap().ends_with("+08:00")), "{moments:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_leads_to_no_order_or_to_several_says_so(db: PgPool) {
    let (one, _) = order(&db).await;
    let two = second(&db).await;
    set(&db, "update payment_orders set order_no = 'PREFIX_A1' where id = (select min(id) from payment_orders)").await;
    set(&db, "update payment_orders set order_no = 'PREFIX_A2' where id = (select max(id) from payment_orders)").await;
    let problem = run(&db, "PREFIX_A").await.unwrap_err();
    assert!(!problem.usage && problem.said.starts_with("2 orders have such a number"), "{problem}");
    for order in [one, two] {
        assert!(problem.said.contains(&order.to_string()), "{problem}");
    }
    assert_eq!(run(&db, "PREFIX_A1").await.unwrap().json["order"]["id"], json!(one.to_string()));

    let stray = case(&db, (CaseKind::UnknownOrder, "4200009999"), Value::Null, Duration::ZERO).await;
    for number in [stray.to_string(), "4200009999".to_owned()] {
        let problem = run(&db, &number).await.unwrap_err();
        assert!(problem.hint.contains(&format!("paymentctl cases show {stray}")), "{problem}");
    }
    let problem = run(&db, "buyer-1").await.unwrap_err();
    assert!(problem.hint.contains("/v1/admin/orders?user_id=buyer-1"), "{problem}");
    for unknown in ["PREFIX_", "NOBODY", "4200000000000000", "%%%%%%%%", "", "a b", "订单"] {
        let problem = run(&db, unknown).await.unwrap_err();
        assert!(problem.said.starts_with("there is no order"), "{problem}");
        assert!(problem.hint.contains("first 8 characters"), "{problem}");
    }
}
