//! Cases: one person proposes, another confirms, and the case remembers both.

use axum::http::Method;
use domain::{Money, RefundReport, RefundState};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Who, returned};
use crate::world::{Answer, World};

pub const A: Who = Who::Admin("a1");
pub const B: Who = Who::Admin("a2");

pub async fn step(world: &World, who: Who, case: &str, what: &str, body: Value) -> Answer {
    world.post(who, &format!("/v1/admin/cases/{case}/{what}"), &body).await
}

/// Proposed by one, confirmed by the other.
pub async fn both(world: &World, case: &str, body: Value) -> Answer {
    let proposed = step(world, A, case, "propose", body).await;
    assert_eq!(proposed.status.as_u16(), 200, "{}", proposed.body);
    step(world, B, case, "confirm", json!({ "version": proposed.json()["version"] })).await
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_late_payment_is_returned_by_two_people(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    world.close_locally(&id).await;
    let case = world.late_payment(&id, "4200000042").await;

    let proposed = step(&world, A, &case, "propose", json!({ "action": "refund", "reason": "late" })).await.json();
    assert_eq!((&proposed["status"], &proposed["proposed_by"]), (&json!("proposed"), &json!("a1")));
    assert_eq!(world.count("refund_records").await, 0, "a proposal moves nothing");
    let version = json!({ "version": proposed["version"] });
    step(&world, A, &case, "confirm", version.clone()).await.is(403, "same_person");
    step(&world, Who::User("u1"), &case, "confirm", version.clone()).await.is(403, "scope_missing");
    step(&world, B, &case, "confirm", json!({ "version": 1 })).await.is(409, "case_changed");
    step(&world, B, &case, "confirm", json!({})).await.is(400, "invalid_fields");

    let confirmed = step(&world, B, &case, "confirm", version.clone()).await;
    assert_eq!(confirmed.status.as_u16(), 200, "{}", confirmed.body);
    let done = confirmed.json();
    assert_eq!((&done["status"], &done["resolved_by"]), (&json!("resolved"), &json!("a2")));
    let steps: Vec<(&str, &str)> = done["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["who"].as_str().unwrap(), entry["what"].as_str().unwrap()))
        .collect();
    assert_eq!(steps, [("a1", "proposed"), ("a2", "confirmed")]);
    assert_eq!(world.one::<String>("select requested_by from refund_records").await, "a2");
    assert_eq!(world.one::<String>("select status from payment_orders").await, "closed", "left alone");
    step(&world, B, &case, "confirm", version).await.is(409, "case_resolved");
    step(&world, B, &case, "propose", json!({ "action": "fulfil" })).await.is(409, "case_resolved");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn more_than_the_payment_has_left_is_refused_before_another_person_is_asked(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    world.close_locally(&id).await;
    let case = world.late_payment(&id, "4200000042").await;
    let refund = |amount: &str| json!({ "action": "refund", "amount": amount });
    let refused = step(&world, A, &case, "propose", refund("12.35")).await;
    refused.is(409, "refund_too_much");
    assert_eq!(refused.json()["refundable_amount"], "12.34", "{}", refused.body);
    let case_now = world.get_case(&case).await;
    assert_eq!((&case_now["status"], &case_now["version"]), (&json!("open"), &json!(1)));
    let first = both(&world, &case, refund("12.00")).await;
    assert_eq!((first.status.as_u16(), &first.json()["status"]), (200, &json!("open")), "{}", first.body);
    let while_under_way = step(&world, A, &case, "propose", refund("0.34")).await;
    assert_eq!(
        while_under_way.status.as_u16(),
        200,
        "it ends before the other person confirms: {}",
        while_under_way.body
    );
    let refund_id: String = world.one("select id::text from refund_records").await;
    world.tell(&refund_id, &returned()).await;
    step(&world, A, &case, "propose", refund("0.35")).await.is(409, "refund_too_much");
    assert_eq!(both(&world, &case, refund("0.34")).await.json()["status"], "resolved");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn of_many_who_confirm_one_does(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    world.close_locally(&id).await;
    let case = world.late_payment(&id, "4200000042").await;
    step(&world, A, &case, "propose", json!({ "action": "refund", "amount": "1" })).await;
    let confirms = (0..16).map(|_| step(&world, B, &case, "confirm", json!({ "version": 2 })));
    let answers = futures_util::future::join_all(confirms).await;
    assert_eq!(answers.iter().filter(|answer| answer.status.as_u16() == 200).count(), 1);
    assert!(answers.iter().all(|answer| matches!(answer.status.as_u16(), 200 | 409)));
    assert_eq!(world.count("refund_records").await, 1);
}

/// The ingress changes no order: the worker queries the gateway first.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_late_payment_is_handed_on_to_be_honoured_and_never_after_a_return(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    world.close_locally(&id).await;
    let case = world.late_payment(&id, "4200000042").await;
    let done = both(&world, &case, json!({ "action": "fulfil" })).await;
    let view = done.json();
    assert_eq!((done.status.as_u16(), &view["status"]), (200, &json!("open")), "{}", done.body);
    assert!(view["history"][1]["done"].as_str().unwrap().contains("the gateway is queried"), "{}", done.body);
    assert_eq!(world.get(&format!("/v1/orders/{id}"), "u1").await.json()["status"], "closed");
    let requested: Value = world.one("select payload from jobs where kind = 'check' and due_at <= now()").await;
    assert_eq!(requested[format!("case:{case}")], json!({ "action": "fulfil" }));

    let id = world.placed("u1").await;
    world.close_locally(&id).await;
    let case = world.late_payment(&id, "4200000043").await;
    let proposed = step(&world, A, &case, "propose", json!({ "action": "fulfil" })).await.json();
    sqlx::query(
        "insert into refund_records (id, order_id, transaction_id, refund_no, refund_amount, requested_by, created_at, \
         updated_at) select id, order_id, id, 'L43', amount, 'policy', now(), now() from payment_transactions \
         where gateway_no = '4200000043'",
    )
    .execute(&world.db)
    .await
    .unwrap();
    let refused = step(&world, B, &case, "confirm", json!({ "version": proposed["version"] })).await;
    refused.is(409, "action_unfit");
    assert_eq!(world.get(&format!("/v1/orders/{id}"), "u1").await.json()["status"], "closed");
    assert_eq!(world.get_case(&case).await["status"], "proposed", "a refusal leaves the proposal as it was");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_closed_refund_goes_again_under_a_new_number(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let first = world.refund("u1", &id, "k1", &json!({ "amount": "2" })).await.json();
    let closed = RefundReport::of(RefundState::Closed);
    world.tell(first["id"].as_str().unwrap(), &closed).await;
    let case: String = world.one("select id::text from cases where kind = 'refund_closed'").await;
    let done = both(&world, &case, json!({ "action": "refund_again" })).await;
    assert_eq!(done.status.as_u16(), 200, "{}", done.body);
    let list = world.get("/v1/refunds", "u1").await.json();
    assert_eq!((&list["refunds"][0]["amount"], &list["refunds"][0]["status"]), (&json!("2.00"), &json!("pending")));
    assert_ne!(list["refunds"][0]["refund_no"], first["refund_no"]);

    // Reopened, the case does not return the same money a second time.
    let refund_id = list["refunds"][0]["id"].as_str().unwrap();
    world.tell(refund_id, &returned()).await;
    step(&world, A, &case, "reopen", json!({ "reason": "once more" })).await;
    step(&world, A, &case, "propose", json!({ "action": "refund_again" })).await.is(409, "action_unfit");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_undeliverable_refund_is_redirected_and_the_case_stays_open(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let refund = world.refund("u1", &id, "k1", &json!({})).await.json();
    world.tell(refund["id"].as_str().unwrap(), &RefundReport::of(RefundState::Abnormal)).await;
    let case: String = world.one("select id::text from cases where kind = 'refund_abnormal'").await;
    step(&world, A, &case, "propose", json!({ "action": "refund_again" })).await.is(409, "action_unfit");
    let done = both(&world, &case, json!({ "action": "abnormal_refund" })).await.json();
    assert_eq!((&done["status"], &done["proposed_by"]), (&json!("open"), &Value::Null));
    assert_eq!(done["history"].as_array().unwrap().len(), 2);
    let requested: Value = world.one("select payload from jobs where kind = 'refund'").await;
    assert_eq!(requested, json!({ "redirect": "merchant" }));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_note_needs_one_person(db: PgPool) {
    let world = World::new(db).await;
    let (one, two) = (world.case("dead_letter", None, "d1").await, world.case("unknown_order", None, "d2").await);
    for (case, what, body) in [
        (&one, "resolve", json!({ "note": "a test message" })),
        (&two, "propose", json!({ "action": "note", "note": "a test message" })),
    ] {
        let done = step(&world, A, case, what, body).await.json();
        assert_eq!((&done["status"], &done["resolution"]), (&json!("resolved"), &json!("a test message")));
        assert_eq!((&done["resolved_by"], &done["history"][0]["what"]), (&json!("a1"), &json!("resolved")));
    }
    step(&world, A, &one, "resolve", json!({ "note": "again" })).await.is(409, "case_resolved");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_a_refund_that_is_not_ours_reserves_is_freed_by_two_people(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let case = world.case("unknown_refund", Some(&id), "R0001").await;
    world.refund("u1", &id, "k1", &json!({})).await.is(409, "not_refundable");
    let proposed = step(&world, A, &case, "resolve", json!({ "note": "made by hand, for another order" })).await.json();
    assert_eq!((&proposed["status"], &proposed["proposed_by"]), (&json!("proposed"), &json!("a1")));
    world.refund("u1", &id, "k2", &json!({})).await.is(409, "not_refundable");
    let version = json!({ "version": proposed["version"] });
    step(&world, A, &case, "confirm", version.clone()).await.is(403, "same_person");
    let done = step(&world, B, &case, "confirm", version).await.json();
    assert_eq!((&done["status"], &done["resolution"]), (&json!("resolved"), &json!("made by hand, for another order")));
    assert_eq!(world.refund("u1", &id, "k3", &json!({})).await.status.as_u16(), 202);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_refund_of_the_console_is_handed_on_to_be_booked_by_two_people(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let case = world.case("unknown_refund", Some(&id), "4200000042").await;
    let book = json!({ "action": "book_refund", "refund_no": "CONSOLE1", "amount": "1.50" });
    let proposed = step(&world, A, &case, "propose", book.clone()).await.json();
    step(&world, A, &case, "confirm", json!({ "version": proposed["version"] })).await.is(403, "same_person");
    let done = step(&world, B, &case, "confirm", json!({ "version": proposed["version"] })).await.json();
    assert_eq!((&done["status"], &done["proposed_by"]), (&json!("open"), &Value::Null));
    assert_eq!(world.count("refund_records").await, 0, "nothing before the gateway was asked");
    let requested: Value = world.one("select payload from jobs where kind = 'check'").await;
    assert_eq!(requested[format!("case:{case}")], book);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_does_not_fit_is_refused_before_anybody_is_asked(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let double = world.case("double_payment", Some(&id), "4200000099").await;
    let other = world.case("wrong_merchant", None, "n1").await;
    step(&world, A, &double, "propose", json!({ "action": "fulfil" })).await.is(409, "action_unfit");
    let book = json!({ "action": "book_refund", "refund_no": "R1", "amount": "1" });
    for action in ["refund", "fulfil", "refund_again", "abnormal_refund"] {
        step(&world, A, &other, "propose", json!({ "action": action })).await.is(409, "action_unfit");
    }
    step(&world, A, &other, "propose", book).await.is(409, "action_unfit");
    step(&world, A, &other, "confirm", json!({ "version": 1 })).await.is(409, "case_not_proposed");
    // The trade brought the order nothing that we know of.
    step(&world, A, &double, "propose", json!({ "action": "refund" })).await.is(409, "order_not_paid");

    let wrong = step(&world, A, &other, "propose", json!({ "action": "give", "amount": "1" })).await;
    wrong.is(400, "invalid_fields");
    insta::assert_json_snapshot!(wrong.json());
    for body in [
        json!({}),
        json!({ "action": "note" }),
        json!({ "action": "fulfil", "amount": "1" }),
        json!({ "action": "book_refund", "refund_no": "R1" }),
        json!({ "action": "book_refund", "refund_no": "R1", "amount": "0" }),
        json!({ "action": "book_refund", "refund_no": "../R 1", "amount": "1" }),
    ] {
        step(&world, A, &other, "propose", body).await.is(400, "invalid_fields");
    }
    for note in [json!(""), json!(null), json!("x".repeat(2001)), json!("a\u{0}b")] {
        step(&world, A, &other, "resolve", json!({ "note": note })).await.is(400, "invalid_fields");
    }
    for path in ["0".repeat(32), "x".to_owned()] {
        step(&world, A, &path, "resolve", json!({ "note": "n" })).await.is(404, "case_not_found");
        world.request(A, Method::GET, &format!("/v1/admin/cases/{path}"), None).await.is(404, "case_not_found");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_list_is_filtered_and_paged(db: PgPool) {
    let world = World::new(db).await;
    let mut all = Vec::new();
    for (kind, number) in [("dead_letter", "1"), ("unknown_order", "2"), ("dead_letter", "3")] {
        all.push(world.case(kind, None, number).await);
    }
    step(&world, A, &all[0], "resolve", json!({ "note": "n" })).await;
    all.reverse();
    let list = async |query: &str| {
        let page = world.request(A, Method::GET, &format!("/v1/admin/cases?{query}"), None).await.json();
        let ids = page["cases"].as_array().unwrap().iter().map(|case| case["id"].as_str().unwrap().to_owned());
        (ids.collect::<Vec<_>>(), page["next_cursor"].as_str().map(str::to_owned))
    };
    assert_eq!(list("").await.0, all);
    let (first, cursor) = list("limit=2").await;
    assert_eq!(
        (&first[..], list(&format!("limit=2&cursor={}", cursor.unwrap())).await.0),
        (&all[..2], all[2..].to_vec())
    );
    assert_eq!(list("status=open").await.0, all[..2]);
    assert_eq!(list("kind=dead_letter&status=open").await.0, all[..1]);
    world.request(A, Method::GET, "/v1/admin/cases?status=done&kind=odd", None).await.is(400, "invalid_fields");
    assert_eq!(world.get_case(&all[0]).await["evidence"], json!({ "amount": "12.34" }));
}

impl World {
    async fn get_case(&self, id: &str) -> Value {
        self.request(A, Method::GET, &format!("/v1/admin/cases/{id}"), None).await.json()
    }
}

/// Two people accept another amount for one of our refunds. The worker books it when the gateway states it again.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn another_amount_of_a_refund_is_accepted_by_two_people(db: PgPool) {
    let world = World::new(db).await;
    let accept = || json!({ "action": "accept_amount" });
    let mut met = Vec::new();
    for (stated, unfit) in [(500, false), (100_000, true)] {
        let id = world.paid("u1").await;
        let key = format!("k{stated}");
        let refund = world.refund("u1", &id, &key, &json!({ "amount": "3" })).await.json();
        let refund = refund["id"].as_str().unwrap();
        sqlx::query("update refund_records set status = 'processing', sent_at = now()")
            .execute(&world.db)
            .await
            .unwrap();
        let amount = Some(Money::from_fen(stated).unwrap());
        world
            .tell(
                refund,
                &RefundReport {
                    state: RefundState::Succeeded,
                    amount,
                    returned: None,
                    gateway_refund_no: None,
                    at: None,
                },
            )
            .await;
        let case: String = world.one("select id::text from cases order by id desc limit 1").await;
        assert_eq!(world.get_case(&case).await["actions"], json!(["accept_amount", "note"]));
        if unfit {
            step(&world, A, &case, "propose", accept()).await.is(409, "action_unfit");
        } else {
            let done = both(&world, &case, accept()).await;
            assert_eq!((done.status.as_u16(), &done.json()["status"]), (200, &json!("open")), "{}", done.body);
        }
        let requested = "select payload from jobs where kind = 'refund' order by id desc limit 1";
        met.push(world.one::<Value>(requested).await["accept"].clone());
        assert_eq!(world.one::<String>("select distinct refund_amount::text from refund_records").await, "3.00");
    }
    assert_eq!(met, [json!("5.00"), Value::Null], "more than the payment is not handed on");
}

/// More was refunded than was paid: no action on the amount or the payment is allowed.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_return_of_too_much_offers_a_note_alone(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    for (number, evidence) in [("DESK1", json!({ "refund_no": "DESK1" })), ("4200000001", json!({}))] {
        let case = world.case("amount_mismatch", Some(&id), number).await;
        let known = json!({ "trade_no": "4200000001", "amount": "8.88", "booked": "0.00", "returned": "8.89" });
        let sql = "update cases set evidence = $2 || $3 where id = $1";
        sqlx::query(sql).bind(&case).bind(&known).bind(&evidence).execute(&world.db).await.unwrap();
        assert_eq!(world.get_case(&case).await["actions"], json!(["note"]));
        for action in ["accept_amount", "refund"] {
            step(&world, A, &case, "propose", json!({ "action": action })).await.is(409, "action_unfit");
        }
    }
    assert_eq!(world.count("refund_records").await, 0);
}

/// A case of an older release still holds the bytes of a callback, which name the payer.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn no_answer_shows_the_bytes_of_a_dead_letter(db: PgPool) {
    let world = World::new(db).await;
    let case = world.case("dead_letter", None, "1").await;
    let evidence = json!({ "queue": "payment.callbacks", "body": "YnV5ZXI9c2VjcmV0" });
    sqlx::query("update cases set evidence = $1").bind(&evidence).execute(&world.db).await.unwrap();
    let expected = json!({ "queue": "payment.callbacks", "size": 12, "digest": domain::message::callback::digest(b"buyer=secret") });
    assert_eq!(world.get_case(&case).await["evidence"], expected);
    let listed = world.request(A, Method::GET, "/v1/admin/cases", None).await.json();
    assert_eq!(listed["cases"][0]["evidence"], expected);
}

/// Operators read notes in a terminal.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_note_that_steers_a_terminal_is_refused(db: PgPool) {
    let world = World::new(db).await;
    let case = world.case("unknown_order", None, "1").await;
    for note in ["\u{1b}]52;c;Zm9v\u{7}", "a\rb", "a\u{202E}b", "a\u{85}b", "a\0b"] {
        step(&world, A, &case, "resolve", json!({ "note": note })).await.is(400, "invalid_fields");
    }
    let done = step(&world, A, &case, "resolve", json!({ "note": "seen\nand known" })).await;
    assert_eq!(done.status.as_u16(), 200, "{}", done.body);
}
