//! Refunds that are withdrawn: before they were sent, while they wait for the merchant's balance, and too late.

use domain::PaymentMethod::{self, Alipay, Wechat};
use domain::RefundStatus::{Pending, Processing, Succeeded, Withdrawn};
use domain::message::job::{JobRequest, RefundRequest};
use domain::{OrderStatus, RefundId, RefundReport, RefundState};
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgPool;
use store::settle::refunds::{self as settling, Decided, DecisionRefusal, RefundVerdict, Withdrawer};
use store::tables::jobs;
use store::tables::orders::Order;
use store::tables::refunds::{self, Refund};
use store::{MIGRATOR, NotDone};
use time::Duration;

use crate::bench::Bench;

impl Bench {
    async fn withdraw(&self, id: RefundId) -> Result<Decided, DecisionRefusal> {
        let mut tx = self.world.db.begin().await.unwrap();
        let by = Withdrawer::Merchant("key 0123456789abcdef");
        match settling::withdraw(&mut tx, id, by, Clock::system().now()).await {
            Ok(decided) => {
                tx.commit().await.unwrap();
                Ok(decided)
            }
            Err(NotDone::Refused(refusal)) => Err(refusal),
            Err(error) => panic!("{error:?}"),
        }
    }

    /// A refund that the gateway has just refused for the merchant's balance.
    async fn short(&self, method: PaymentMethod) -> (Order, Refund) {
        let order = self.paid(method).await;
        let refund = self.world.request_refund(order.id, None).await.unwrap();
        self.balance(method, "0").await;
        self.pass(Duration::minutes(2)).await;
        self.carry(refund.id).await;
        let refund = self.world.refund(refund.id).await;
        assert!(refund.waits_for_balance(), "{refund:?}");
        (order, refund)
    }

