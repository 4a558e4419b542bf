//! Refunds: which are accepted, which are refused, and that a repeated request makes one refund.

use domain::{RefundReport, RefundState};
use std::collections::HashSet;

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Who, returned};
use crate::world::{World, answered};

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_refund_is_asked_for_with_everything_that_follows_from_it(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let answer = world.refund("u1", &id, "k1", &json!({ "amount": "2.34", "reason": "不合适" })).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.body);
    let refund = answer.json();
    assert_eq!(answer.header("location"), format!("/v1/refunds/{}", refund["id"].as_str().unwrap()));
    assert_eq!(
        (&refund["status"], &refund["amount"], &refund["order_id"], &refund["reason"]),
        (&json!("pending"), &json!("2.34"), &json!(id), &json!("不合适"))
    );
    assert_eq!(refund["refund_no"].as_str().unwrap().len(), 32);
    let names: Vec<&String> = refund.as_object().unwrap().keys().collect();
    insta::assert_json_snapshot!(names);
    assert_eq!(world.get(answer.header("location"), "u1").await.json(), refund);
    assert_eq!(world.get(&format!("/v1/orders/{id}"), "u1").await.json()["status"], "refunding");
    assert_eq!(world.one::<i64>("select count(*) from jobs where kind = 'refund'").await, 1);
    assert_eq!(world.one::<String>("select requested_by from refund_records").await, "u1");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_refusal_has_its_code(db: PgPool) {
    let world = World::new(db).await;
    let placed = world.placed("u1").await;
    world.refund("u1", &placed, "k1", &json!({})).await.is(409, "order_not_paid");
    let id = world.paid("u1").await;
    world.refund("u2", &id, "k1", &json!({})).await.is(404, "order_not_found");
    world.refund("u1", &"0".repeat(32), "k1", &json!({})).await.is(404, "order_not_found");
    world.refund("u1", "nonsense", "k1", &json!({})).await.is(404, "order_not_found");

    let much = world.refund("u1", &id, "k1", &json!({ "amount": "12.35" })).await;
    much.is(409, "refund_too_much");
    insta::assert_json_snapshot!(much.json());
    let unknown = world.case("unknown_refund", Some(&id), "RX").await;
    world.refund("u1", &id, "k1", &json!({})).await.is(409, "not_refundable");
    // One person's note proposes, another confirms: the money is free again.
    let case = format!("/v1/admin/cases/{unknown}");
    let noted = world.post(Who::Admin("a1"), &format!("{case}/resolve"), &json!({ "note": "ours" })).await.json();
    world.post(Who::Admin("a2"), &format!("{case}/confirm"), &json!({ "version": noted["version"] })).await;

    // A refusal leaves the key free.
    let first = world.refund("u1", &id, "k1", &json!({ "amount": "12" })).await;
    assert_eq!(first.status.as_u16(), 202, "{}", first.body);
    world.refund("u1", &id, "k2", &json!({})).await.is(409, "refund_in_progress");
    world.tell(first.json()["id"].as_str().unwrap(), &returned()).await;
    let rest = world.refund("u1", &id, "k2", &json!({})).await;
    assert_eq!(rest.json()["amount"], "0.34");
    world.tell(rest.json()["id"].as_str().unwrap(), &returned()).await;
    world.refund("u1", &id, "k3", &json!({})).await.is(409, "already_refunded");
    assert_eq!(world.get(&format!("/v1/orders/{id}"), "u1").await.json()["status"], "refunded");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_body_is_judged_whole(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let long = "x".repeat(201);
    let wrong = world.refund("u1", &id, "k1", &json!({ "amount": "0", "reason": long, "to": "me" })).await;
    wrong.is(400, "invalid_fields");
    insta::assert_json_snapshot!(wrong.json());
    for amount in [json!("-1"), json!("1.234"), json!(1), json!("1e2"), json!("100000000.00"), json!("")] {
        world.refund("u1", &id, "k1", &json!({ "amount": amount })).await.is(400, "invalid_fields");
    }
    for reason in [json!(""), json!("a\nb"), json!(7)] {
        world.refund("u1", &id, "k1", &json!({ "reason": reason })).await.is(400, "invalid_fields");
    }
    world.refund("u1", &id, "k1", &json!([])).await.is(400, "malformed_json");
    world.refund("u1", &id, "", &json!({})).await.is(400, "idempotency_key_required");
    world.refund("u1", &id, "a b", &json!({})).await.is(400, "idempotency_key_invalid");
    let bare = format!("/v1/orders/{id}/refunds");
    world.post(Who::User("u1"), &bare, &json!({})).await.is(400, "idempotency_key_required");
    assert_eq!(world.count("refund_records").await, 0);
    let most = world.refund("u1", &id, "k1", &json!({ "amount": null, "reason": "大".repeat(200) })).await;
    assert_eq!(most.status.as_u16(), 202, "{}", most.body);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_key_belongs_to_one_order_and_one_body(db: PgPool) {
    let world = World::new(db).await;
    let (id, other) = (world.paid("u1").await, world.paid("u1").await);
    let first = world.refund("u1", &id, "k1", &json!({ "amount": "1" })).await;
    world.tell(first.json()["id"].as_str().unwrap(), &returned()).await;
    let again = world.refund("u1", &id, "k1", &json!({ "amount": "1" })).await;
    assert_eq!((again.status.as_u16(), &again.body), (202, &first.body), "the same bytes, whatever came since");
    assert_eq!(again.header("location"), first.header("location"));
    world.refund("u1", &id, "k1", &json!({ "amount": "2" })).await.is(422, "idempotency_key_reused");
    world.refund("u1", &other, "k1", &json!({ "amount": "1" })).await.is(422, "idempotency_key_reused");
    assert_eq!(world.count("refund_records").await, 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn sixty_four_with_one_key_request_once_and_agree(db: PgPool) {
    let (one, other) = (World::new(db.clone()).await, World::new(db).await);
    let id = one.paid("u1").await;
    let body = json!({ "amount": "1" });
    // Two processes, as behind a load balancer.
    let worlds = (0..64).map(|n| if n % 2 == 0 { &one } else { &other });
    let requested = worlds.map(|world| {
        let (id, body) = (&id, &body);
        answered(async move || world.refund("u1", id, "k1", body).await)
    });
    let answers = futures_util::future::join_all(requested).await;
    let bodies: HashSet<&str> = answers.iter().map(|answer| answer.body.as_str()).collect();
    assert!(answers.iter().all(|answer| answer.status.as_u16() == 202), "{bodies:?}");
    assert_eq!((bodies.len(), one.count("refund_records").await), (1, 1));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn of_sixty_four_with_keys_of_their_own_one_is_in_flight(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let body = json!({ "amount": "1" });
    let requested = (0..64).map(|n| {
        let (world, id, body) = (&world, &id, &body);
        async move { world.refund("u1", id, &format!("k{n}"), body).await }
    });
    let answers = futures_util::future::join_all(requested).await;
    let granted = answers.iter().filter(|answer| answer.status.as_u16() == 202).count();
    for answer in answers.iter().filter(|answer| answer.status.as_u16() != 202) {
        answer.is(409, "refund_in_progress");
    }
    assert_eq!((granted, world.count("refund_records").await), (1, 1));
    assert_eq!(world.one::<i64>("select count(*) from idempotency_keys where route like '%refunds'").await, 1);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn lists_show_what_is_asked_for_and_nobody_elses(db: PgPool) {
    let world = World::new(db).await;
    let mut refunds = Vec::new();
    for _ in 0..3 {
        let id = world.paid("u1").await;
        refunds.push(world.refund("u1", &id, &id, &json!({})).await.json()["id"].as_str().unwrap().to_owned());
    }
    let theirs = world.paid("u2").await;
    world.refund("u2", &theirs, "k1", &json!({})).await;
    world.tell(&refunds[0], &RefundReport::of(RefundState::Absent)).await;
    refunds.reverse();
    let ids = |page: &Value, name: &str| -> Vec<String> {
        page[name].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let list = async |path: &str| world.get(path, "u1").await.json();
    assert_eq!(ids(&list("/v1/refunds").await, "refunds"), refunds);
    let first = list("/v1/refunds?limit=2").await;
    let next = list(&format!("/v1/refunds?limit=2&cursor={}", first["next_cursor"].as_str().unwrap())).await;
    assert_eq!([ids(&first, "refunds"), ids(&next, "refunds")].concat(), refunds);
    assert_eq!(next["next_cursor"], Value::Null);
    assert_eq!(ids(&list("/v1/refunds?status=failed").await, "refunds"), refunds[2..]);
    assert_eq!(ids(&list("/v1/refunds?status=pending&method=wechat").await, "refunds"), refunds[..2]);
    assert!(ids(&list("/v1/refunds?method=alipay").await, "refunds").is_empty());

    world.order("u1").await; // Of Alipay, pending.
    assert_eq!(ids(&list("/v1/orders?method=alipay").await, "orders").len(), 1);
    assert_eq!(ids(&list("/v1/orders?method=wechat&status=refunding").await, "orders").len(), 2);
    assert_eq!(ids(&list("/v1/orders?status=paid").await, "orders").len(), 1);
    for (span, found) in [
        ("from=2020-01-01", 4),
        ("from=2020-01-01&to=2020-12-31", 0),
        ("to=2020-12-31T00:00:00Z", 0),
        ("from=2020-01-01T00:00:00%2B08:00&to=2999-12-31", 4),
        ("from=2999-01-01", 0),
    ] {
        assert_eq!(ids(&list(&format!("/v1/orders?{span}")).await, "orders").len(), found, "{span}");
        assert_eq!(ids(&list(&format!("/v1/refunds?{span}")).await, "refunds").len(), found.min(3), "{span}");
    }
    let wrong = world.get("/v1/refunds?status=odd&method=cash&from=soon&to=2026-13-01&limit=0&cursor=x", "u1").await;
    wrong.is(400, "invalid_fields");
    insta::assert_json_snapshot!(wrong.json());
    world.get("/v1/orders?status=succeeded", "u1").await.is(400, "invalid_fields");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_refund_of_another_user_looks_like_none(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let refund = world.refund("u1", &id, "k1", &json!({})).await.header("location").to_owned();
    let theirs = world.get(&refund, "u2").await;
    theirs.is(404, "refund_not_found");
    assert_eq!(theirs.body, world.get(&format!("/v1/refunds/{}", "0".repeat(32)), "u2").await.body);
    world.get("/v1/refunds/%ff", "u1").await.is(404, "refund_not_found");
    world.request(Who::Nobody, Method::GET, &refund, None).await.is(401, "token_missing");
}
