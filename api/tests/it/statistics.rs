//! `GET /v1/admin/stats`: the hours add up to what the tables hold, also after an old hour has changed.

use axum::http::Method;
use serde_json::{Value, json};
use shared::clock::Clock;
use shared::settle::refunds::RefundFact;
use sqlx::PgPool;
use time::Duration;
use time::macros::datetime;

use crate::support::{Who, returned};
use crate::world::{Setup, World};

#[sqlx::test(migrator = "shared::db::MIGRATOR")]
async fn days_add_up(db: PgPool) {
    // Noon in Beijing: no test lasts until midnight.
    let noon = datetime!(2026-01-05 04:00 UTC);
    let world = World::with(db, Setup { clock: Clock::fixed(noon), ..Setup::default() }).await;
    for _ in 0..2 {
        world.placed("u1").await;
    }
    let (first, second) = (world.placed("u1").await, world.placed("u2").await);
    world.pay_at(&first, noon + Duration::seconds(30)).await;
    world.pay_at(&second, noon + Duration::seconds(40)).await;
    let refund = world.refund("u1", &first, "k1", &json!({ "amount": "2.34" })).await.json();
    world.tell(refund["id"].as_str().unwrap(), &returned()).await;
    let failed = world.refund("u1", &first, "k2", &json!({})).await.json();
    world.tell(failed["id"].as_str().unwrap(), &RefundFact::Failed { why: "no".to_owned(), closed: false }).await;
    world.order("u1").await;
    let before = world.ask(Who::Admin("a1"), Method::GET, "/v1/admin/stats", None).await.json();
    assert_eq!((&before["refreshed_at"], &before["days"]), (&Value::Null, &json!([])), "nobody has counted yet");

    world.counted(noon + Duration::minutes(1)).await;
    let view = world.ask(Who::Admin("a1"), Method::GET, "/v1/admin/stats", None).await.json();
    insta::assert_json_snapshot!(view["days"]);
}

#[sqlx::test(migrator = "shared::db::MIGRATOR")]
async fn an_hour_of_the_past_is_counted_again_when_it_changes(db: PgPool) {
    // 23:30 in Beijing: the payment comes on the next day and counts for the day of the order.
    let past = datetime!(2026-01-05 15:30 UTC);
    let world = World::with(db.clone(), Setup { clock: Clock::fixed(past), ..Setup::default() }).await;
    let body = crate::world::wechat_order();
    let placed = world.create("u1", "k1", &body).await.json();
    let id = placed["order"]["id"].as_str().unwrap();
    world.counted(past + Duration::days(9)).await;
    let stats = async || {
        let path = "/v1/admin/stats?from=2026-01-01&to=2026-01-31";
        world.ask(Who::Admin("a1"), Method::GET, path, None).await.json()["days"].clone()
    };
    let days = stats().await;
    assert_eq!((&days[0]["day"], &days[0]["orders"], &days[0]["paid"]), (&json!("2026-01-05"), &json!(1), &json!(0)));

    world.pay(id).await;
    sqlx::query(
        "insert into events (event_id, type, order_id, data, occurred_at) values ('e', 'order.paid', $1, '{}', now())",
    )
    .bind(id)
    .execute(&db)
    .await
    .unwrap();
    world.counted(past + Duration::days(9)).await;
    let days = stats().await;
    assert_eq!(
        (&days[0]["paid"], &days[0]["success_rate"], &days[0]["amount"]),
        (&json!(1), &json!(1.0), &json!("12.34"))
    );
    assert_eq!(days.as_array().unwrap().len(), 1);
    let seen: i64 = world.one("select seq from stats_progress").await;
    assert_eq!(seen, 0, "what was read is read once more: an event may become visible late");
    for _ in 0..2 {
        world.counted(past + Duration::days(9)).await;
    }
    assert_eq!(world.one::<i64>("select seq from stats_progress").await, 1);
    assert_eq!(stats().await, days, "counting again counts the same");
}

#[sqlx::test(migrator = "shared::db::MIGRATOR")]
async fn days_are_judged(db: PgPool) {
    let world = World::new(db).await;
    for query in ["from=2026-02-01&to=2026-01-01", "from=2024-01-01&to=2026-01-01", "from=x", "to=2026-02-30", "to="] {
        let path = format!("/v1/admin/stats?{query}");
        world.ask(Who::Admin("a1"), Method::GET, &path, None).await.is(400, "invalid_fields");
    }
    let year = world.ask(Who::Admin("a1"), Method::GET, "/v1/admin/stats?from=2024-01-01&to=2024-12-31", None).await;
    assert_eq!(year.status.as_u16(), 200);
}
