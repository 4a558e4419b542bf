//! The actions of buyers, people, gateways and workers.

use domain::message::callback::Callback;
use domain::message::job::{CheckRequest, JobKind};
use domain::{Money, PaymentMethod};
use serde_json::{Value, json};
use store::tables::refunds::{self, Refund};
use testkit::jobs::publish;
use time::Duration;
use worker::jobs::run_batch;

use super::mortal::{Mortal, timeout};
use super::{History, Notice, Step};
use crate::bench::{SOON, carry};

impl History<'_> {
    pub(super) async fn take(&mut self, step: &Step) {
        match step {
            Step::Pay => drop(self.bench.act(&self.order, "pay").await),
            Step::PayAgain => drop(self.bench.act(&self.order, "pay-again").await),
            Step::Tell(n) => self.tell(*n).await,
            Step::Check(None) => self.check().await,
            Step::Check(Some(micros)) => self.check_and_die(*micros).await,
            Step::Sync(true) => {
                self.bench.request_now(self.order.id, CheckRequest::sync()).await;
                self.check().await;
            }
            Step::Sync(false) => self.look_back().await,
            Step::GiveUp => {
                self.bench.request_now(self.order.id, CheckRequest::close()).await;
                self.check().await;
            }
            Step::Expire => self.expire(Duration::seconds(1)).await,
            Step::RequestRefund(percent) => self.request_refund(*percent).await,
            Step::Console(second, percent, notice) => self.console((u32::from(*second), *percent), *notice).await,
            Step::Carry(None) => self.carry().await,
            Step::Carry(Some(micros)) => self.carry_and_die(*micros).await,
            Step::Faults(refund) => {
                let scope = &self.order.order_no;
                self.bench.faults(&format!(r#"{{"scope":"{scope}","refund":{refund}}}"#)).await;
            }
            Step::Policy(policy) => self.bench.obey(policy),
        }
    }

    /// The callbacks about this order, and a notification of each of its payments that has sent none.
    pub(super) async fn letters(&self) -> Vec<Callback> {
        for nth in 0.. {
            let trade = self.trade(nth).await;
            if trade["error"].is_string() {
                break;
            }
            let notices = trade["notices"].as_array().into_iter().flatten();
            if notices.into_iter().any(|notice| notice["event"] == "paid" && notice["sent"] == 0) {
                self.bench.notice(&self.order, &format!("?nth={nth}&event=paid")).await;
            }
        }
        let ours = |letter: &Callback| self.names_us(letter);
        self.bench.letters().into_iter().filter(ours).collect()
    }

    /// Whether a callback is about this order, as far as its adapter can read it.
    fn names_us(&self, letter: &Callback) -> bool {
        let gateway = self.bench.checks.gateways.get(letter.method, &letter.account).unwrap();
        let read = gateway
            .verify(letter.clone(), None)
            .and_then(|verified| gateway.read(&verified, self.bench.checks.clock.now()));
        read.is_ok_and(|notification| notification.get().order_no == self.order.order_no.as_str())
    }

    async fn tell(&self, n: u8) {
        let letters = self.letters().await;
        if !letters.is_empty() {
            let letter = letters[usize::from(n) % letters.len()].clone();
            self.bench.world.settle(vec![letter]).await;
        }
    }

    pub(super) async fn check(&self) {
        self.run(JobKind::Check).await;
    }

    /// The look back at a paid order, whenever it is due.
    pub(super) async fn look_back(&self) {
        self.run(JobKind::LookBack).await;
    }

    async fn run(&self, kind: JobKind) {
        if let Some(nudge) = publish(&self.bench.world.db, kind, &self.order.id.to_string()).await {
            run_batch(&self.bench.checks, vec![Ok(nudge)]).await.unwrap();
        }
    }

    async fn check_and_die(&self, micros: u16) {
        let Some(nudge) = publish(&self.bench.world.db, JobKind::Check, &self.order.id.to_string()).await else {
            return;
        };
        let mortal = Mortal::new(self.bench).await;
        let (checks, _) = self.bench.on(&mortal.0);
        let _ = timeout(micros, run_batch(&checks, vec![Ok(nudge)])).await;
        mortal.die(self.bench).await;
    }

    pub(super) async fn expire(&self, ago: Duration) {
        self.bench.expire(&self.order, ago).await;
        self.bench.act(&self.order, "expire").await;
    }

    async fn request_refund(&self, percent: u8) {
        let fen = (self.order.amount.fen() * i64::from(percent) / 100).max(1);
        let yuan = Money::from_fen(fen).unwrap().to_string();
        // Refused where the order does not allow it; that it is refused is what `look` holds.
        let _ = self.bench.world.request_refund(self.order.id, Some(&yuan)).await;
    }

    /// A person refunds a part of the rest of a payment in the console. Its notification waits among the callbacks.
    async fn console(&self, (nth, percent): (u32, u8), notice: Notice) {
        let trade = self.trade(nth).await;
        let left = trade["amount_fen"].as_i64().unwrap_or(0) - trade["refunded_fen"].as_i64().unwrap_or(0);
        if trade["state"] != "paid" || left < 1 {
            return;
        }
        let body = json!({
            "amount_fen": (left * i64::from(percent) / 100).max(1),
            "notify": notice != Notice::None,
            "named": notice != Notice::Unnamed || self.order.payment_method == PaymentMethod::Wechat,
        });
        let path = format!("/sim/trades/{}/{}/refunds?nth={nth}", self.order.payment_method, self.order.order_no);
        let made = self.bench.control("POST", &path, &body.to_string()).await;
        // Refused where a refund of ours has what is left.
        let Some(number) = made["out_refund_no"].as_str().filter(|_| notice != Notice::None) else { return };
        let began = std::time::Instant::now();
        while !self.is_reported(nth, number).await {
            assert!(began.elapsed() < SOON, "the gateway does not tell of {number}");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    async fn is_reported(&self, nth: u32, number: &str) -> bool {
        let trade = self.trade(nth).await;
        let mut refunds = trade["refunds"].as_array().into_iter().flatten();
        refunds.any(|refund| refund["out_refund_no"] == number && refund["delivered"] == true)
    }

    pub(super) async fn carry(&self) {
        for refund in self.refunds().await {
            self.bench.pass(Duration::minutes(2)).await;
            self.bench.carry(refund.id).await;
        }
    }

    async fn carry_and_die(&self, micros: u16) {
        self.bench.pass(Duration::minutes(2)).await;
        for refund in self.refunds().await {
            let mortal = Mortal::new(self.bench).await;
            let (_, worker) = self.bench.on(&mortal.0);
            let _ = timeout(micros, carry(&worker, refund.id)).await;
            mortal.die(self.bench).await;
        }
    }

    pub(super) async fn refunds(&self) -> Vec<Refund> {
        refunds::of_order(&self.bench.world.db, self.order.id).await.unwrap()
    }

    pub(super) async fn trade(&self, nth: u32) -> Value {
        self.bench.ledger_of(&self.order, nth).await
    }
}
