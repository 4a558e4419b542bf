//! The lists of people: orders and refunds of all users, by any mix of filters.

use axum::http::Method;
use domain::{OrderId, RefundReport, RefundState, first_id_at};
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::support::{Who, returned};
use crate::world::{Answer, World};

const A: Who = Who::Admin("a1");

async fn get(world: &World, path: &str) -> Answer {
    world.request(A, Method::GET, path, None).await
}

/// The numbers of the orders that a query lists.
async fn listed(world: &World, query: &str) -> Vec<String> {
    let answer = get(world, &format!("/v1/admin/orders?{query}")).await;
    assert_eq!(answer.status.as_u16(), 200, "{query}: {}", answer.body);
    let orders = answer.json()["orders"].as_array().unwrap().clone();
    orders.iter().map(|order| order["order_no"].as_str().unwrap().to_owned()).collect()
}

fn z(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap().format(&Rfc3339).unwrap()
}

/// A range of creation times from so many days ago until now.
fn since(days: i64) -> String {
    let now = Clock::system().now();
    format!("created_from={}&created_to={}", z(now - Duration::days(days)), z(now + Duration::minutes(1)))
}

/// Orders ORDER_0 to ORDER_5, placed 0, 1, 2, 3, 40 and 100 days ago, all alike.
async fn placed(db: &PgPool) -> Vec<String> {
    testkit::make_up_facts(db).await;
    let mut ids = Vec::new();
    for (n, days) in [0, 1, 2, 3, 40, 100].into_iter().enumerate() {
        let at = Clock::system().now() - Duration::days(days) - Duration::minutes(2);
        let id = OrderId::from_u128(first_id_at(at) | n as u128).to_string();
        let order = "insert into payment_orders (id, user_id, order_no, product_type, subject, amount, payment_method, scene, account,
                expires_at, prepay, created_at, updated_at)
            values ($1, 'u1', $2, 'membership', 'one month', 10, 'wechat', 'native', 'main', $3, '{}', $3, $3)";
        sqlx::query(order).bind(&id).bind(format!("ORDER_{n}")).bind(at).execute(db).await.unwrap();
        ids.push(id);
    }
    ids
}

async fn set(db: &PgPool, sql: &'static str) {
    sqlx::raw_sql(sql).execute(db).await.unwrap();
}

