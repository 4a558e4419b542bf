//! Requests for refunds, and who approves, declines and withdraws them. First of all the bad side.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::callers::{now, of_service, of_staff, with_services};
use crate::refund_rules::{begins, key_of_refunds, person};
use crate::support::returned;
use crate::world::{Answer, World, answered, token};

const REFUND: &str = "payments:refund";

impl World {
    async fn step(&self, token: &str, refund: &str, step: &str) -> Answer {
        let body = (step == "decline").then(|| json!({ "reason": "the goods were used" }));
        self.as_caller(token, (Method::POST, &format!("/v1/refunds/{refund}/{step}")), body.as_ref()).await
    }

    /// A paid order of `u1`, and the buyer's request of this amount.
    async fn requested(&self, amount: &str) -> (String, String) {
        self.rule(json!({ "buyer_refunds": "request" })).await;
        let order = self.paid("u1").await;
        let refund = begins(&self.refund_as(&token("u1"), &order, amount).await, "requested");
        (order, refund)
    }

    async fn state(&self, refund: &str) -> Value {
        self.get(&format!("/v1/refunds/{refund}"), "u1").await.json()["status"].clone()
    }

    /// The types of the events of a refund, oldest first.
    async fn reported(&self, refund: &str) -> String {
        let sql = "select coalesce(string_agg(type, ' ' order by seq), '') from events where event_id like '%:' || $1";
        sqlx::query_scalar(sql).bind(refund).fetch_one(&self.db).await.unwrap()
    }
}

#[track_caller]
fn stands(answer: &Answer, status: &str) {
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!(status)), "{}", answer.body);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_approved_request_begins_with_everything_that_follows_from_it(db: PgPool) {
    let world = with_services(db).await;
    let (order, refund) = world.requested("2.34").await;
    let approved = world.step(&person("alice"), &refund, "approve").await;
    stands(&approved, "pending");
    assert_eq!(world.get(&format!("/v1/orders/{order}"), "u1").await.json()["status"], "refunding");
    assert_eq!(world.one::<i64>("select count(*) from jobs where kind = 'refund'").await, 1);
    let movement = "select transaction_no || ' ' || status || ' ' || amount from payment_transactions where action_type = 'refund'";
    assert_eq!(world.one::<String>(movement).await, format!("R{refund} pending 2.34"));
    let acts = "select string_agg(subject || ' ' || act || ' ' || (detail ->> 'status'), ', ') from audit_log where act like 'refund.%'";
    assert_eq!(world.one::<String>(acts).await, "alice refund.approved pending");
    // A repeat answers the refund as it is, also by another person and later.
    stands(&world.step(&person("bob"), &refund, "approve").await, "pending");
    world.tell(&refund, &returned()).await;
    stands(&world.step(&person("alice"), &refund, "approve").await, "succeeded");
    assert_eq!(world.one::<String>(acts).await, "alice refund.approved pending");
    assert_eq!(world.reported(&refund).await, "refund.requested refund.succeeded");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn of_many_approvals_at_once_one_begins_the_refund(db: PgPool) {
    let (one, other) = (with_services(db.clone()).await, with_services(db).await);
    let (_, refund) = one.requested("1.00").await;
    let people: Vec<String> = (0..16).map(|n| person(&format!("p{n}"))).collect();
    let steps = people.iter().enumerate().map(|(n, person)| {
        let (world, refund) = (if n % 2 == 0 { &one } else { &other }, &refund);
        answered(async move || world.step(person, refund, "approve").await)
    });
    for answer in futures_util::future::join_all(steps).await {
        stands(&answer, "pending");
    }
    assert_eq!(one.one::<i64>("select count(*) from jobs where kind = 'refund'").await, 1);
    assert_eq!(one.one::<i64>("select count(*) from payment_transactions where action_type = 'refund'").await, 1);
    assert_eq!(one.one::<i64>("select count(*) from audit_log where act = 'refund.approved'").await, 1);
}

/// Two people decide at once: one of them decides, and the other reads what was decided.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn approving_declining_and_withdrawing_at_once_make_one_move(db: PgPool) {
    let world = with_services(db).await;
    for _ in 0..8 {
        let (_, refund) = world.requested("1.00").await;
        let (alice, bob, buyer) = (person("alice"), person("bob"), token("u1"));
        tokio::join!(
            world.step(&alice, &refund, "approve"),
            world.step(&bob, &refund, "decline"),
            world.step(&buyer, &refund, "withdraw"),
        );
        let (state, reported) = (world.state(&refund).await, world.reported(&refund).await);
        let moves = match state.as_str().unwrap() {
            "pending" => "refund.requested",
            "declined" => "refund.requested refund.declined",
            _ => "refund.requested refund.withdrawn",
        };
        assert_eq!(reported, moves, "{state}");
    }
}

