//! Authentic notifications with odd or absent values: which values we accept, and what a person sees of the others.

use domain::OrderStatus::{Paid, Pending};
use domain::PaymentMethod::{self, Alipay, Wechat};
use domain::message::callback::Callback;
use domain::{Money, RefundStatus, Scene};
use gateway_sim::ledger::{RefundState, Trade};
use gateway_sim::notify::Overrides;
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::orders::{self, Created, NewOrder, Order};
use time::Duration;
use worker::consumer::Ack;

use crate::support::World;

/// Fields of what is signed: other values, or none.
fn with(fields: &[(&str, Option<Value>)]) -> Overrides {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Overrides { fields, ..Overrides::default() }
}

async fn notes(world: &World) -> Vec<Option<String>> {
    sqlx::query_scalar("select note from callbacks order by id").fetch_all(&world.db).await.unwrap()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_payment_whose_time_cannot_be_settles_at_our_own_time(db: PgPool) {
    let world = World::new(db);
    let ahead = Clock::system().now() + Duration::days(3);
    let ahead = ahead.date().to_string();
    let odd = [
        (Alipay, "gmt_payment", json!("0000-01-01 00:00:00")),
        (Alipay, "gmt_payment", json!("1999-12-31 23:59:59")),
        (Alipay, "gmt_payment", json!("9999-12-31 23:59:59")),
        (Alipay, "gmt_payment", json!(format!("{} 00:00:00", ahead))),
        (Alipay, "gmt_payment", json!("soon")),
        (Alipay, "gmt_payment", json!("2026-02-30 10:00:00")),
        (Wechat, "/success_time", json!("9999-12-31T23:59:59-08:00")),
        (Wechat, "/success_time", json!("0000-01-01T00:00:00+08:00")),
        (Wechat, "/success_time", json!(format!("{}T00:00:00+08:00", ahead))),
        (Wechat, "/success_time", json!("soon")),
    ];
    for (method, field, value) in &odd {
        let order = world.pending_order(*method, "5").await;
        let before = Clock::system().now();
        let callback = world.notice_of(&world.paid_trade(&order), &with(&[(field, Some(value.clone()))]));
        assert_eq!(world.settle(vec![callback.clone()]).await, [Ack::Done], "{value}");
        let paid = world.order(&order.id).await;
        assert_eq!(paid.status, Paid, "{value}");
        let at = paid.paid_at.unwrap();
        // To the microsecond, as the column has it.
        assert!(at >= before - Duration::MILLISECOND && at <= Clock::system().now(), "{value}: {at}");
    }
    assert_eq!(world.cases().await, []);
    assert_eq!(world.verdicts().await, vec![("settled".to_owned(), 1); odd.len()]);
    let notes = notes(&world).await;
    for ((_, field, _), note) in odd.iter().zip(&notes) {
        let note = note.as_deref().unwrap();
        assert!(note.contains(field.trim_start_matches('/')) && note.contains("our own time"), "{note}");
    }
    for (_, data) in world.events().await {
        assert!(data["paid_at"].as_str().unwrap().starts_with("20"), "{data}");
    }

    // What is stored already, from before such times were set aside, is shown without the time.
    let stored = world.pending_order(Alipay, "5").await;
    world.settle(vec![world.paid(&stored)]).await;
    for time in ["0001-01-01 00:00Z BC", "infinity"] {
        sqlx::query("update payment_orders set paid_at = $1::text::timestamptz where id = $2")
            .bind(time)
            .bind(stored.id.to_string())
            .execute(&world.db)
            .await
            .unwrap();
        let order = world.order(&stored.id).await;
        assert_eq!((order.status, order.paid_at), (Paid, None), "{time}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_doubted_time_is_in_the_evidence_of_a_case_too(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Wechat, "5").await;
    let odd = with(&[("/success_time", Some(json!("9999-12-31T23:59:59-08:00")))]);
    let odd = Overrides { amount_fen: Some(1), ..odd };
    world.settle(vec![world.notice_of(&world.paid_trade(&order), &odd)]).await;
    let cases = world.cases().await;
    assert_eq!(cases[0].0, "amount_mismatch");
    assert!(cases[0].1["doubt"].as_str().unwrap().starts_with("success_time"), "{}", cases[0].1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_time_of_receipt_that_the_queue_invents_is_no_time_of_payment(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "5").await;
    let odd = with(&[("gmt_payment", Some(json!("0000-01-01 00:00:00")))]);
    let callback = world.notice_of(&world.paid_trade(&order), &odd);
    let invented = time::macros::datetime!(9999-12-31 23:59:59 UTC);
    let before = Clock::system().now();
    world.settle(vec![Callback { received_at: invented, ..callback }]).await;
    let at = world.order(&order.id).await.paid_at.unwrap();
    assert!(at >= before - Duration::MILLISECOND && at <= Clock::system().now(), "{at}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_notice_without_a_payee_settles(db: PgPool) {
    let world = World::new(db);
    for fields in [
        vec![("seller_id", None)],
        vec![("seller_id", None), ("seller_email", Some(json!("shop@example.com")))],
        vec![("seller_id", Some(json!("")))],
        vec![
            ("seller_id", None),
            ("buyer_id", None),
            ("subject", None),
            ("receipt_amount", None),
            ("gmt_payment", None),
        ],
    ] {
        let order = world.pending_order(Alipay, "5").await;
        world.settle(vec![world.notice_of(&world.paid_trade(&order), &with(&fields))]).await;
        assert_eq!(world.status(&order).await, Paid, "{fields:?}");
    }
    assert_eq!(world.cases().await, []);
}

/// An order that was placed with this app.
async fn placed_with(world: &World, method: PaymentMethod, app: &str) -> Order {
    let params = match method {
        Alipay => json!({ "app_id": app, "method": "alipay.trade.page.pay" }),
        Wechat => json!({ "appid": app, "body": "{}" }),
    };
    let scene = if method == Alipay { Scene::Page } else { Scene::Native };
    let new = NewOrder {
        amount: Money::from_yuan("5").unwrap(),
        payment_method: method,
        scene,
        prepay: json!({ "scene": scene, "params": params }),
        ..testkit::new_order()
    };
    let created = orders::create(&world.db, std::slice::from_ref(&new)).await.unwrap();
    assert!(matches!(created[..], [Created::Unanswered]));
    world.order(&new.id).await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_app_that_an_order_was_placed_with_is_taken_for_it_and_for_no_other(db: PgPool) {
    let world = World::new(db);
    for (method, field, app, foreign) in [
        (Alipay, "app_id", "2021000000000001", "2021000000000002"),
        (Wechat, "/appid", "wx1111111111111111", "wx3333333333333333"),
    ] {
        let named = |order: &Order, app: &str| {
            let overrides = with(&[(field, Some(json!(app)))]);
            world.notice_of(&world.paid_trade(order), &overrides)
        };
        // The account has another app since.
        let old = placed_with(&world, method, app).await;
        world.settle(vec![named(&old, app)]).await;
        assert_eq!(world.status(&old).await, Paid, "{method}");
        // A renewed credential is under the app of today.
        let renewed = placed_with(&world, method, app).await;
        world.settle(vec![world.paid(&renewed)]).await;
        assert_eq!(world.status(&renewed).await, Paid, "{method}");
        for (order, app) in
            [(placed_with(&world, method, app).await, foreign), (world.pending_order(method, "5").await, app)]
        {
            world.settle(vec![named(&order, app)]).await;
            assert_eq!(world.status(&order).await, Pending, "{method} {app}");
        }
    }
    let kinds: Vec<String> = world.cases().await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["wrong_merchant"; 4]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_no_key_decrypts_waits_for_another_key(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Wechat, "5").await;
    let mut overrides = Overrides::default();
    overrides.envelope.insert("/resource/associated_data".to_owned(), Some(json!("other")));
    let sealed = world.notice_of(&world.paid_trade(&order), &overrides);
    assert_eq!(world.settle(vec![sealed, world.paid(&order)]).await, [Ack::Done, Ack::Done]);
    assert_eq!(world.status(&order).await, Paid, "and delays no other");
    assert_eq!(world.count("callback jobs").await, 1);
    assert_eq!(world.cases().await, []);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_notice_of_a_refund_of_another_trade_is_a_case_and_settles_nothing(db: PgPool) {
    let world = World::new(db);
    for method in [Alipay, Wechat] {
        let order = world.pending_order(method, "5").await;
        let trade = world.paid_trade(&order);
        world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await;
        let refund = world.request_refund(order.id, Some("2")).await.unwrap();
        let returned = |of: Trade| of.refunded(refund.refund_no.as_str(), 200, RefundState::Success);
        let notice = |of: Trade| world.notice_of(&returned(of), &Overrides::default());
        world.settle(vec![notice(world.paid_trade(&order))]).await;
        assert_eq!(world.refund(refund.id).await.status, RefundStatus::Pending, "{method}");
        let (kind, evidence) = world.cases().await.pop().unwrap();
        assert_eq!((kind.as_str(), &evidence["refund_no"]), ("unknown_refund", &json!(refund.refund_no)), "{method}");
        assert_ne!(evidence["trade_no"], json!(trade.trade_no));
        // The refund's own trade: WeChat Pay says that it ended, Alipay's notice has us ask.
        world.settle(vec![notice(trade)]).await;
        let settled = if method == Wechat { RefundStatus::Succeeded } else { RefundStatus::Pending };
        assert_eq!(world.refund(refund.id).await.status, settled, "{method}");
    }
    assert_eq!(world.cases().await.len(), 2);
}
