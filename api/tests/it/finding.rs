//! The search: any number that a person reads leads to its order, and nothing else does.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Who, returned};
use crate::world::{Answer, World};

const A: Who = Who::Admin("a1");

async fn search(world: &World, number: &str) -> Answer {
    let number: String = url::form_urlencoded::byte_serialize(number.as_bytes()).collect();
    world.request(A, Method::GET, &format!("/v1/admin/search?number={number}"), None).await
}

/// What the search finds: of each hit its kind, its id and what matched.
async fn hits(world: &World, number: &str) -> Vec<(String, String, String)> {
    let answer = search(world, number).await;
    assert_eq!(answer.status.as_u16(), 200, "{number}: {}", answer.body);
    let text = |hit: &Value, name: &str| hit[name].as_str().unwrap().to_owned();
    let hits = answer.json()["hits"].as_array().unwrap().clone();
    hits.iter().map(|hit| (text(hit, "kind"), text(hit, "id"), text(hit, "matched"))).collect()
}

fn hit(kind: &str, id: &str, matched: &str) -> Vec<(String, String, String)> {
    vec![(kind.to_owned(), id.to_owned(), matched.to_owned())]
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_is_no_number_is_refused(db: PgPool) {
    let world = World::new(db).await;
    world.paid("u1").await;
    for wrong in ["", " ", "4200 0022 1920", "订单号", "4200000\u{0}", &"1".repeat(129), "' or 1=1 --"] {
        let answer = search(&world, wrong).await;
        answer.is(400, "invalid_fields");
        assert_eq!(answer.json()["errors"][0]["field"], "number", "{wrong:?}");
    }
    for query in ["", "?", "?numbers=42", "?number=42000000&number=42000001", "?number=42000000&limit=1"] {
        let path = format!("/v1/admin/search{query}");
        world.request(A, Method::GET, &path, None).await.is(400, "invalid_fields");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn the_start_of_a_number_has_eight_characters(db: PgPool) {
    let world = World::new(db).await;
    let order = world.paid("u1").await;
    let trade_no = format!("42{}", &order[2..]);
    let order_no: String = world.one("select order_no from payment_orders").await;
    for number in [&trade_no, &order_no] {
        for length in 1..8 {
            let short = search(&world, &number[..length]).await;
            short.is(400, "invalid_fields");
            assert!(short.body.contains("at least 8 characters"), "{}", short.body);
        }
    }
    for length in [8, 9, trade_no.len() - 1, trade_no.len()] {
        assert_eq!(hits(&world, &trade_no[..length]).await, hit("order", &order, "trade_no"), "{length}");
        assert_eq!(hits(&world, &order_no[..length]).await, hit("order", &order, "order_no"), "{length}");
    }
    assert_eq!(hits(&world, &format!("{trade_no}0")).await, [], "longer than any");
    assert_eq!(hits(&world, &trade_no[1..]).await, [], "an end is no start");
    assert_eq!(hits(&world, &order[..31]).await, [], "an id is whole");
}

/// None of these is a pattern, and none leaves its quotes.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn no_character_of_a_number_has_a_meaning(db: PgPool) {
    let world = World::new(db).await;
    let order = world.paid("u1").await;
    let trade_no = format!("42{}", &order[2..]);
    for number in [
        "%%%%%%%%",
        "________",
        "42%%%%%%%%",
        &format!("{}_", &trade_no[..9]),
        "'or'1'='1",
        "';drop/**/table/**/cases;--",
        "\\\\\\\\\\\\\\\\",
        "$1::text",
        "^[0-9a-f]+$",
        "(order_no:1)",
        "~~~~~~~~",
    ] {
        assert_eq!(hits(&world, number).await, [], "{number}");
    }
    assert_eq!(world.count("cases").await, 0);
    assert_eq!(hits(&world, &format!(" {trade_no}\n")).await.len(), 1, "blanks come with copying");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_kind_of_number_leads_to_its_row(db: PgPool) {
    let world = World::new(db).await;
    let order = world.paid("u1").await;
    let order_no: String = world.one("select order_no from payment_orders").await;
    let refund = world.refund("u1", &order, "k1", &json!({ "amount": "1" })).await.json();
    let (refund, refund_no) = (refund["id"].as_str().unwrap(), refund["refund_no"].as_str().unwrap());
    world.tell(refund, &returned()).await;
    let late = world.late_payment(&order, "4200000042").await;
    let unknown = world.case("unknown_order", None, "420000002220261129").await;
    for (number, kind, id, matched) in [
        (&*order, "order", &*order, "order_id"),
        (&order_no, "order", &order, "order_no"),
        (&format!("42{}", &order[2..]), "order", &order, "trade_no"),
        (refund, "refund", refund, "refund_id"),
        (refund_no, "refund", refund, "refund_no"),
        ("5030", "refund", refund, "gateway_refund_no"),
        (&late, "case", &late, "case_id"),
        ("420000002220261129", "case", &unknown, "subject_ref"),
        (&format!("refund.succeeded:{refund}"), "event", &format!("refund.succeeded:{refund}"), "event_id"),
        ("u1", "user", "u1", "user_id"),
    ] {
        assert_eq!(hits(&world, number).await, hit(kind, id, matched), "{number}");
    }
    // A payment beside the order's own, which has a case too.
    let late_trade = search(&world, "4200000042").await.json();
    let kinds: Vec<&Value> = late_trade["hits"].as_array().unwrap().iter().map(|hit| &hit["kind"]).collect();
    assert!(kinds.contains(&&json!("order")) && kinds.contains(&&json!("case")) && kinds.len() == 2, "{late_trade}");
    assert!(late_trade["hits"].as_array().unwrap().iter().all(|hit| hit["order_id"] == order.as_str()));

    let seen = search(&world, refund_no).await.json();
    let seen = &seen["hits"][0];
    assert_eq!((&seen["order_id"], &seen["number"]), (&json!(order), &json!(refund_no)));
    assert_eq!((&seen["status"], &seen["amount"]), (&json!("succeeded"), &json!("1.00")));
    assert!(seen["created_at"].as_str().unwrap().ends_with('Z'));
    for without in ["420000002220261129", "u1"] {
        assert_eq!(search(&world, without).await.json()["hits"][0]["order_id"], Value::Null, "{without}");
    }
}

/// Numbers of another merchant are found nowhere.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_strange_number_finds_nothing(db: PgPool) {
    let world = World::new(db).await;
    world.paid("u1").await;
    for number in ["2099010122001499990000000000", &"f".repeat(32), "order.paid:0199", "user-of-another-shop"] {
        let answer = search(&world, number).await;
        assert_eq!(answer.body, r#"{"hits":[],"more":false}"#, "{number}");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn fifty_hits_are_shown_and_more_are_said(db: PgPool) {
    let world = World::new(db).await;
    let orders = "insert into payment_orders (id, user_id, order_no, product_type, subject, amount, payment_method, scene, account,
            expires_at, prepay, created_at, updated_at)
        select lpad(to_hex(n), 32, '0'), 'u' || n, 'PREFIX_A' || lpad(n::text, 4, '0'), 'a', 'a', 1, 'wechat', 'native', 'main', now(),
            '{}', timestamptz '2026-01-01 00:00Z' + n * interval '1 second', now()
        from generate_series(1, 51) n";
    sqlx::query(orders).execute(&world.db).await.unwrap();
    let all = search(&world, "PREFIX_A").await.json();
    let numbers: Vec<&str> =
        all["hits"].as_array().unwrap().iter().map(|hit| hit["number"].as_str().unwrap()).collect();
    assert_eq!((numbers.len(), &all["more"]), (50, &json!(true)));
    assert_eq!((numbers[0], numbers[49]), ("PREFIX_A0051", "PREFIX_A0002"), "newest first");
    let fifty = search(&world, "PREFIX_A00").await.json();
    assert_eq!((fifty["hits"].as_array().unwrap().len(), &fifty["more"]), (50, &json!(true)));
    sqlx::query("delete from payment_orders where order_no = 'PREFIX_A0001'").execute(&world.db).await.unwrap();
    let fifty = search(&world, "PREFIX_A").await.json();
    assert_eq!((fifty["hits"].as_array().unwrap().len(), &fifty["more"]), (50, &json!(false)));
}

/// Two orders with the same start, of which one is the whole number: both are shown.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_whole_number_can_be_the_start_of_another(db: PgPool) {
    let world = World::new(db).await;
    let (one, two) = (world.placed("u1").await, world.placed("u2").await);
    world.late_payment(&one, "42000000").await;
    world.late_payment(&two, "420000001").await;
    let orders = |hits: Vec<(String, String, String)>| hits.into_iter().filter(|hit| hit.0 == "order").count();
    assert_eq!(orders(hits(&world, "42000000").await), 2);
    assert_eq!(orders(hits(&world, "420000001").await), 1);
}
