//! Money on its way back, on a real database: what an order allows, and what facts make of it.

use std::sync::Arc;

use domain::PaymentMethod::{Alipay, Wechat};
use domain::{Money, OrderId, OrderStatus, RefundId, RefundNo, RefundReport, RefundState, RefundStatus};
use runtime::clock::Clock;
use sqlx::PgPool;
use store::settle::refunds as settling;
use store::settle::refunds::{RefundRefusal, RefundVerdict, RequestedRefund};
use store::tables::orders::Order;
use store::tables::refunds::{self, Refund};
use store::{DbError, MIGRATOR, NotDone};

use crate::support::World;

fn yuan(text: &str) -> Money {
    Money::from_yuan(text).unwrap()
}

impl World {
    async fn paid_order(&self, method: domain::PaymentMethod, amount: &str) -> Order {
        let order = self.pending_order(method, amount).await;
        self.settle(vec![self.paid(&order)]).await;
        self.order(&order.id).await
    }

    pub async fn request_refund(&self, order_id: OrderId, amount: Option<&str>) -> Result<Refund, RefundRefusal> {
        let clock = Clock::system();
        let id = RefundId::from_u128(clock.fresh_bits());
        let request = RequestedRefund {
            id,
            order_id,
            extra_trade: None,
            refund_no: RefundNo::parse(format!("R{id}")).unwrap(),
            amount: amount.map(yuan),
            reason: Some("不合适".to_owned()),
            requested_by: "buyer-1".to_owned(),
        };
        let mut tx = self.db.begin().await.unwrap();
        match settling::request(&mut tx, &request, clock.now()).await {
            Ok(refund) => {
                tx.commit().await.unwrap();
                Ok(refund)
            }
            Err(NotDone::Refused(refusal)) => Err(refusal),
            Err(NotDone::Db(DbError::Constraint(name))) if name == "refund_records_in_flight" => {
                Err(RefundRefusal::InProgress)
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    pub async fn tell(&self, refund: &Refund, fact: &RefundReport) -> RefundVerdict {
        let policies = self.worker.gateways.policies();
        let mut tx = self.db.begin().await.unwrap();
        let verdict = settling::settle(&mut tx, refund, fact, &policies, &Clock::system()).await.unwrap();
        tx.commit().await.unwrap();
        verdict
    }

    pub async fn refund(&self, id: RefundId) -> Refund {
        refunds::get(&self.db, id).await.unwrap().unwrap()
    }

    async fn event_kinds(&self) -> Vec<String> {
        self.events().await.into_iter().map(|(kind, _)| kind).collect()
    }
}

fn returned() -> RefundReport {
    RefundReport {
        state: RefundState::Succeeded,
        amount: None,
        returned: None,
        gateway_refund_no: Some("50300".to_owned()),
        at: None,
    }
}

fn failed() -> RefundReport {
    RefundReport::of(RefundState::Absent)
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn parts_go_back_one_after_the_other_until_all_is_returned(db: PgPool) {
    let world = World::new(db);
    let order = world.paid_order(Alipay, "10").await;
    let first = world.request_refund(order.id, Some("4")).await.unwrap();
    assert_eq!(world.status(&order).await, OrderStatus::Refunding);
    assert_eq!(world.request_refund(order.id, Some("1")).await.unwrap_err(), RefundRefusal::InProgress);
    assert_eq!(world.tell(&first, &returned()).await, RefundVerdict::Settled);
    let part = world.order(&order.id).await;
    assert_eq!((part.status, part.refunded_amount), (OrderStatus::PartiallyRefunded, yuan("4")));

    assert_eq!(world.request_refund(order.id, Some("6.01")).await.unwrap_err(), RefundRefusal::TooMuch(yuan("6")));
    let rest = world.request_refund(order.id, None).await.unwrap();
    assert_eq!(rest.amount, yuan("6"));
    world.tell(&rest, &returned()).await;
    let whole = world.order(&order.id).await;
    assert_eq!((whole.status, whole.refunded_amount), (OrderStatus::Refunded, yuan("10")));
    assert_eq!(world.request_refund(order.id, None).await.unwrap_err(), RefundRefusal::AlreadyRefunded);
    assert_eq!(world.event_kinds().await, ["order.paid", "refund.succeeded", "refund.succeeded", "order.refunded"]);
    assert_eq!(world.count("work").await, 0, "what is over needs no job but its look back");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_repeated_fact_moves_nothing(db: PgPool) {
    let world = World::new(db);
    let order = world.paid_order(Wechat, "10").await;
    let refund = world.request_refund(order.id, Some("4")).await.unwrap();
    assert_eq!(world.tell(&refund, &returned()).await, RefundVerdict::Settled);
    for fact in [returned(), failed(), RefundReport::of(RefundState::Abnormal)] {
        assert_eq!(world.tell(&refund, &fact).await, RefundVerdict::Duplicate);
    }
    assert_eq!(world.order(&order.id).await.refunded_amount, yuan("4"));
    assert_eq!(world.event_kinds().await, ["order.paid", "refund.succeeded"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_failed_refund_frees_its_amount_and_an_abnormal_one_does_not(db: PgPool) {
    let world = World::new(db);
    let order = world.paid_order(Wechat, "10").await;
    let refund = world.request_refund(order.id, None).await.unwrap();
    world.tell(&refund, &failed()).await;
    assert_eq!(world.status(&order).await, OrderStatus::Paid);
    let stuck = world.request_refund(order.id, Some("7")).await.unwrap();
    world
        .tell(
            &stuck,
            &RefundReport { gateway_refund_no: Some("50300".to_owned()), ..RefundReport::of(RefundState::Abnormal) },
        )
        .await;
    assert_eq!(world.refund(stuck.id).await.status, RefundStatus::Abnormal);
    assert_eq!(world.status(&order).await, OrderStatus::Paid);
    assert_eq!(world.request_refund(order.id, Some("3.01")).await.unwrap_err(), RefundRefusal::TooMuch(yuan("3")));
    assert_eq!(world.cases().await[0].0, "refund_abnormal");
    world.tell(&stuck, &returned()).await;
    assert_eq!(world.order(&order.id).await.refunded_amount, yuan("7"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_success_after_a_failure_is_a_fact_and_a_case(db: PgPool) {
    let world = World::new(db);
    let order = world.paid_order(Alipay, "10").await;
    let first = world.request_refund(order.id, None).await.unwrap();
    world.tell(&first, &failed()).await;
    let second = world.request_refund(order.id, None).await.unwrap();
    world.tell(&second, &returned()).await;
    assert_eq!(world.tell(&first, &returned()).await, RefundVerdict::Settled);
    let whole = world.order(&order.id).await;
    assert_eq!((whole.status, whole.refunded_amount), (OrderStatus::Refunded, yuan("10")));
    assert_eq!(world.cases().await[0].0, "refund_after_failure");
    let expected = ["order.paid", "refund.failed", "refund.succeeded", "order.refunded", "refund.succeeded"];
    assert_eq!(world.event_kinds().await, expected, "an order is refunded once");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn another_amount_is_a_case_and_no_move(db: PgPool) {
    let world = World::new(db);
    let order = world.paid_order(Alipay, "10").await;
    let refund = world.request_refund(order.id, Some("4")).await.unwrap();
    let fact = RefundReport {
        state: RefundState::Succeeded,
        amount: Some(yuan("5")),
        returned: None,
        gateway_refund_no: None,
        at: None,
    };
    assert_eq!(world.tell(&refund, &fact).await, RefundVerdict::AmountMismatch);
    assert_eq!(world.refund(refund.id).await.status, RefundStatus::Pending);
    assert_eq!(world.cases().await[0].0, "amount_mismatch");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_not_paid_cannot_go_back(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "10").await;
    assert_eq!(world.request_refund(order.id, None).await.unwrap_err(), RefundRefusal::NotPaid);
    assert_eq!(world.request_refund(OrderId::from_u128(7), None).await.unwrap_err(), RefundRefusal::NoOrder);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_unknown_refund_reserves_the_order_until_a_person_has_looked(db: PgPool) {
    let world = World::new(db);
    let order = world.paid_order(Alipay, "10").await;
    sqlx::query("insert into cases (id, kind, order_id, subject_ref, evidence, created_at, updated_at) values ('c', 'unknown_refund', $1, 'RX', '{}', now(), now())")
        .bind(order.id.to_string())
        .execute(&world.db)
        .await
        .unwrap();
    assert!(matches!(world.request_refund(order.id, None).await.unwrap_err(), RefundRefusal::CaseOpen));
    sqlx::query("update cases set status = 'resolved'").execute(&world.db).await.unwrap();
    assert!(world.request_refund(order.id, None).await.is_ok());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn of_many_requests_at_once_one_is_in_flight(db: PgPool) {
    let world = Arc::new(World::new(db));
    let order = world.paid_order(Wechat, "10").await;
    for _ in 0..4 {
        let requests: Vec<_> = (0..16)
            .map(|_| {
                let (world, id) = (world.clone(), order.id);
                tokio::spawn(async move { world.request_refund(id, Some("3")).await })
            })
            .collect();
        let mut granted = Vec::new();
        for request in requests {
            if let Ok(refund) = request.await.unwrap() {
                granted.push(refund);
            }
        }
        assert!(granted.len() <= 1, "{granted:?}");
        for refund in granted {
            world.tell(&refund, &returned()).await;
        }
    }
    assert_eq!(world.order(&order.id).await.refunded_amount, yuan("9"));
}
