//! The laws that must hold after every step, and those that must hold at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use domain::OrderStatus::{Closed, Pending, Refunded};
use domain::message::job::{CheckRequest, JobRequest, RefundRequest};
use domain::{Money, OrderStatus, PaymentMethod, RefundOrigin, RefundStatus, TradeNo};
use serde_json::{Value, json};
use store::tables::jobs;
use store::tables::refunds::Refund;
use time::Duration;

use super::{History, Outcome, ensure};
use crate::retention::forget;

/// In fen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    paid: i64,
    /// By refunds of ours.
    returned: i64,
    /// In the consoles.
    outside: i64,
    fulfilled: i64,
    held: i64,
    /// Of `outside`: what no gateway shows us.
    unseen: i64,
    /// Of `unseen`: what seems to be held.
    unseen_of_extra: i64,
}

impl Totals {
    fn balance(self) -> bool {
        self.paid - self.returned - self.outside == self.fulfilled + self.held - self.unseen
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.paid += other.paid;
        self.returned += other.returned;
        self.outside += other.outside;
        self.fulfilled += other.fulfilled;
        self.held += other.held;
        self.unseen += other.unseen;
        self.unseen_of_extra += other.unseen_of_extra;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { paid, returned, outside, fulfilled, held, unseen, .. } = self;
        write!(
            f,
            "{paid} fen paid - {returned} returned by us - {outside} outside = {fulfilled} fulfilled + {held} held - {unseen} unseen"
        )
    }
}