/// What makes single orders differ from the others.
const DIFFERENCES: &str = "
    update payment_orders set status = 'paid', trade_no = 't1', paid_at = now() - interval '12 hours' where order_no = 'ORDER_1';
    update payment_orders set status = 'closed', closed_at = now(), extra_state = 'held', extra_amount = 10 where order_no = 'ORDER_2';
    update payment_orders set status = 'refunded', trade_no = 't3', paid_at = now() - interval '3 days', refunded_amount = 20.5,
        payment_method = 'alipay', scene = 'qr', account = 'other', product_type = 'credits', user_id = 'u2', amount = 20.5
        where order_no = 'ORDER_3';
    update payment_orders set extra_state = 'returned', user_id = 'u2' where order_no = 'ORDER_4';
    update payment_orders set account = 'other' where order_no = 'ORDER_5'";

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_filter_without_an_index_asks_for_a_range(db: PgPool) {
    let world = World::new(db.clone()).await;
    placed(&db).await;
    let days_ago = |days: i64| format!("created_from={}", z(Clock::system().now() - Duration::days(days)));
    let (too_long, long) = ([since(31), days_ago(32)], [since(30), days_ago(30)]);
    for filter in [
        "status=paid",
        "payment_method=wechat",
        "account=main",
        "scene=native",
        "product_type=membership",
        "amount_from=1",
        "amount_to=1",
        "paid_from=2026-01-01",
        "paid_to=2026-01-01",
        "has_case=false",
    ] {
        let fixed = ["", "created_to=2026-01-31", "created_from=2026-01-01&created_to=2026-02-01"];
        for range in fixed.into_iter().chain(too_long.iter().map(String::as_str)) {
            let answer = get(&world, &format!("/v1/admin/orders?{filter}&{range}")).await;
            answer.is(400, "range_required");
            let title = answer.json()["title"].as_str().unwrap().to_owned();
            assert!(title.contains("created_from and created_to, at most 31 days apart"), "{title}");
        }
        let fixed = "created_from=2026-01-01&created_to=2026-01-31";
        for range in long.iter().map(String::as_str).chain([fixed]) {
            let answer = get(&world, &format!("/v1/admin/orders?{filter}&{range}")).await;
            assert_eq!(answer.status.as_u16(), 200, "{filter} {range}: {}", answer.body);
        }
        for index in ["user_id=u1", "has_case=true", "extra_payment=held"] {
            if filter == "has_case=false" && index == "has_case=true" {
                continue;
            }
            assert_eq!(get(&world, &format!("/v1/admin/orders?{filter}&{index}")).await.status.as_u16(), 200);
        }
    }
    for free in ["", "limit=1", "created_from=2020-01-01", "created_to=2099-01-01"] {
        assert_eq!(get(&world, &format!("/v1/admin/orders?{free}")).await.status.as_u16(), 200, "{free}");
    }
    for sums in ["", "user_id=u1", "created_from=2020-01-01", "created_from=2026-01-01&created_to=2026-02-01"] {
        get(&world, &format!("/v1/admin/orders/summary?{sums}")).await.is(400, "range_required");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_a_filter_cannot_be_is_named(db: PgPool) {
    let world = World::new(db).await;
    for (query, field) in [
        ("status=PAID", "status"),
        ("status=paid,", "status"),
        ("status=paid;closed", "status"),
        ("payment_method=paypal", "payment_method"),
        ("account=MAIN", "account"),
        ("scene=tv", "scene"),
        ("product_type=a%20b", "product_type"),
        ("user_id=%E4%BA%BA", "user_id"),
        ("user_id=a%00b", "user_id"),
        ("amount_from=1.234", "amount_from"),
        ("amount_to=-1", "amount_to"),
        ("amount_from=2&amount_to=1", "amount_to"),
        ("created_from=yesterday", "created_from"),
        ("created_from=2026-01-02&created_to=2026-01-01T00:00:00Z", "created_to"),
        ("paid_from=2026-01-02&paid_to=2026-01-01T00:00:00Z", "paid_to"),
        ("has_case=yes", "has_case"),
        ("extra_payment=late", "extra_payment"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
    ] {
        let answer = get(&world, &format!("/v1/admin/orders?{query}")).await;
        answer.is(400, "invalid_fields");
        assert_eq!(answer.json()["errors"][0]["field"], field, "{query}: {}", answer.body);
    }
    for (query, field) in [
        ("status=paid", "status"),
        ("origin=console", "origin"),
        ("requested_by=a%00b", "requested_by"),
        ("requested_by=", "requested_by"),
        ("order_id=ORDER_1", "order_id"),
    ] {
        let answer = get(&world, &format!("/v1/admin/refunds?{query}")).await;
        answer.is(400, "invalid_fields");
        assert_eq!(answer.json()["errors"][0]["field"], field, "{query}: {}", answer.body);
    }
    get(&world, "/v1/admin/orders/summary?limit=1").await.is(400, "invalid_fields");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_filter_leaves_its_orders(db: PgPool) {
    let world = World::new(db.clone()).await;
    let ids = placed(&db).await;
    set(&db, DIFFERENCES).await;
    world.case("late_payment", Some(&ids[2]), "4200000042").await;
    world.case("dead_letter", Some(&ids[4]), "done").await;
    set(&db, "update cases set status = 'resolved' where kind = 'dead_letter'").await;
    let month = since(30);
    let hour = |hours: i64| z(Clock::system().now() - Duration::hours(hours));
    for (query, expected) in [
        (String::new(), &[0, 1, 2, 3, 4, 5][..]),
        (since(50), &[0, 1, 2, 3, 4]),
        (format!("created_from={}&created_to={}", hour(49), hour(23)), &[1, 2]),
        (format!("status=paid&{month}"), &[1]),
        (format!("status=paid,refunded,closed&{month}"), &[1, 2, 3]),
        (format!("status=refunding&{month}"), &[]),
        (format!("payment_method=alipay&{month}"), &[3]),
        (format!("account=other&{month}"), &[3]),
        (format!("scene=native&{month}"), &[0, 1, 2]),
        (format!("product_type=credits&{month}"), &[3]),
        (format!("amount_from=20.50&{month}"), &[3]),
        (format!("amount_to=20.49&{month}"), &[0, 1, 2]),
        (format!("amount_from=10&amount_to=10&{month}"), &[0, 1, 2]),
        (format!("paid_from={}&{month}", hour(24)), &[1]),
        (format!("paid_to={}&{month}", hour(24)), &[3]),
        (format!("has_case=false&{month}"), &[0, 1, 3]),
        ("has_case=true".to_owned(), &[2]),
        ("user_id=u2".to_owned(), &[3, 4]),
        ("user_id=u2&status=pending".to_owned(), &[4]),
        ("user_id=u3".to_owned(), &[]),
        ("extra_payment=held".to_owned(), &[2]),
        ("extra_payment=returned".to_owned(), &[4]),
        ("extra_payment=returned&user_id=u1".to_owned(), &[]),
        ("extra_payment=held&has_case=true".to_owned(), &[2]),
        ("extra_payment=returned&has_case=true".to_owned(), &[]),
    ] {
        let expected: Vec<String> = expected.iter().map(|n| format!("ORDER_{n}")).collect();
        assert_eq!(listed(&world, &query).await, expected, "{query}");
    }
    let shown = get(&world, "/v1/admin/orders").await.json();
    let late = &shown["orders"][2];
    assert_eq!((&late["case"], &late["late"], &late["status"]), (&json!(true), &json!(true), &json!("closed")));
    assert_eq!(late["extra_payment"], json!({ "state": "held", "amount": "10.00" }));
    let plain = &shown["orders"][0];
    assert_eq!((&plain["case"], &plain["late"], &plain["extra_payment"]), (&json!(false), &json!(false), &Value::Null));
    let members: Vec<&String> = plain.as_object().unwrap().keys().collect();
    assert!(!members.iter().any(|name| ["metadata", "prepay", "client_ip"].contains(&name.as_str())), "{members:?}");
    let resolved = &shown["orders"][4];
    assert_eq!((&resolved["case"], &resolved["late"]), (&json!(false), &json!(false)));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_summary_adds_up_what_the_list_shows(db: PgPool) {
    let world = World::new(db.clone()).await;
    placed(&db).await;
    set(&db, DIFFERENCES).await;
    let sums =
        async |filter: &str| get(&world, &format!("/v1/admin/orders/summary?{filter}&{}", since(30))).await.json();
    assert_eq!(
        sums("").await,
        json!({ "count": 4, "amount": "50.50", "paid_count": 2, "paid_amount": "30.50", "refunded_amount": "20.50" }),
    );
    assert_eq!(
        sums("status=paid&user_id=u1").await,
        json!({ "count": 1, "amount": "10.00", "paid_count": 1, "paid_amount": "10.00", "refunded_amount": "0.00" }),
    );
    assert_eq!(
        sums("account=none").await,
        json!({ "count": 0, "amount": "0.00", "paid_count": 0, "paid_amount": "0.00", "refunded_amount": "0.00" }),
    );
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_row_with_a_time_that_cannot_be_fails_no_list(db: PgPool) {
    let world = World::new(db.clone()).await;
    placed(&db).await;
    set(&db, DIFFERENCES).await;
    set(&db, "update payment_orders set paid_at = '-infinity' where order_no = 'ORDER_1'").await;
    let shown = get(&world, "/v1/admin/orders").await.json();
    assert_eq!(shown["orders"][1]["paid_at"], Value::Null);
    assert!(shown["orders"][3]["paid_at"].is_string());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn pages_follow_each_other_and_a_cursor_is_of_one_list(db: PgPool) {
    let world = World::new(db.clone()).await;
    placed(&db).await;
    let paid = world.paid("u1").await;
    for key in ["k1", "k2"] {
        let refund = world.refund("u1", &paid, key, &json!({ "amount": "1" })).await.json();
        world.tell(refund["id"].as_str().unwrap(), &returned()).await;
    }
    let mut seen = Vec::new();
    let mut path = "/v1/admin/orders?limit=2".to_owned();
    loop {
        let page = get(&world, &path).await.json();
        seen.extend(page["orders"].as_array().unwrap().iter().map(|order| order["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/admin/orders?limit=2&cursor={cursor}");
    }
    assert_eq!(seen.len(), 7);
    assert!(seen.is_sorted_by(|a, b| a > b), "{seen:?}");

    let cursor = async |path: &str| {
        let page = get(&world, path).await.json();
        page["next_cursor"].as_str().unwrap_or_else(|| panic!("{path}: {page}")).to_owned()
    };
    let of_orders = cursor("/v1/admin/orders?limit=1").await;
    let of_refunds = cursor("/v1/admin/refunds?limit=1").await;
    let of_user = world.get("/v1/refunds?limit=1", "u1").await.json()["next_cursor"].as_str().unwrap().to_owned();
    for (list, strange) in [
        ("orders", &of_refunds),
        ("refunds", &of_orders),
        ("orders", &of_user),
        ("refunds", &of_user),
        ("cases", &of_orders),
        ("orders", &"zzz".to_owned()),
    ] {
        let answer = get(&world, &format!("/v1/admin/{list}?cursor={strange}")).await;
        answer.is(400, "invalid_fields");
        assert_eq!(answer.json()["errors"][0]["field"], "cursor");
    }
    world.get(&format!("/v1/refunds?cursor={of_refunds}"), "u1").await.is(400, "invalid_fields");
    let rest = get(&world, &format!("/v1/admin/refunds?cursor={of_refunds}")).await.json();
    assert_eq!((rest["refunds"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_filter_leaves_its_refunds(db: PgPool) {
    let world = World::new(db.clone()).await;
    let (one, two) = (world.paid("u1").await, world.paid("u2").await);
    let refund = async |user: &'static str, order: &str, key: &str| {
        let refund = world.refund(user, order, key, &json!({ "amount": "1", "reason": "broken" })).await.json();
        refund["id"].as_str().unwrap_or_else(|| panic!("{refund}")).to_owned()
    };
    let done = refund("u1", &one, "k1").await;
    world.tell(&done, &returned()).await;
    let waits = refund("u1", &one, "k2").await;
    let closed = refund("u2", &two, "k3").await;
    world.tell(&closed, &RefundReport::of(RefundState::Closed)).await;
    let outside = refund("u2", &two, "k4").await;
    world.tell(&outside, &RefundReport { gateway_refund_no: Some("5031".to_owned()), ..returned() }).await;
    sqlx::query("update refund_records set origin = 'outside', outside_key = 'x' where id = $1")
        .bind(&outside)
        .execute(&db)
        .await
        .unwrap();
    let month = since(30);
    for (query, expected) in [
        (String::new(), vec![&outside, &closed, &waits, &done]),
        ("status=succeeded".to_owned(), vec![&outside, &done]),
        ("status=pending,processing".to_owned(), vec![&waits]),
        ("status=failed".to_owned(), vec![&closed]),
        ("status=failed,succeeded".to_owned(), vec![&outside, &closed, &done]),
        ("requested_by=u2".to_owned(), vec![&outside, &closed]),
        ("requested_by=u2&origin=service".to_owned(), vec![&closed]),
        (format!("order_id={one}"), vec![&waits, &done]),
        (format!("order_id={one}&status=succeeded"), vec![&done]),
        (format!("order_id={}", "0".repeat(32)), vec![]),
        (format!("origin=outside&{month}"), vec![&outside]),
        (format!("payment_method=alipay&{month}"), vec![]),
        (format!("payment_method=wechat&account=main&{month}"), vec![&outside, &closed, &waits, &done]),
        ("status=failed&account=main".to_owned(), vec![&closed]),
        ("created_from=2020-01-01&created_to=2020-02-01".to_owned(), vec![]),
    ] {
        let answer = get(&world, &format!("/v1/admin/refunds?{query}")).await;
        assert_eq!(answer.status.as_u16(), 200, "{query}: {}", answer.body);
        let found = answer.json()["refunds"].as_array().unwrap().clone();
        let found: Vec<&str> = found.iter().map(|refund| refund["id"].as_str().unwrap()).collect();
        let expected: Vec<&str> = expected.iter().map(|id| id.as_str()).collect();
        assert_eq!(found, expected, "{query}");
    }
    for filter in ["payment_method=wechat", "account=main", "origin=outside", "origin=outside&status=succeeded"] {
        get(&world, &format!("/v1/admin/refunds?{filter}")).await.is(400, "range_required");
    }
    let row = &get(&world, "/v1/admin/refunds?status=failed").await.json()["refunds"][0];
    assert_eq!((&row["order_id"], &row["requested_by"]), (&json!(two), &json!("u2")));
    assert_eq!((&row["amount"], &row["reason"], &row["attempts"]), (&json!("1.00"), &json!("broken"), &json!(1)));
    assert!(row["since"].is_string() && row["order_no"].is_string(), "{row}");
}
