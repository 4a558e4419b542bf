//! Everything comes to rest: the gateways have sent every notification, the look backs are done, people have decided.

use std::collections::BTreeSet;
use std::time::Duration as StdDuration;

use domain::OrderStatus::Pending;
use domain::message::job::{CheckRequest, Decision, JobRequest, RefundRequest};
use domain::{CaseId, Money, RefundId, RefundNo, RefundStatus, TradeNo};
use store::settle::refunds as settling;
use store::settle::refunds::RequestedRefund;
use store::tables::jobs;
use store::tables::refunds::Refund;
use time::Duration;

use super::{History, Outcome, Step};

/// The rounds in which everything has to come to rest.
const ROUNDS: usize = 14;

/// A case that waits for people: its id, its kind, its number, and the trade that its evidence names.
type Open = (String, String, String, Option<String>);

impl History<'_> {
    /// The faults are over, the gateway has sent a day's notices, people have decided.
    pub(super) async fn come_to_rest(&mut self) -> Outcome {
        self.take(&Step::Faults("{}")).await;
        let (mut waiting, mut redirected) = (Vec::new(), BTreeSet::new());
        for _ in 0..ROUNDS {
            // Of one payment alone every callback may be lost: the checks find it. What is paid twice under one number
            // only callbacks can show.
            if self.notified || self.trade(1).await["state"] == "paid" {
                let letters = self.letters().await;
                self.bench.world.settle(letters).await;
            }
            self.look().await?;
            if self.seen == Pending {
                self.expire(Duration::seconds(1)).await;
            } else {
                self.expire(Duration::days(3)).await;
            }
            self.check().await;
            self.look_back().await;
            self.look().await?;
            self.decide().await;
            self.look().await?;
            for refund in self.refunds().await {
                // Two people decide it once; after that the worker asks how it went.
                if refund.status == RefundStatus::Abnormal && redirected.insert(refund.id.to_string()) {
                    let redirect = JobRequest::Refund(refund.id, RefundRequest::redirect());
                    jobs::request(&self.bench.world.db, &redirect, Duration::ZERO).await.unwrap();
                }
            }
            self.carry().await;
            self.look().await?;
            waiting = self.waiting().await;
            if waiting.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(StdDuration::from_millis(20)).await;
        }
        Err(format!("no rest: {waiting:?} while the order is {}", self.seen))
    }

    /// People decide about money that was not owed, and about returns that our books lack.
    async fn decide(&self) {
        let open: Vec<Open> = sqlx::query_as(
            "select id, kind, subject_ref, evidence ->> 'trade_no' from cases where order_id = $1 and status <> 'resolved'
             and kind in ('late_payment', 'double_payment', 'refunded_elsewhere', 'unknown_refund', 'refund_closed')
             order by id",
        )
        .bind(self.order.id.to_string())
        .fetch_all(&self.bench.world.db)
        .await
        .unwrap();
        for (case, kind, number, trade_no) in open {
            if kind == "refund_closed" {
                self.return_what_is_there(&case, &number).await;
                continue;
            }
            let trade_no = TradeNo::parse(trade_no.unwrap_or(number)).unwrap();
            match kind.as_str() {
                "unknown_refund" => {
                    self.book(&case, &trade_no).await;
                    // All of it is booked, or it was ours. While one of ours is on its way they read that nothing is
                    // booked yet, and look again.
                    let of_trade = |refund: &&Refund| refund.trade_no == trade_no;
                    if self.refunds().await.iter().filter(of_trade).all(|refund| refund.status.is_final()) {
                        self.resolve(&case).await;
                    }
                }
                "double_payment" => {
                    self.book(&case, &trade_no).await;
                    self.give_back(&case, trade_no, None).await;
                }
                _ if self.generous => {
                    self.book(&case, &trade_no).await;
                    self.decided(&case, &Decision::Fulfil).await;
                    // Where that cannot be, what is left goes back.
                    if self.is_open(&case).await {
                        self.give_back(&case, trade_no, None).await;
                    }
                }
                _ => {
                    self.book(&case, &trade_no).await;
                    self.give_back(&case, trade_no, None).await;
                }
            }
        }
    }

    /// Two people have decided, and the check carries it out.
    async fn decided(&self, case: &str, decision: &Decision) {
        let case = CaseId::parse(case).unwrap();
        self.bench.request_now(self.order.id, CheckRequest::of_case(case, decision.clone())).await;
        self.check().await;
    }

    async fn is_open(&self, case: &str) -> bool {
        let sql = "select status <> 'resolved' from cases where id = $1";
        sqlx::query_scalar(sql).bind(case).fetch_one(&self.bench.world.db).await.unwrap()
    }

    async fn resolve(&self, case: &str) {
        let sql = "update cases set status = 'resolved' where id = $1";
        sqlx::query(sql).bind(case).execute(&self.bench.world.db).await.unwrap();
    }

    /// They have looked into the console, and book each refund of the trade that the books lack.
    async fn book(&self, case: &str, trade_no: &TradeNo) {
        for (number, fen) in self.in_the_console(trade_no).await {
            let (refund_no, amount) = (RefundNo::parse(number).unwrap(), Money::from_fen(fen).unwrap());
            if self.is_open(case).await {
                self.decided(case, &Decision::BookRefund { refund_no, amount }).await;
            }
        }
    }

    /// A refund of money that was not owed has failed: the gateway had less than our books. They look into the console,
    /// and return what is there.
    async fn return_what_is_there(&self, case: &str, number: &str) {
        let refunds = self.refunds().await;
        let failed = refunds.iter().find(|refund| refund.refund_no.as_str() == number).expect("a refund of ours");
        let own = self.bench.world.order(&self.order.id).await.trade_no;
        let left = self.left_there(&failed.trade_no).await;
        if own.as_ref() == Some(&failed.trade_no) || left == 0 {
            // Of the order's own payment the buyer asks again.
            return self.resolve(case).await;
        }
        self.give_back(case, failed.trade_no.clone(), Money::from_fen(left).ok()).await;
    }

    /// What goes back of a trade that pays for nothing: all that is left, unless people know better.
    async fn give_back(&self, case: &str, trade_no: TradeNo, amount: Option<Money>) {
        let reserved = |refund: &&Refund| refund.trade_no == trade_no && refund.status.reserves();
        let all = self.refunds().await;
        let gone: i64 = all.iter().filter(reserved).map(|refund| refund.amount.fen()).sum();
        let bits = self.bench.checks.clock.fresh_bits();
        let request = RequestedRefund {
            id: RefundId::from_u128(bits),
            order_id: self.order.id,
            extra_trade: Some(trade_no.clone()),
            refund_no: RefundNo::parse(format!("P{bits:032x}")).unwrap(),
            amount,
            reason: None,
            requested_by: "a person".to_owned(),
        };
        let mut tx = self.bench.world.db.begin().await.unwrap();
        let now = self.bench.checks.clock.now();
        if gone == self.order.amount.fen()
            || settling::request(&mut tx, &request, now).await.map_err(|error| error.refusal().unwrap()).is_ok()
        {
            tx.commit().await.unwrap();
            self.resolve(case).await;
        }
    }

    /// What still moves.
    async fn waiting(&self) -> Vec<String> {
        let sql = "select 'order ' || status from payment_orders where id = $1 and status in ('pending', 'refunding')
            union all select 'job ' || kind || ' ' || coalesce(last_error, '') from jobs where kind <> 'look_back'
              and (ref_id = $1 or ref_id in (select id from refund_records where order_id = $1))
            union all select 'refund ' || status from refund_records where order_id = $1
              and status not in ('succeeded', 'failed')
            union all select 'case ' || kind from cases where order_id = $1 and status <> 'resolved'
              and kind in ('late_payment', 'double_payment', 'refunded_elsewhere', 'unknown_refund', 'refund_closed')";
        let rows = sqlx::query_scalar(sql).bind(self.order.id.to_string()).fetch_all(&self.bench.world.db);
        rows.await.unwrap()
    }
}