impl History<'_> {
    /// What must hold after every step.
    pub(super) async fn look(&mut self) -> Outcome {
        let order = self.bench.world.order(&self.order.id).await;
        ensure(may_move(self.seen, order.status), || format!("moved from {} to {}", self.seen, order.status))?;
        self.seen = order.status;
        let mut spoken_for = BTreeMap::<&str, i64>::new();
        let all = self.refunds().await;
        for refund in all.iter().filter(|refund| refund.status.reserves()) {
            let sum = spoken_for.entry(refund.trade_no.as_str()).or_default();
            *sum += refund.amount.fen();
            ensure(*sum <= refund.payment_amount.fen(), || format!("more refunds than {} has", refund.trade_no))?;
        }
        let in_flight = all.iter().filter(|refund| refund.status.in_flight()).count();
        ensure(in_flight <= 1, || format!("{in_flight} refunds in flight"))?;
        let own = |refund: &&Refund| Some(&refund.trade_no) == order.trade_no.as_ref();
        let returned: i64 =
            all.iter().filter(own).filter(|r| r.status == RefundStatus::Succeeded).map(|r| r.amount.fen()).sum();
        let is_paid = order.status.was_paid();
        ensure(!is_paid || order.refunded_amount.fen() == returned, || {
            format!("{returned} returned, {}", order.refunded_amount)
        })?;
        let reported = self.events("order.paid").await.len();
        ensure(reported == usize::from(is_paid), || format!("{} and {reported} order.paid", order.status))?;
        self.nothing_is_made_up().await
    }

    /// Nothing is booked as outside that did not go back in the console.
    async fn nothing_is_made_up(&self) -> Outcome {
        for trade in self.trades().await {
            let Ok(trade_no) = TradeNo::parse(text(&trade["trade_no"])) else { continue };
            let (booked, went) = (self.booked_outside(&trade_no).await, outside(&trade));
            ensure(booked <= went, || format!("{booked} booked as outside, {went} went: {trade}"))?;
        }
        Ok(())
    }

    /// The end: our books, the simulator's books and what downstream received.
    pub(super) async fn books_agree(&self) -> Outcome<Totals> {
        let mut totals = Totals::default();
        for trade in self.trades().await {
            ensure(trade["state"] != "waiting", || format!("can still be paid: {trade}"))?;
            if trade["state"] == "paid" {
                totals += self.of_trade(&trade).await?;
            }
        }
        let ours: (i64, i64) = sqlx::query_as(
            "select coalesce(sum(amount * 100) filter (where action_type = 'payment'), 0)::bigint,
                    coalesce(sum(amount * 100) filter (where action_type = 'refund'), 0)::bigint
             from payment_transactions where order_id = $1 and status = 'succeeded'",
        )
        .bind(self.order.id.to_string())
        .fetch_one(&self.bench.world.db)
        .await
        .unwrap();
        let there = (totals.paid, totals.returned + totals.outside - totals.unseen);
        ensure(ours == there, || format!("we have {ours:?}, the gateway {there:?}, and {} unseen", totals.unseen))?;

        // Delivered, less what was rolled back: of the order's own payment alone, for nothing else was delivered.
        let order = self.bench.world.order(&self.order.id).await;
        let delivered = self.events("order.paid").await.len() as i64 * order.amount.fen();
        let own = order.trade_no.as_ref().map_or_else(String::new, ToString::to_string);
        let rolled_back: i64 = self
            .events("refund.succeeded")
            .await
            .iter()
            .filter(|data| data["trade_no"] == own.as_str())
            .map(|data| Money::from_yuan(data["refund_amount"].as_str().unwrap()).unwrap().fen())
            .sum();
        totals.fulfilled = delivered - rolled_back;
        ensure(totals.balance(), || format!("money is lost or made up: {totals}"))?;
        ensure(totals.held == totals.unseen_of_extra, || {
            format!("people have decided, and something is held: {totals}")
        })?;
        self.shows_what_is_true().await?;
        let ends = self.events("order.closed").await.len() + self.events("order.refunded").await.len();
        let (closed, refunded) = (order.closed_at.is_some(), order.status == Refunded);
        ensure(ends == usize::from(closed) + usize::from(refunded), || format!("{ends} ends of {}", order.status))?;
        Ok(totals)
    }

    /// What the buyer reads of money that was not owed follows from transactions, refunds and cases as they are now.
    async fn shows_what_is_true(&self) -> Outcome {
        let before = self.bench.world.order(&self.order.id).await;
        let mut tx = self.bench.world.db.begin().await.unwrap();
        store::tables::extra::follow(&mut tx, &[before.id], self.bench.checks.clock.now()).await.unwrap();
        let after = store::tables::orders::lock_one(&mut tx, before.id).await.unwrap().unwrap();
        tx.rollback().await.unwrap();
        let (shown, so) = ((before.extra_state, before.extra_amount), (after.extra_state, after.extra_amount));
        ensure(before.version == after.version, || format!("the buyer reads {shown:?}, and it is {so:?}"))
    }

    /// One payment, at its gateway and here.
    async fn of_trade(&self, trade: &Value) -> Outcome<Totals> {
        let refunds = || trade["refunds"].as_array().into_iter().flatten();
        let effects = refunds().map(|refund| refund["effects"].as_u64().unwrap());
        ensure(effects.max().unwrap_or(0) <= 1, || format!("a refund twice: {trade}"))?;
        let broken = &trade["violations"];
        ensure(*broken == json!({}) || self.could_not_know(trade), || format!("limits of the gateway: {broken}"))?;
        let trade_no = TradeNo::parse(text(&trade["trade_no"])).unwrap();
        let (booked, went) = (self.booked_outside(&trade_no).await, outside(trade));
        let known = self.known(trade, &trade_no).await;
        ensure(booked >= known, || format!("{known} outside is known, {booked} is booked: {trade}"))?;
        let paid = trade["amount_fen"].as_i64().unwrap();
        let returned = trade["refunded_fen"].as_i64().unwrap() - went;
        let order = self.bench.world.order(&self.order.id).await;
        let own = order.status.was_paid() && order.trade_no.as_ref() == Some(&trade_no);
        let held = if own { 0 } else { paid - returned - booked };
        let unseen = went - booked;
        let unseen_of_extra = if own { 0 } else { unseen };
        Ok(Totals { paid, returned, outside: went, fulfilled: 0, held, unseen, unseen_of_extra })
    }

    /// More was requested than was left, after a person had refunded a part. Its notification had not arrived yet.
    fn could_not_know(&self, trade: &Value) -> bool {
        let over_total = trade["violations"].as_object().is_some_and(|all| all.keys().all(|name| name == "over_total"));
        over_total && outside(trade) > 0
    }

    /// What the gateway has let us know of returns in its console.
    async fn known(&self, trade: &Value, trade_no: &TradeNo) -> i64 {
        let reported = |refund: &Value| self.notified && refund["delivered"] == true;
        // A query by the order's number shows its first payment.
        let second = trade["nth"] != 0;
        if self.order.payment_method == PaymentMethod::Alipay {
            // The query shows a fully refunded trade, and a notification shows the sum until then.
            let refunds = trade["refunds"].as_array().into_iter().flatten();
            let last = refunds
                .map(reported)
                .collect::<Vec<_>>()
                .iter()
                .rposition(|reported| *reported)
                .map_or(0, |last| last + 1);
            let whole = trade["refunded_fen"] == trade["amount_fen"] && !second;
            return outside_of(trade, |nth, _| whole || nth < last);
        }
        // The query shows that money was returned; any booked refund may be the reason.
        let booked = self.refunds().await.iter().any(|r| r.trade_no == *trade_no && r.status != RefundStatus::Failed);
        outside_of(trade, |_, refund| !booked && !second || reported(refund))
    }

    async fn booked_outside(&self, trade_no: &TradeNo) -> i64 {
        let all = self.refunds().await;
        let outside = |refund: &&Refund| refund.origin == RefundOrigin::Outside && refund.trade_no == *trade_no;
        all.iter().filter(outside).map(|refund| refund.amount.fen()).sum()
    }

    /// The refunds in the console of a trade that our books lack: number and amount.
    pub(super) async fn in_the_console(&self, trade_no: &TradeNo) -> Vec<(String, i64)> {
        let booked: Vec<Option<String>> = self.refunds().await.into_iter().map(|r| r.gateway_refund_no).collect();
        let mut trades = self.trades().await;
        trades.retain(|trade| trade["trade_no"] == trade_no.as_str());
        // What Alipay stated as a sum is booked without a number.
        if trades.iter().map(outside).sum::<i64>() == self.booked_outside(trade_no).await {
            return Vec::new();
        }
        let refunds = trades.iter();
        let refunds = refunds.filter_map(|trade| trade["refunds"].as_array()).flatten();
        let lacking = refunds.filter(|refund| refund["console"] == true && refund["state"] == "success");
        let lacking = lacking.filter(|refund| {
            let is = |name: &str| booked.iter().flatten().any(|number| refund[name] == number.as_str());
            !is("refund_id") && !is("out_refund_no")
        });
        lacking.map(|refund| (text(&refund["out_refund_no"]), refund["amount_fen"].as_i64().unwrap())).collect()
    }

    /// How much of a trade has not gone back, by the gateway's books.
    pub(super) async fn left_there(&self, trade_no: &TradeNo) -> i64 {
        let trades = self.trades().await;
        let trade = trades.iter().find(|trade| trade["trade_no"] == trade_no.as_str()).expect("a trade of the gateway");
        trade["amount_fen"].as_i64().unwrap() - trade["refunded_fen"].as_i64().unwrap()
    }

    /// Years later, after all expired rows were deleted, every fact arrives again. Nothing is published or opened
    /// twice.
    pub(super) async fn is_no_news_later(&self) -> Outcome {
        // What was never handed on is no repeat.
        let letters = self.letters().await;
        self.bench.world.settle(letters.clone()).await;
        self.carry().await;
        self.bench.request_now(self.order.id, CheckRequest::sync()).await;
        self.check().await;
        forget(&self.bench.world.db).await;
        let before = self.reported_events().await;
        self.bench.world.settle(letters).await;
        self.bench.request_now(self.order.id, CheckRequest::sync()).await;
        self.check().await;
        for refund in self.refunds().await.iter().filter(|refund| refund.origin == RefundOrigin::Service) {
            let again = JobRequest::Refund(refund.id, RefundRequest::default());
            jobs::request(&self.bench.world.db, &again, Duration::ZERO).await.unwrap();
        }
        self.carry().await;
        let after = self.reported_events().await;
        ensure(after == before, || format!("{after:?} after a repeat, {before:?} before it"))
    }

    /// The events and cases of this order that are there.
    pub(super) async fn reported_events(&self) -> Vec<String> {
        let sql = "select event_id from events where order_id = $1
            union all select kind || ' ' || subject_ref from cases where order_id = $1 order by 1";
        sqlx::query_scalar(sql).bind(self.order.id.to_string()).fetch_all(&self.bench.world.db).await.unwrap()
    }

    async fn events(&self, kind: &str) -> Vec<Value> {
        let sql = "select data from events where order_id = $1 and type = $2";
        let rows = sqlx::query_scalar(sql).bind(self.order.id.to_string()).bind(kind).fetch_all(&self.bench.world.db);
        rows.await.unwrap()
    }

    async fn trades(&self) -> Vec<Value> {
        let mut trades = Vec::new();
        for nth in 0.. {
            let trade = self.trade(nth).await;
            if trade["error"].is_string() {
                break;
            }
            trades.push(trade);
        }
        trades
    }
}

/// What went back in the console.
fn outside(trade: &Value) -> i64 {
    outside_of(trade, |_, _| true)
}

/// What went back in the console of the refunds that are meant, by their place and by what they are.
fn outside_of(trade: &Value, meant: impl Fn(usize, &Value) -> bool) -> i64 {
    let refunds = trade["refunds"].as_array().into_iter().flatten().enumerate();
    let done = refunds.filter(|(_, refund)| refund["console"] == true && refund["state"] == "success");
    done.filter(|(nth, refund)| meant(*nth, refund)).map(|(_, refund)| refund["amount_fen"].as_i64().unwrap()).sum()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Whether one step can lead from one status to the other: by the table of moves, or among those that refunds make.
fn may_move(from: OrderStatus, to: OrderStatus) -> bool {
    match (from, to) {
        (Pending, _) => true,
        (Closed, to) => to == Closed || to.was_paid(),
        (from, to) => from.was_paid() && to.was_paid(),
    }
}
