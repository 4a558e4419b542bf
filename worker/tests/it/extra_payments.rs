//! Late and second payments: when they were made, what WeChat Pay's limits leave of them, and when the policy returns
//! them.

use domain::PaymentMethod::Wechat;
use domain::{AccountName, LatePaymentPolicy, Money, Policies, RefundId, RefundNo, RefundReport, RefundState, TradeNo};
use gateway_sim::notify::Overrides;
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgPool;
use store::MIGRATOR;
use store::settle::refunds as settling;
use store::settle::refunds::{RefundRefusal, RequestedRefund};
use store::tables::orders::Order;

use crate::support::World;

const SECOND: &str = "4200000042202601050000000002";

impl World {
    /// A paid order, and a second payment of it.
    async fn paid_twice(&self) -> Order {
        let order = self.pending_order(Wechat, "10").await;
        self.settle(vec![self.paid(&order)]).await;
        let mut second = self.paid_trade(&order);
        second.trade_no = Some(SECOND.to_owned());
        self.settle(vec![self.notice_of(&second, &Overrides { id: Some("n2".to_owned()), ..Overrides::default() })])
            .await;
        assert_eq!(self.cases().await[0].0, "double_payment");
        self.order(&order.id).await
    }

    /// Asks for a part of the second payment.
    async fn request_second(&self, order: &Order, yuan: &str) -> Result<(), RefundRefusal> {
        let clock = Clock::system();
        let id = RefundId::from_u128(clock.fresh_bits());
        let request = RequestedRefund {
            id,
            order_id: order.id,
            extra_trade: Some(TradeNo::parse(SECOND).unwrap()),
            refund_no: RefundNo::parse(format!("R{id}")).unwrap(),
            amount: Some(Money::from_yuan(yuan).unwrap()),
            reason: None,
            requested_by: "a1".to_owned(),
        };
        let mut tx = self.db.begin().await.unwrap();
        settling::request(&mut tx, &request, clock.now())
            .await
            .map(drop)
            .map_err(|not_done| not_done.refusal().unwrap())
    }

    /// This many refunds of one fen of the second payment, all in this state.
    async fn refunds_of_second(&self, status: &'static str, count: i32) {
        let sql = "insert into refund_records
                     (id, order_id, transaction_id, refund_no, refund_amount, status, requested_by, created_at, updated_at)
                   select md5($1 || n), order_id, id, 'X' || $1 || n, 0.01, $1, 'a1', now(), now()
                   from payment_transactions, generate_series(1, $2) as n where gateway_no = $3";
        sqlx::query(sql).bind(status).bind(count).bind(SECOND).execute(&self.db).await.unwrap();
    }

    async fn refund_numbers(&self) -> Vec<String> {
        sqlx::query_scalar("select refund_no from refund_records order by id").fetch_all(&self.db).await.unwrap()
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn wechat_counts_the_refunds_of_one_payment_that_did_not_fail(db: PgPool) {
    let world = World::new(db);
    let order = world.paid_twice().await;
    world.refunds_of_second("failed", 60).await;
    world.refunds_of_second("succeeded", 49).await;
    assert_eq!(world.request_second(&order, "1").await, Ok(()), "49 count");
    world.refunds_of_second("abnormal", 1).await;
    assert!(matches!(world.request_second(&order, "1").await, Err(RefundRefusal::NotRefundable(_))), "50 count");
    assert!(world.request_refund(order.id, Some("1")).await.is_ok(), "the order's own payment has a count of its own");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn wechats_year_begins_with_each_payment(db: PgPool) {
    let world = World::new(db);
    let order = world.paid_twice().await;
    let old = "update payment_orders set paid_at = now() - interval '366 days'";
    sqlx::query(old).execute(&world.db).await.unwrap();
    assert!(matches!(world.request_refund(order.id, Some("1")).await, Err(RefundRefusal::NotRefundable(_))));
    assert_eq!(world.request_second(&order, "1").await, Ok(()), "paid a moment ago");
    let old = "update payment_transactions set paid_at = now() - interval '366 days' where gateway_no = $1";
    sqlx::query(old).bind(SECOND).execute(&world.db).await.unwrap();
    assert!(matches!(world.request_second(&order, "1").await, Err(RefundRefusal::NotRefundable(_))));
}

/// Another refund of the order was in the way of the policy's.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_waited_goes_back_by_the_policy_of_that_moment(db: PgPool) {
    let world = World::new(db);
    let order = world.paid_twice().await;
    let waits = json!({ "not_refunded": "another refund of the order is on its way" });
    sqlx::query("update cases set evidence = evidence || $1").bind(&waits).execute(&world.db).await.unwrap();
    let account = AccountName::parse("main").unwrap();
    let of = |policy| [(Wechat, account.clone(), policy)].into_iter().collect::<Policies>();
    let ends = async |policies: &Policies, fact: RefundReport| {
        let refund = world.request_refund(order.id, Some("1")).await.unwrap();
        let mut tx = world.db.begin().await.unwrap();
        settling::settle(&mut tx, &refund, &fact, policies, &Clock::system()).await.unwrap();
        tx.commit().await.unwrap();
    };
    let returned = RefundReport::of(RefundState::Succeeded);
    ends(&of(LatePaymentPolicy::Hold), returned).await;
    assert_eq!(world.refund_numbers().await.len(), 1, "the account holds such money by now");
    assert_eq!(world.cases().await[0].1["not_refunded"], waits["not_refunded"], "people decide");

    ends(&of(LatePaymentPolicy::Refund), RefundReport::of(RefundState::Abnormal)).await;
    let numbers = world.refund_numbers().await;
    assert_eq!(numbers.last(), Some(&format!("L{SECOND}")), "a stuck refund holds up no other");
    let evidence = &world.cases().await[0].1;
    assert_eq!((&evidence["refund_no"], evidence.get("not_refunded")), (&json!(format!("L{SECOND}")), None));
}