/// Trap: one person with two spellings is two persons.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn nobody_approves_an_own_request_however_spelled(db: PgPool) {
    let world = with_services(db).await;
    world.rule(json!({ "staff_limit": "1.00" })).await;
    let order = world.paid("u1").await;
    let refund = begins(&world.refund_as(&person("Alice"), &order, "1.01").await, "requested");
    for spelling in ["Alice", "alice", "ALICE"] {
        world.step(&person(spelling), &refund, "approve").await.is(403, "same_person");
    }
    // Neither does a change of the limit make one person two.
    world.rule(json!({ "staff_limit": null })).await;
    world.step(&person("aLice"), &refund, "approve").await.is(403, "same_person");
    assert_eq!(world.state(&refund).await, "requested");
    stands(&world.step(&person("bob"), &refund, "approve").await, "pending");
}

/// Trap: a buyer who works together with one person gets more than that person may return.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn above_the_limit_a_buyers_request_takes_two_people(db: PgPool) {
    let world = with_services(db).await;
    world.rule(json!({ "staff_limit": "2.00" })).await;
    let (order, refund) = world.requested("2.01").await;
    for spelling in ["alice", "Alice"] {
        let first = world.step(&person(spelling), &refund, "approve").await;
        stands(&first, "requested");
        assert_eq!(first.json()["approved_once"], true);
    }
    assert_eq!(world.one::<i64>("select count(*) from jobs where kind = 'refund'").await, 0);
    assert_eq!(world.get(&format!("/v1/orders/{order}"), "u1").await.json()["status"], "paid");
    let second = world.step(&person("bob"), &refund, "approve").await;
    stands(&second, "pending");
    assert_eq!(second.json()["approved_once"], false);
    let by = "select string_agg(subject, ' ' order by id) from audit_log where act = 'refund.approved'";
    assert_eq!(world.one::<String>(by).await, "alice bob");
    assert_eq!(world.one::<String>("select approved_by from refund_records").await, "staff alice");
}

