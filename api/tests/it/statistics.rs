//! `GET /v1/admin/stats`: the hours add up to what the tables hold, also after an old hour has changed.

use axum::http::Method;
use domain::{CaseId, Fact, Money, OrderId, RefundReport, RefundState, TradeNo, Verdict};
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;
use time::macros::datetime;

use crate::support::{Who, returned};
use crate::world::{Setup, World};

#[sqlx::test(migrator = "store::MIGRATOR")]
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
    world.tell(failed["id"].as_str().unwrap(), &RefundReport::of(RefundState::Absent)).await;
    world.order("u1").await;
    let before = world.request(Who::Admin("a1"), Method::GET, "/v1/admin/stats", None).await.json();
    assert_eq!((&before["refreshed_at"], &before["days"]), (&Value::Null, &json!([])), "nobody has counted yet");

    world.counted(noon + Duration::minutes(1)).await;
    let view = world.request(Who::Admin("a1"), Method::GET, "/v1/admin/stats", None).await.json();
    insta::assert_json_snapshot!(view["days"]);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
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
        world.request(Who::Admin("a1"), Method::GET, path, None).await.json()["days"].clone()
    };
    let days = stats().await;
    assert_eq!((&days[0]["day"], &days[0]["orders"], &days[0]["paid"]), (&json!("2026-01-05"), &json!(1), &json!(0)));

    world.pay(id).await;
    testkit::make_up_facts(&db).await;
    sqlx::query(
        "insert into events (event_id, type, order_id, data, occurred_at) \
         values ('order.paid:' || $1, 'order.paid', $1, '{}', now())",
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

/// The days of this week, added up: orders and extra payments of a test can lie on both sides of a midnight.
async fn week(world: &World) -> impl Fn(&str) -> String {
    world.counted(Clock::system().now()).await;
    let view = world.request(Who::Admin("a1"), Method::GET, "/v1/admin/stats", None).await.json();
    let days = view["days"].as_array().unwrap().clone();
    move |name| {
        let sums = days.iter().map(|day| match &day[name] {
            Value::String(yuan) => Money::from_yuan(yuan).unwrap().fen(),
            count => count.as_i64().unwrap(),
        });
        sums.sum::<i64>().to_string()
    }
}

/// An order that was paid twice: the second payment went back, and the order brought what it cost.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_second_payment_and_its_return_stand_beside_the_orders_own(db: PgPool) {
    let world = World::new(db).await;
    let id = world.paid("u1").await;
    let case = world.late_payment(&id, "4200000042").await;
    let seen = week(&world).await;
    assert_eq!([seen("amount"), seen("extra_payments"), seen("extra_amount")], ["1234", "1", "1234"]);
    crate::cases::both(&world, &case, json!({ "action": "refund" })).await;
    let refund: String = world.one("select id::text from refund_records").await;
    world.tell(&refund, &returned()).await;
    let seen = week(&world).await;
    assert_eq!(
        [seen("amount"), seen("refunded_amount"), seen("refunds"), seen("refunds_succeeded")],
        ["1234", "0", "0", "0"]
    );
    assert_eq!([seen("extra_amount"), seen("extra_refunds"), seen("extra_refunded")], ["1234", "1", "1234"]);
}

/// A late payment is extra until the order takes it, in whatever hour either of them lies.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_payment_that_an_order_takes_is_its_own_from_then_on(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    world.close_locally(&id).await;
    let case = world.late_payment(&id, "4200000042").await;
    // The payment is ten days old: only an event brings its hour back. The counting has come that far.
    let older = "update payment_transactions
                 set id = lpad(to_hex((extract(epoch from now() - interval '10 days') * 1000)::bigint), 12, '0') || substr(id, 13)
                 where gateway_no = '4200000042'";
    sqlx::query(older).execute(&world.db).await.unwrap();
    let begun = "insert into stats_progress (seq, next_seq, hour, refreshed_at, form)
                 values (0, 0, date_trunc('hour', now() - interval '11 days'), now(), 2)";
    sqlx::query(begun).execute(&world.db).await.unwrap();
    let stats = async || {
        world.counted(Clock::system().now()).await;
        let sums =
            "select concat_ws(' ', sum(paid), sum(amount), sum(extra_payments), sum(extra_amount)) from hourly_stats";
        world.one::<String>(sums).await
    };
    assert_eq!(stats().await, "0 0.00 1 12.34");
    let mut tx = world.db.begin().await.unwrap();
    let (order_id, trade_no) = (OrderId::parse(&id).unwrap(), TradeNo::parse("4200000042").unwrap());
    let said = Fact::Paid { trade_no, amount: Money::from_yuan("12.34").ok(), paid_at: Clock::system().now() };
    let case_id = CaseId::parse(&case).unwrap();
    let taken = store::settle::fulfil(&mut tx, order_id, case_id, Some(&said), &Clock::system()).await.unwrap();
    assert_eq!(taken, Verdict::Settled);
    tx.commit().await.unwrap();
    assert_eq!(stats().await, "1 12.34 0 0.00");
}

/// Hours that a relay of an earlier release has counted mix both.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn hours_of_another_form_are_counted_once_more(db: PgPool) {
    let past = datetime!(2026-01-05 15:30 UTC);
    let world = World::with(db, Setup { clock: Clock::fixed(past), ..Setup::default() }).await;
    world.paid("u1").await;
    world.counted(past + Duration::days(9)).await;
    let mixed = "with old as (update stats_progress set form = 1) update hourly_stats set refunded_amount = 12.34";
    sqlx::query(mixed).execute(&world.db).await.unwrap();
    world.counted(past + Duration::days(9)).await;
    assert_eq!(world.one::<String>("select sum(refunded_amount)::text from hourly_stats").await, "0.00");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn days_are_judged(db: PgPool) {
    let world = World::new(db).await;
    for query in ["from=2026-02-01&to=2026-01-01", "from=2024-01-01&to=2026-01-01", "from=x", "to=2026-02-30", "to="] {
        let path = format!("/v1/admin/stats?{query}");
        world.request(Who::Admin("a1"), Method::GET, &path, None).await.is(400, "invalid_fields");
    }
    let year =
        world.request(Who::Admin("a1"), Method::GET, "/v1/admin/stats?from=2024-01-01&to=2024-12-31", None).await;
    assert_eq!(year.status.as_u16(), 200);
}
