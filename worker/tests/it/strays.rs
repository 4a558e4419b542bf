//! Payments that only a case records, refunded from that case: each at its own gateway and account.

use domain::PaymentMethod::{self, Alipay, Wechat};
use domain::{CaseId, CaseKind, OrderStatus, RefundId, RefundNo, RefundStatus};
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgPool;
use store::MIGRATOR;
use store::settle::refunds as settling;
use store::settle::refunds::RequestedRefund;
use store::settle::strays::{NotReturnable, Stray};
use store::tables::cases::{self, Case};
use store::tables::orders;
use store::tables::orders::Order;
use store::tables::refunds::Refund;
use time::Duration;

use crate::bench::Bench;

impl Bench {
    /// The buyer pays an order that our books have changed meanwhile, and the notice arrives. The order as the gateway
    /// has it, and the only case.
    async fn stray(&self, method: PaymentMethod, change: &'static str) -> (Order, Case) {
        let order = self.opened(method).await;
        // The database keeps the terms of an order. Here the gateway has other ones.
        let (off, on) =
            ["disable", "enable"].map(|word| format!("alter table payment_orders {word} trigger user")).into();
        for sql in [off, change.to_owned(), on] {
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&self.world.db).await.unwrap();
        }
        self.act(&order, "pay").await;
        let notice = self.notice(&order, "").await.expect("a notice");
        self.world.settle(vec![notice.clone(), notice]).await;
        let ids: Vec<CaseId> = sqlx::query_scalar("select id from cases").fetch_all(&self.world.db).await.unwrap();
        let [id] = ids[..] else { panic!("{} cases", ids.len()) };
        (order, cases::get(&self.world.db, id).await.unwrap().unwrap())
    }

    /// What two people have confirmed.
    async fn give_back(&self, case: &Case) -> Refund {
        let clock = Clock::system();
        let mut tx = self.world.db.begin().await.unwrap();
        let (order_id, trade_no) = Stray::of(case).unwrap().record(&mut tx, &clock).await.unwrap();
        let id = RefundId::from_u128(clock.fresh_bits());
        let refund_no = RefundNo::parse(format!("R{id}")).unwrap();
        let (extra_trade, requested_by) = (Some(trade_no), "a2".to_owned());
        let request =
            RequestedRefund { id, order_id, extra_trade, refund_no, amount: None, reason: None, requested_by };
        let refund = settling::request(&mut tx, &request, clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        refund
    }
}

const OF_ANOTHER_AMOUNT: &str = "with paid as (update payment_transactions set amount = amount + 1)
    update payment_orders set amount = amount + 1";
const AT_THE_OTHER_GATEWAY: &str = "update payment_orders
    set payment_method = case payment_method when 'alipay' then 'wechat' else 'alipay' end,
      scene = case payment_method when 'alipay' then 'native' else 'page' end";
const OF_ANOTHER_ACCOUNT: &str = "update payment_orders set account = 'second'";
const OF_AN_UNKNOWN_NUMBER: &str = "update payment_orders set order_no = 'ANOTHER_NUMBER'";

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_goes_back_where_it_came_from(db: PgPool) {
    let bench = Bench::new(db, "fulfil").await;
    for (kind, change) in [
        (CaseKind::AmountMismatch, OF_ANOTHER_AMOUNT),
        (CaseKind::WrongMethod, AT_THE_OTHER_GATEWAY),
        (CaseKind::WrongMerchant, OF_ANOTHER_ACCOUNT),
        (CaseKind::UnknownOrder, OF_AN_UNKNOWN_NUMBER),
    ] {
        for method in [Alipay, Wechat] {
            let all = "truncate payment_orders, cases, callbacks, jobs, events cascade";
            sqlx::query(all).execute(&bench.world.db).await.unwrap();
            let (order, case) = bench.stray(method, change).await;
            assert_eq!((case.kind, case.version), (kind, 1), "{method}");
            let refund = bench.give_back(&case).await;
            assert_eq!(refund.amount.to_string(), "8.88", "{kind} {method}: what was paid");
            bench.carry_to_its_end(refund.id).await;
            assert_eq!(bench.world.refund(refund.id).await.status, RefundStatus::Succeeded, "{kind} {method}");
            let booked = bench.booked(&order, refund.refund_no.as_str()).await.unwrap();
            assert_eq!(booked, ("success".to_owned(), 1), "{kind} {method}");
            // Neither the refund's notice nor the payment's once more is news.
            let refunded = bench.notice(&order, &format!("?refund={}", refund.refund_no)).await;
            bench.world.settle(refunded.into_iter().chain(bench.notice(&order, "").await).collect()).await;
            assert_eq!(bench.world.cases().await.len(), 1, "{kind} {method}: {:?}", bench.world.cases().await);
            assert_eq!(bench.event_kinds().await, ["extra_payment.refunded"], "{kind} {method}: nothing was delivered");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_order_that_was_not_placed_is_made_once_and_never_delivered(db: PgPool) {
    let bench = Bench::new(db, "fulfil").await;
    let (order, case) = bench.stray(Wechat, OF_AN_UNKNOWN_NUMBER).await;
    let refund = bench.give_back(&case).await;
    let unplaced = orders::by_order_no(&bench.world.db, &order.order_no).await.unwrap().unwrap();
    assert_eq!((unplaced.id, unplaced.status), (refund.order_id, OrderStatus::Closed));
    assert!(!unplaced.was_placed());
    let mut tx = bench.world.db.begin().await.unwrap();
    let again = Stray::of(&case).unwrap().record(&mut tx, &Clock::system()).await.unwrap();
    assert_eq!(again, (refund.order_id, refund.trade_no.clone()), "the same order and payment");
    let honoured = store::settle::can_honour(&mut tx, refund.order_id, &refund.trade_no).await;
    assert!(honoured.unwrap_err().refusal().is_ok(), "not by people");
    tx.rollback().await.unwrap();

    // A second payment of the number: the account's policy is `fulfil`, and there is nothing to deliver.
    bench.act(&order, "pay-again").await;
    let notice = bench.notice(&order, "?nth=1").await.expect("a notice");
    bench.world.settle(vec![notice]).await;
    assert_eq!(bench.world.status(&unplaced).await, OrderStatus::Closed);
    let kinds: Vec<String> = bench.world.cases().await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["unknown_order", "late_payment"]);
    bench.pass(Duration::minutes(2)).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_case_without_a_payment_of_ours_returns_none(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (_, case) = bench.stray(Wechat, OF_AN_UNKNOWN_NUMBER).await;
    assert!(Stray::of(&case).is_ok());
    let with = |name: &str, value: serde_json::Value| {
        let mut case = case.clone();
        case.evidence[name] = value;
        Stray::of(&case).map(drop)
    };
    for (name, value) in [
        ("merchant", json!("1900000002")),
        ("refund_no", json!("R1")),
        ("amount", json!(null)),
        ("amount", json!("0.00")),
        ("amount", json!("-1")),
        ("trade_no", json!("")),
        ("account", json!("Main")),
        ("payment_method", json!("paypal")),
        ("order_no", json!("x")),
        ("order_no", json!("shop|0001")),
    ] {
        assert!(matches!(with(name, value.clone()), Err(NotReturnable(_))), "{name} {value}");
    }
    let other = Case { kind: CaseKind::LatePayment, ..case.clone() };
    assert!(Stray::of(&other).is_err());
}