/// Trap: parts that one person approves one by one pass the limit together.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn approving_counts_what_was_returned_meanwhile(db: PgPool) {
    let world = with_services(db).await;
    world.rule(json!({ "staff_limit": "3.00" })).await;
    let (order, refund) = world.requested("2.00").await;
    let by_service = world.refund_as(&of_service(REFUND), &order, "1.01").await;
    let in_flight = begins(&by_service, "pending");
    // While another refund is on its way, the request stays.
    world.step(&person("alice"), &refund, "approve").await.is(409, "refund_in_progress");
    world.tell(&in_flight, &returned()).await;
    stands(&world.step(&person("alice"), &refund, "approve").await, "requested");
    stands(&world.step(&person("bob"), &refund, "approve").await, "pending");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_approval_needs_a_person_with_the_scope_and_a_fresh_sign_in(db: PgPool) {
    let world = with_services(db.clone()).await;
    let (_, refund) = world.requested("1.00").await;
    let key = key_of_refunds(&db).await;
    world.watch_keys().await;
    let old = of_staff("alice", REFUND, now() - 301);
    world.step(&old, &refund, "approve").await.is(401, "sign_in_again");
    for step in ["approve", "decline"] {
        world.step(&key, &refund, step).await.is(403, "person_required");
        world.step(&of_service(REFUND), &refund, step).await.is(403, "person_required");
        world.step(&of_staff("alice", "payments:read", now()), &refund, step).await.is(403, "scope_missing");
        world.step(&token("u1"), &refund, step).await.is(403, "scope_missing");
        world.step("x", &refund, step).await.is(401, "token_invalid");
        world.step(&person("alice"), &"0".repeat(32), step).await.is(404, "refund_not_found");
    }
    world.step(&of_service("payments:read"), &refund, "withdraw").await.is(403, "scope_missing");
    assert_eq!(world.state(&refund).await, "requested");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_no_longer_fits_is_declined_with_its_reason(db: PgPool) {
    let world = with_services(db).await;
    // The order was refunded by another refund in the meantime.
    let (order, refund) = world.requested("10.00").await;
    let rest = begins(&world.refund_as(&of_service(REFUND), &order, "3.00").await, "pending");
    world.tell(&rest, &returned()).await;
    let declined = world.step(&person("alice"), &refund, "approve").await;
    stands(&declined, "declined");
    assert_eq!(declined.json()["decline_reason"], "at most 9.34 yuan can be refunded");
    assert_eq!(world.reported(&refund).await, "refund.requested refund.declined");
    stands(&world.step(&person("bob"), &refund, "approve").await, "declined");
    let acts = "select string_agg(subject || ' ' || act, ', ') from audit_log where subject in ('alice', 'bob')";
    assert_eq!(world.one::<String>(acts).await, "alice refund.declined");
    // The gateway says that all of it was returned elsewhere, and no refund of ours says so.
    let (order, refund) = world.requested("1.00").await;
    let sql = format!("update payment_transactions set returned_amount = 12.34 where order_id = '{order}'");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&world.db).await.unwrap();
    let declined = world.step(&person("alice"), &refund, "approve").await;
    stands(&declined, "declined");
    assert_eq!(declined.json()["decline_reason"], "the whole amount has been refunded or is reserved");
    assert_eq!(world.one::<i64>("select count(*) from jobs where kind = 'refund'").await, 0);
    // A refund that is not ours must be checked first: the request stays.
    let (order, refund) = world.requested("1.00").await;
    world.case("unknown_refund", Some(&order), "RX").await;
    world.step(&person("alice"), &refund, "approve").await.is(409, "not_refundable");
    assert_eq!(world.state(&refund).await, "requested");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_request_is_declined_once_with_a_reason_that_its_requester_reads(db: PgPool) {
    let world = with_services(db).await;
    let (order, refund) = world.requested("1.00").await;
    let path = format!("/v1/refunds/{refund}/decline");
    for body in [json!({}), json!({ "reason": "" }), json!({ "reason": "x".repeat(81) }), json!({ "reason": "a\nb" })] {
        let wrong = world.as_caller(&person("alice"), (Method::POST, &path), Some(&body)).await;
        wrong.is(400, "invalid_fields");
    }
    // It moves no money, so an older sign-in is enough.
    let first = world.step(&of_staff("alice", REFUND, now() - 3600), &refund, "decline").await;
    stands(&first, "declined");
    let other = json!({ "reason": "another reason" });
    let again = world.as_caller(&person("bob"), (Method::POST, &path), Some(&other)).await;
    stands(&again, "declined");
    assert_eq!(again.json()["decline_reason"], "the goods were used");
    let seen = world.get(&format!("/v1/refunds/{refund}"), "u1").await.json();
    assert_eq!((&seen["decline_reason"], &seen["failure"]), (&json!("the goods were used"), &Value::Null));
    assert_eq!(world.reported(&refund).await, "refund.requested refund.declined");
    assert_eq!(
        world.one::<String>("select data ->> 'why' from events where type = 'refund.declined'").await,
        "the goods were used"
    );
    // It is over: neither approved nor withdrawn. The buyer may request another one.
    stands(&world.step(&person("bob"), &refund, "approve").await, "declined");
    world.step(&token("u1"), &refund, "withdraw").await.is(409, "refund_not_withdrawable");
    let next = begins(&world.refund_as(&token("u1"), &order, "1.00").await, "requested");
    stands(&world.step(&person("bob"), &next, "approve").await, "pending");
    world.step(&person("bob"), &next, "decline").await.is(409, "refund_not_requested");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_refund_is_withdrawn_by_its_requester_until_it_is_sent(db: PgPool) {
    let world = with_services(db).await;
    let (order, refund) = world.requested("1.00").await;
    world.step(&token("u2"), &refund, "withdraw").await.is(404, "refund_not_found");
    for _ in 0..2 {
        stands(&world.step(&token("u1"), &refund, "withdraw").await, "withdrawn");
    }
    assert_eq!(world.reported(&refund).await, "refund.requested refund.withdrawn");
    stands(&world.step(&person("alice"), &refund, "approve").await, "withdrawn");
    // A pending one frees its amount.
    let pending = begins(&world.refund_as(&of_service(REFUND), &order, "12.34").await, "pending");
    world.step(&token("u1"), &pending, "withdraw").await.is(403, "not_requester");
    stands(&world.step(&person("alice"), &pending, "withdraw").await, "withdrawn");
    assert_eq!(world.get(&format!("/v1/orders/{order}"), "u1").await.json()["status"], "paid");
    let movement = "select status from payment_transactions where action_type = 'refund'";
    assert_eq!(world.one::<String>(movement).await, "failed");
    // What was sent is not withdrawn, and what was returned even less.
    let sent = begins(&world.refund_as(&of_service(REFUND), &order, "12.34").await, "pending");
    sqlx::query(
        "update refund_records set status = 'processing', attempts = 1, sent_at = now() where status = 'pending'",
    )
    .execute(&world.db)
    .await
    .unwrap();
    world.step(&of_service(REFUND), &sent, "withdraw").await.is(409, "refund_not_withdrawable");
    // Unless the gateway has just refused it for the balance: a worker withdraws it.
    sqlx::query("update refund_records set short_attempt = 1 where status = 'processing'")
        .execute(&world.db)
        .await
        .unwrap();
    for _ in 0..2 {
        let asked = world.step(&of_service(REFUND), &sent, "withdraw").await;
        assert_eq!((asked.status.as_u16(), &asked.json()["status"]), (202, &json!("processing")), "{}", asked.body);
    }
    let payload = "select payload::text from jobs where kind = 'refund' order by id desc limit 1";
    assert_eq!(world.one::<String>(payload).await, r#"{"withdraw": true}"#);
    world.tell(&sent, &returned()).await;
    world.step(&of_service(REFUND), &sent, "withdraw").await.is(409, "refund_not_withdrawable");
    let acts =
        "select string_agg(subject || ' ' || act, ', ' order by id) from audit_log where act = 'refund.withdrawn'";
    let asked = "service a1 refund.withdrawn";
    assert_eq!(world.one::<String>(acts).await, format!("alice refund.withdrawn, {asked}, {asked}"));
}

/// Trap: a buyer who requests and withdraws in a loop fills the database.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_buyer_requests_and_withdraws_twenty_times_and_no_more(db: PgPool) {
    let world = with_services(db).await;
    let (order, buyer) = (world.paid("u1").await, token("u1"));
    for mode in ["request", "auto"] {
        world.rule(json!({ "buyer_refunds": mode })).await;
        for _ in 0..10 {
            let made = world.refund_as(&buyer, &order, "1.00").await;
            let refund = begins(&made, if mode == "auto" { "pending" } else { "requested" });
            stands(&world.step(&buyer, &refund, "withdraw").await, "withdrawn");
        }
    }
    world.refund_as(&buyer, &order, "1.00").await.is(409, "refund_requested_too_often");
    // Another order is not affected, and neither is the merchant.
    let other = world.paid("u1").await;
    begins(&world.refund_as(&buyer, &other, "1.00").await, "pending");
    begins(&world.refund_as(&person("alice"), &order, "12.34").await, "pending");
}

/// A case may have requested the job of a refund that was never sent. The approval finds it.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_approval_finds_the_job_that_is_there(db: PgPool) {
    let world = with_services(db).await;
    let (_, refund) = world.requested("1.00").await;
    let id = domain::RefundId::parse(&refund).unwrap();
    let job = domain::message::job::JobRequest::Refund(id, Default::default());
    store::tables::jobs::request(&world.db, &job, time::Duration::days(1)).await.unwrap();
    stands(&world.step(&person("alice"), &refund, "approve").await, "pending");
    assert_eq!(world.one::<i64>("select count(*) from jobs where kind = 'refund' and due_at <= now()").await, 1);
}

/// People and policies return what was not owed. A backend does not take that back.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_refund_of_a_late_payment_is_not_withdrawn(db: PgPool) {
    let world = with_services(db).await;
    let order = world.paid("u1").await;
    let case = world.late_payment(&order, "4200000002").await;
    let path = format!("/v1/admin/cases/{case}");
    let [a1, a2] = ["a1", "a2"].map(|subject| of_staff(subject, "payments:admin", now()));
    let proposal = json!({ "action": "refund" });
    let proposed = world.as_caller(&a1, (Method::POST, &format!("{path}/propose")), Some(&proposal)).await;
    let version = json!({ "version": proposed.json()["version"] });
    let confirmed = world.as_caller(&a2, (Method::POST, &format!("{path}/confirm")), Some(&version)).await;
    assert_eq!(confirmed.status.as_u16(), 200, "{}", confirmed.body);
    let refund: String = world.one("select id::text from refund_records").await;
    world.step(&of_service(REFUND), &refund, "withdraw").await.is(409, "refund_not_withdrawable");
    assert_eq!(world.one::<String>("select status from refund_records").await, "pending");
}