    async fn balance(&self, method: PaymentMethod, fen: &str) {
        self.control("PUT", &format!("/sim/balances/{method}/main"), &format!(r#"{{"fen":{fen}}}"#)).await;
    }

    async fn events_of(&self, id: RefundId) -> Vec<String> {
        let sql = "select type from events where event_id like '%:' || $1 order by seq";
        sqlx::query_scalar(sql).bind(id.to_string()).fetch_all(&self.world.db).await.unwrap()
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_that_waits_for_the_balance_is_withdrawn_once_the_gateway_knows_none(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let (order, refund) = bench.short(method).await;
        for _ in 0..2 {
            let asked = bench.withdraw(refund.id).await.unwrap();
            assert_eq!((asked.refund.status, asked.is_changed), (Processing, true), "{method}: the worker does it");
        }
        // Not before the gateway had its time to show the refund.
        bench.carry(refund.id).await;
        assert_eq!(bench.world.refund(refund.id).await.status, Processing, "{method}");
        bench.pass(Duration::seconds(11)).await;
        bench.carry(refund.id).await;
        let withdrawn = bench.world.refund(refund.id).await;
        assert_eq!((withdrawn.status, withdrawn.attempts), (Withdrawn, 1), "{method}");
        assert_eq!(bench.world.order(&order.id).await.status, OrderStatus::Paid, "{method}");
        assert_eq!(bench.events_of(refund.id).await, ["refund.withdrawn"], "{method}");
        let movement: String = sqlx::query_scalar("select status from payment_transactions where id = $1")
            .bind(refund.id.to_string())
            .fetch_one(&bench.world.db)
            .await
            .unwrap();
        assert_eq!(movement, "failed");
        let case: String =
            sqlx::query_scalar("select status from cases where kind = 'refund_shortage' and order_id = $1")
                .bind(order.id.to_string())
                .fetch_one(&bench.world.db)
                .await
                .unwrap();
        assert_eq!(case, "resolved", "{method}");
        // It is queried once more, a day later, and then it is over. The balance makes no difference any more.
        bench.balance(method, "null").await;
        assert!(bench.refund_job(refund.id).await.is_some_and(|(due, ..)| due > Duration::hours(23)), "{method}");
        bench.carry(refund.id).await;
        assert_eq!(bench.refund_job(refund.id).await, None, "{method}");
        assert_eq!(bench.booked(&order, refund.refund_no.as_str()).await, None, "{method}: no money moved");
        let repeat = bench.withdraw(refund.id).await.unwrap();
        assert_eq!((repeat.refund.status, repeat.is_changed), (Withdrawn, false));
        // The amount is free again.
        let next = bench.world.request_refund(order.id, None).await.unwrap();
        bench.carry_to_its_end(next.id).await;
        assert_eq!(bench.world.refund(next.id).await.status, Succeeded, "{method}");
    }
}

/// An earlier attempt of several may still arrive, so the worker waits as it does before a failure.
#[sqlx::test(migrator = "MIGRATOR")]
async fn after_several_attempts_the_withdrawal_waits_for_the_earlier_ones(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (order, refund) = bench.short(Alipay).await;
    bench.pass(Duration::minutes(11)).await;
    bench.carry(refund.id).await;
    assert_eq!(bench.world.refund(refund.id).await.attempts, 2);
    bench.withdraw(refund.id).await.unwrap();
    bench.pass(Duration::seconds(11)).await;
    bench.carry(refund.id).await;
    let waiting = bench.world.refund(refund.id).await;
    assert_eq!((waiting.status, waiting.attempts), (Processing, 2), "neither withdrawn nor sent once more");
    bench.carry_to_its_end(refund.id).await;
    assert_eq!(bench.world.refund(refund.id).await.status, Withdrawn);
    assert_eq!(bench.world.order(&order.id).await.status, OrderStatus::Paid);
}

/// The withdrawal counts only while the refusal for the balance is the gateway's last answer.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_whose_last_answer_is_another_one_is_not_withdrawn(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in [Alipay, Wechat] {
        let (order, refund) = bench.short(method).await;
        // It is sent once more, and the answer is lost: the gateway has taken it.
        bench.balance(method, "null").await;
        bench.pass(Duration::minutes(11)).await;
        bench.faults(r#"{"refund":{"error_5xx_after":1}}"#).await;
        bench.carry(refund.id).await;
        bench.faults("{}").await;
        let sent = bench.world.refund(refund.id).await;
        if sent.status == Processing {
            assert!(!sent.waits_for_balance(), "{method}");
            let refusal = bench.withdraw(refund.id).await.unwrap_err();
            assert_eq!(refusal, DecisionRefusal::NotWithdrawable(Processing), "{method}");
        }
        // A request to the worker that was made before counts for nothing either.
        let asked = JobRequest::Refund(refund.id, RefundRequest::withdraw());
        jobs::request(&bench.world.db, &asked, Duration::ZERO).await.unwrap();
        bench.carry_to_its_end(refund.id).await;
        assert_eq!(bench.world.refund(refund.id).await.status, Succeeded, "{method}");
        let state = bench.booked(&order, refund.refund_no.as_str()).await.unwrap();
        assert_eq!(state.1, 1, "{method}: the money moved once");
        assert_eq!(bench.events_of(refund.id).await, ["refund.succeeded", "order.refunded"], "{method}");
        assert!(bench.withdraw(refund.id).await.is_err(), "{method}: what was returned stays so");
    }
}

/// Trap: the gateway refused the request for the balance, and yet it has the refund. Its last answer counts.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_that_the_gateway_has_after_all_is_not_withdrawn(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (order, refund) = bench.short(Wechat).await;
    bench.balance(Wechat, "null").await;
    let same = json!({ "out_refund_no": refund.refund_no.as_str(), "processing": true, "notify": false });
    bench.faults(r#"{"refund":{"processing_ms":60000}}"#).await;
    bench.console(&order, same).await;
    bench.pass(Duration::minutes(11)).await;
    bench.carry(refund.id).await;
    let known = bench.world.refund(refund.id).await;
    assert_eq!((known.status, known.attempts), (Processing, 1), "the query shows it, so nothing is sent");
    assert!(!known.waits_for_balance());
    let refusal = bench.withdraw(refund.id).await.unwrap_err();
    assert_eq!(refusal, DecisionRefusal::NotWithdrawable(Processing));
}

/// Trap: a worker that has lost the job marks the refund as sent while another one withdraws it.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_being_marked_as_sent_is_not_withdrawn(db: PgPool) {
    let bench = Bench::new(db.clone(), "hold").await;
    let (_, refund) = bench.short(Wechat).await;
    let mut marking = db.begin().await.unwrap();
    let sent = refunds::mark_sent(&mut marking, refund.id, Clock::system().now()).await.unwrap();
    assert_eq!(sent, 2);
    let withdraw = async {
        let mut tx = db.begin().await.unwrap();
        let (policies, clock) = (bench.refunds.gateways.policies(), Clock::system());
        let is_withdrawn = settling::withdraw_unknown(&mut tx, &refund, &policies, &clock).await.unwrap();
        tx.commit().await.unwrap();
        is_withdrawn
    };
    let commit = async {
        // Real time: the withdrawal must wait for the row meanwhile.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        marking.commit().await.unwrap();
    };
    let (is_withdrawn, ()) = tokio::join!(withdraw, commit);
    assert!(!is_withdrawn);
    let after = bench.world.refund(refund.id).await;
    assert_eq!((after.status, after.attempts), (Processing, 2));
    assert_eq!(bench.events_of(refund.id).await, [""; 0]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_pending_refund_is_withdrawn_and_its_job_ends_without_a_call(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.paid(Wechat).await;
    let refund = bench.world.request_refund(order.id, Some("1.00")).await.unwrap();
    let withdrawn = bench.withdraw(refund.id).await.unwrap();
    assert_eq!((withdrawn.refund.status, withdrawn.is_changed), (Withdrawn, true));
    assert_eq!(withdrawn.refund.ended_by.as_deref(), Some("key 0123456789abcdef"));
    assert_eq!(bench.world.order(&order.id).await.status, OrderStatus::Paid);
    bench.carry(refund.id).await;
    assert_eq!(bench.refund_job(refund.id).await, None);
    assert_eq!(bench.booked(&order, refund.refund_no.as_str()).await, None);
    assert_eq!(bench.events_of(refund.id).await, ["refund.withdrawn"]);
    // Whatever claims that the gateway has it is a matter for people, and moves nothing.
    let verdict = bench.world.tell(&refund, &RefundReport::of(RefundState::Succeeded)).await;
    assert_eq!(verdict, RefundVerdict::Duplicate);
    assert_eq!(bench.world.refund(refund.id).await.status, Withdrawn);
    let kind: String =
        sqlx::query_scalar("select kind from cases where status = 'open'").fetch_one(&bench.world.db).await.unwrap();
    assert_eq!(kind, "refund_after_failure");
}

/// Both want the refund at the same moment: either it is withdrawn and never sent, or sent and not withdrawn.
#[sqlx::test(migrator = "MIGRATOR")]
async fn withdrawing_and_sending_exclude_each_other(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (mut withdrawn, mut sent) = (0, 0);
    for n in 0..16 {
        let order = bench.paid(Alipay).await;
        let refund = bench.world.request_refund(order.id, None).await.unwrap();
        // Neither side always comes first.
        let later = async |first: bool| {
            if first {
                tokio::time::sleep(std::time::Duration::from_millis(2 * (n / 2))).await;
            }
        };
        let (outcome, ()) = tokio::join!(
            async {
                later(n % 2 == 0).await;
                bench.withdraw(refund.id).await
            },
            async {
                later(n % 2 == 1).await;
                bench.carry(refund.id).await;
            },
        );
        bench.carry_to_its_end(refund.id).await;
        let (state, known) =
            (bench.world.refund(refund.id).await.status, bench.booked(&order, refund.refund_no.as_str()).await);
        match outcome {
            Ok(decided) => {
                assert_eq!((decided.refund.status, state, known), (Withdrawn, Withdrawn, None));
                withdrawn += 1;
            }
            Err(refusal) => {
                assert!(
                    matches!(refusal, DecisionRefusal::NotWithdrawable(status) if status != Pending),
                    "{refusal:?}"
                );
                assert_eq!((state, known.map(|known| known.1)), (Succeeded, Some(1)));
                sent += 1;
            }
        }
    }
    assert_eq!(withdrawn + sent, 16);
}

/// The gateway's word after a withdrawal is a fact: the books follow it, and a person must look.
#[sqlx::test(migrator = "MIGRATOR")]
async fn money_that_went_after_all_is_booked_with_a_case(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (order, refund) = bench.short(Wechat).await;
    bench.withdraw(refund.id).await.unwrap();
    bench.pass(Duration::seconds(11)).await;
    bench.carry(refund.id).await;
    let withdrawn = bench.world.refund(refund.id).await;
    assert_eq!(withdrawn.status, Withdrawn);
    let fact = RefundReport { amount: Some(refund.amount), ..RefundReport::of(RefundState::Succeeded) };
    assert_eq!(bench.world.tell(&withdrawn, &fact).await, RefundVerdict::Settled);
    assert_eq!(bench.world.refund(refund.id).await.status, Succeeded);
    assert_eq!(bench.world.order(&order.id).await.status, OrderStatus::Refunded);
    assert_eq!(bench.events_of(refund.id).await, ["refund.withdrawn", "refund.succeeded", "order.refunded"]);
    let open: Vec<String> =
        sqlx::query_scalar("select kind from cases where status = 'open'").fetch_all(&bench.world.db).await.unwrap();
    assert_eq!(open, ["refund_after_failure"]);
}
