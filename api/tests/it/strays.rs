//! Payments that only a case records, refunded from that case by two people.

use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::cases::{A, both, step};
use crate::support::returned;
use crate::world::{Setup, World, minted_for};

impl World {
    /// A case whose evidence names a payment of 12.34 yuan at WeChat Pay.
    async fn stray(&self, kind: &str, order: Option<&str>, order_no: &str) -> String {
        let case = self.case(kind, order, "4200000077").await;
        let known = json!({
            "payment_method": "wechat", "account": "main", "order_no": order_no, "trade_no": "4200000077", "amount": "12.34",
            "notice_id": "n1", "paid_at": "2026-01-05T02:21:08Z",
        });
        let sql = "update cases set evidence = $2 where id = $1";
        sqlx::query(sql).bind(&case).bind(&known).execute(&self.db).await.unwrap();
        case
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_payment_of_an_unknown_number_goes_back_in_parts(db: PgPool) {
    let world = World::new(db).await;
    let case = world.stray("unknown_order", None, "SHOP_0001").await;
    sqlx::query("update cases set evidence = evidence - 'paid_at'").execute(&world.db).await.unwrap();
    let part = both(&world, &case, json!({ "action": "refund", "amount": "5" })).await;
    assert_eq!(part.status.as_u16(), 200, "{}", part.body);
    assert_eq!(part.json()["status"], "open", "7.34 yuan are left");
    let made = "select concat_ws(' ', order_no, status, user_id, amount, trade_no) from payment_orders";
    assert_eq!(world.one::<String>(made).await, "SHOP_0001 closed - 12.34");
    let first: String = world.one("select id::text from refund_records").await;
    world.tell(&first, &returned()).await;
    let rest = both(&world, &case, json!({ "action": "refund" })).await;
    assert_eq!(rest.json()["status"], "resolved", "{}", rest.body);
    let books = "select concat_ws(' ', (select count(*) from payment_orders), (select count(*) from payment_transactions where \
                 action_type = 'payment'), (select string_agg(refund_amount::text, '+' order by id) from refund_records))";
    assert_eq!(world.one::<String>(books).await, "1 1 5.00+7.34");
    world.counted(Clock::system().now()).await;
    let counted =
        "select concat_ws(' ', sum(orders), sum(amount), sum(extra_amount), sum(extra_refunded)) from hourly_stats";
    assert_eq!(world.one::<String>(counted).await, "0 0.00 12.34 5.00", "no buyer placed that order");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_payment_of_another_amount_goes_back_and_leaves_its_order(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    let case = world.stray("amount_mismatch", Some(&id), "any").await;
    let too_much = json!({ "action": "refund", "amount": "12.35" });
    step(&world, A, &case, "propose", too_much).await.is(409, "action_unfit");
    let done = both(&world, &case, json!({ "action": "refund" })).await;
    assert_eq!((done.status.as_u16(), &done.json()["status"]), (200, &json!("resolved")), "{}", done.body);
    assert_eq!(world.one::<String>("select status from payment_orders").await, "pending", "left alone");
    assert_eq!(world.one::<String>("select refund_amount::text from refund_records").await, "12.34");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_payment_that_is_not_ours_to_return_is_refused(db: PgPool) {
    let world = World::new(db).await;
    let id = world.placed("u1").await;
    for (kind, order, order_no, more) in [
        ("wrong_merchant", Some(&*id), "any", json!({ "merchant": "1900000002" })),
        ("amount_mismatch", Some(&*id), "any", json!({ "refund_no": "R1" })),
        ("wrong_method", Some(&*id), "any", json!({ "amount": Value::Null })),
        ("unknown_order", None, "shop|0001", json!({})),
    ] {
        let case = world.stray(kind, order, order_no).await;
        let sql = "update cases set evidence = evidence || $2 where id = $1";
        sqlx::query(sql).bind(&case).bind(&more).execute(&world.db).await.unwrap();
        step(&world, A, &case, "propose", json!({ "action": "refund" })).await.is(409, "action_unfit");
    }
    assert_eq!(world.count("refund_records").await, 0);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn no_token_names_the_user_of_unplaced_orders(db: PgPool) {
    let world = World::with(db, Setup::default()).await;
    let token = minted_for("-", "orders");
    let request = axum::http::Request::get("/v1/orders").header("authorization", format!("Bearer {token}"));
    world.send(request.body(axum::body::Body::empty()).unwrap()).await.is(401, "token_invalid");
}
