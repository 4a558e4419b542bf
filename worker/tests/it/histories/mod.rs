//! Random histories of orders: whatever happens in whatever order, money in less money returned is money fulfilled.
//!
//! One history is one order at one gateway under one policy. The workers run for real, against the simulator; a crash drops
//! a worker wherever it is; a callback is handed on late, twice or never. After every step the books hold what they must
//! always hold, and at the end the simulator's books agree with ours.

use std::collections::BTreeSet;
use std::time::Duration as StdDuration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use shared::db::orders::Order;
use shared::db::refunds::{self, Refund};
use shared::db::{MIGRATOR, jobs};
use shared::domain::OrderStatus::{Closed, Pending, Refunded};
use shared::domain::{Money, OrderStatus, PaymentMethod, RefundNo, RefundStatus, TradeNo};
use shared::job::{Callback, kind};
use shared::settle::refunds as settling;
use shared::settle::refunds::Wish;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use testkit::jobs::publish;
use time::Duration;
use worker::jobs::run_batch;

use crate::bench::{Bench, carry};
use crate::retention::forget;

/// Histories under each policy.
const HISTORIES: u32 = 60;
const STEPS: usize = 40;
/// The rounds in which everything has to come to rest.
const ROUNDS: usize = 12;

/// What may happen to an order.
#[derive(Debug, Clone)]
enum Step {
    /// The buyer pays, if he still can.
    Pay,
    /// The number is paid once more.
    PayAgain,
    /// One of the callbacks so far is handed on: late, or again.
    Tell(u8),
    /// The gateway is asked about the order; with a number, by a worker that dies after so many microseconds.
    Check(Option<u16>),
    /// The buyer gives up, and the gateway is asked to close.
    GiveUp,
    /// The last moment to pay passes.
    Expire,
    /// So many percent of the order are asked back.
    Ask(u8),
    /// The refunds are carried on; with a number, by a worker that dies after so many microseconds.
    Carry(Option<u16>),
    /// What the gateway does to refunds from now on.
    Faults(&'static str),
}

const FAULTS: [&str; 8] = [
    "{}",
    r#"{"effect_then_timeout":1}"#,
    r#"{"effect_then_timeout":0.5,"query_5xx":0.5}"#,
    r#"{"error_5xx":0.5,"error_5xx_after":0.5}"#,
    r#"{"rate_limited":0.7}"#,
    r#"{"abnormal":1}"#,
    r#"{"closed":1}"#,
    r#"{"processing_ms":30}"#,
];

fn step() -> impl Strategy<Value = Step> {
    let crash = || prop::option::weighted(0.3, 0..20_000u16);
    prop_oneof![
        4 => Just(Step::Pay),
        1 => Just(Step::PayAgain),
        4 => any::<u8>().prop_map(Step::Tell),
        3 => crash().prop_map(Step::Check),
        1 => Just(Step::GiveUp),
        1 => Just(Step::Expire),
        4 => prop_oneof![1 => Just(100), 3 => 1..=100u8].prop_map(Step::Ask),
        6 => crash().prop_map(Step::Carry),
        2 => prop::sample::select(&FAULTS[..]).prop_map(Step::Faults),
    ]
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn under_hold_money_in_less_money_returned_is_money_fulfilled(db: PgPool) {
    run(db, "hold").await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn under_refund_money_in_less_money_returned_is_money_fulfilled(db: PgPool) {
    run(db, "refund").await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn under_fulfil_money_in_less_money_returned_is_money_fulfilled(db: PgPool) {
    run(db, "fulfil").await;
}

/// Histories by a fixed seed. One that fails is made smaller, and shown as small as it gets.
async fn run(db: PgPool, policy: &str) {
    let bench = Bench::new(db, policy).await;
    let mut runner = TestRunner::deterministic();
    let histories = (any::<bool>(), prop::collection::vec(step(), 1..STEPS));
    let mut met = BTreeSet::<String>::new();
    for _ in 0..HISTORIES {
        let mut tree = histories.new_tree(&mut runner).expect("a history");
        let Err(mut wrong) = play(&bench, &tree.current(), &mut met).await else { continue };
        let mut smallest = tree.current();
        while tree.simplify() {
            match play(&bench, &tree.current(), &mut met).await {
                Err(still) => (wrong, smallest) = (still, tree.current()),
                Ok(()) if tree.complicate() => {}
                Ok(()) => break,
            }
        }
        panic!("policy {policy}: {wrong}\nin {smallest:?}");
    }
    // The histories went where they were meant to go.
    let wanted = ["paid", "closed", "refunding", "partially_refunded", "refunded", "late_payment", "double_payment"];
    assert!(wanted.iter().all(|name| met.contains(*name)), "only {met:?}");
}

type Outcome = Result<(), String>;

async fn play(bench: &Bench, (alipay, steps): &(bool, Vec<Step>), met: &mut BTreeSet<String>) -> Outcome {
    let method = if *alipay { PaymentMethod::Alipay } else { PaymentMethod::Wechat };
    let order = bench.offered(method).await;
    let mut history = History { bench, order, seen: Pending };
    for step in steps {
        history.take(step).await;
        history.look().await.map_err(|wrong| format!("{wrong}, after {step:?}"))?;
        met.insert(history.seen.to_string());
    }
    history.come_to_rest().await?;
    met.insert(history.seen.to_string());
    history.books_agree().await?;
    met.extend(history.told().await.iter().filter_map(|told| told.split_once(' ')).map(|(kind, _)| kind.to_owned()));
    history.is_no_news_later().await
}

struct History<'a> {
    bench: &'a Bench,
    order: Order,
    /// The status after the last step.
    seen: OrderStatus,
}

impl History<'_> {
    async fn take(&mut self, step: &Step) {
        match step {
            Step::Pay => drop(self.bench.act(&self.order, "pay").await),
            Step::PayAgain => drop(self.bench.act(&self.order, "pay-again").await),
            Step::Tell(n) => self.tell(*n).await,
            Step::Check(None) => self.check().await,
            Step::Check(Some(micros)) => self.check_and_die(*micros).await,
            Step::GiveUp => {
                self.bench.ask_now(self.order.id, json!({ "close": true })).await;
                self.check().await;
            }
            Step::Expire => self.expire(Duration::seconds(1)).await,
            Step::Ask(percent) => self.ask(*percent).await,
            Step::Carry(None) => self.carry().await,
            Step::Carry(Some(micros)) => self.carry_and_die(*micros).await,
            Step::Faults(refund) => {
                let scope = &self.order.order_no;
                self.bench.faults(&format!(r#"{{"scope":"{scope}","refund":{refund}}}"#)).await;
            }
        }
    }

    /// The letters about this order, and a notice of each of its payments that has sent none.
    async fn letters(&self) -> Vec<Callback> {
        for nth in 0.. {
            let trade = self.trade(nth).await;
            if trade["error"].is_string() {
                break;
            }
            if trade["state"] == "paid" && trade["notified"] == 0 {
                self.bench.notice(&self.order, &format!("?nth={nth}")).await;
            }
        }
        let ours = |letter: &Callback| self.names_us(letter);
        self.bench.letters().into_iter().filter(ours).collect()
    }

    /// Whether a callback is about this order, as far as its adapter can read it.
    fn names_us(&self, letter: &Callback) -> bool {
        let gateway = self.bench.checks.gateways.get(letter.method, &letter.account).unwrap();
        let read =
            gateway.verify(letter.clone(), None).and_then(|verified| gateway.read(&verified, letter.received_at));
        read.is_ok_and(|told| told.get().order_no == self.order.order_no.as_str())
    }

    async fn tell(&mut self, n: u8) {
        let letters = self.letters().await;
        if !letters.is_empty() {
            let letter = letters[usize::from(n) % letters.len()].clone();
            self.bench.world.settle(vec![letter]).await;
        }
    }

    async fn check(&self) {
        if let Some(nudge) = publish(&self.bench.world.db, kind::CHECK, &self.order.id.to_string()).await {
            run_batch(&self.bench.checks, vec![Ok(nudge)]).await.unwrap();
        }
    }

    async fn check_and_die(&self, micros: u16) {
        let Some(nudge) = publish(&self.bench.world.db, kind::CHECK, &self.order.id.to_string()).await else { return };
        let mortal = Mortal::new(self.bench).await;
        let (checks, _) = self.bench.on(&mortal.0);
        let _ = timeout(micros, run_batch(&checks, vec![Ok(nudge)])).await;
        mortal.die(self.bench).await;
    }

    async fn expire(&self, ago: Duration) {
        self.bench.expire(&self.order, ago).await;
        self.bench.act(&self.order, "expire").await;
    }

    async fn ask(&self, percent: u8) {
        let fen = (self.order.amount.fen() * i64::from(percent) / 100).max(1);
        let yuan = Money::from_fen(fen).unwrap().to_string();
        // Refused where the order does not allow it; that it is refused is what `look` holds.
        let _ = self.bench.world.ask(self.order.id, Some(&yuan)).await;
    }

    async fn carry(&self) {
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

    /// The faults are over, the gateway has told everything that it tells for a day, people have decided.
    async fn come_to_rest(&mut self) -> Outcome {
        self.take(&Step::Faults("{}")).await;
        let mut waiting = Vec::new();
        for _ in 0..ROUNDS {
            // Of one payment alone every callback may be lost: the checks find it. What is paid twice under one number
            // only callbacks can tell.
            if self.trade(1).await["state"] == "paid" {
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
            self.decide().await;
            for refund in self.refunds().await {
                if refund.status == RefundStatus::Abnormal {
                    let payload = json!({ "redirect": "merchant" });
                    let id = refund.id.to_string();
                    jobs::ask_in(&self.bench.world.db, kind::REFUND, &id, &payload, Duration::ZERO).await.unwrap();
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

    /// A person decides about money that was not owed: it goes back.
    async fn decide(&self) {
        let open: Vec<(String, String)> = sqlx::query_as(
            "select id, gateway_no from cases
             where order_id = $1 and kind in ('late_payment', 'double_payment') and status <> 'resolved'",
        )
        .bind(self.order.id.to_string())
        .fetch_all(&self.bench.world.db)
        .await
        .unwrap();
        let all = self.refunds().await;
        for (case, trade_no) in open {
            let trade_no = TradeNo::parse(trade_no).unwrap();
            let returned = all.iter().any(|refund| {
                refund.trade_no == trade_no && (refund.status.reserves() && refund.amount == refund.payment_amount)
            });
            let bits = self.bench.checks.clock.fresh_bits();
            let wish = Wish {
                id: shared::domain::RefundId::from_u128(bits),
                order_id: self.order.id,
                extra_trade: Some(trade_no),
                refund_no: RefundNo::parse(format!("P{bits:032x}")).unwrap(),
                amount: None,
                reason: None,
                requested_by: "a person".to_owned(),
            };
            let mut tx = self.bench.world.db.begin().await.unwrap();
            let now = self.bench.checks.clock.now();
            if returned || settling::ask(&mut tx, &wish, now).await.unwrap().is_ok() {
                let decided = sqlx::query("update cases set status = 'resolved' where id = $1").bind(case);
                decided.execute(&mut *tx).await.unwrap();
                tx.commit().await.unwrap();
            }
        }
    }

    /// What still moves.
    async fn waiting(&self) -> Vec<String> {
        let sql = "select 'order ' || status from payment_orders where id = $1 and status in ('pending', 'refunding')
            union all select 'job ' || kind || ' ' || coalesce(last_error, '') from jobs
              where kind <> 'look_back' and (ref_id = $1 or ref_id in (select id from refund_records where order_id = $1))
            union all select 'refund ' || status from refund_records where order_id = $1
              and status not in ('succeeded', 'failed')
            union all select 'case ' || kind from cases where order_id = $1 and status <> 'resolved'
              and kind in ('late_payment', 'double_payment')";
        let rows = sqlx::query_scalar(sql).bind(self.order.id.to_string()).fetch_all(&self.bench.world.db);
        rows.await.unwrap()
    }

    /// What must hold after every step.
    async fn look(&mut self) -> Outcome {
        let order = self.bench.world.order(&self.order.id).await;
        ensure(may_move(self.seen, order.status), || format!("moved from {} to {}", self.seen, order.status))?;
        self.seen = order.status;
        let mut spoken_for = std::collections::BTreeMap::<&str, i64>::new();
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
        ensure(order.refunded_amount.fen() == returned, || format!("{returned} returned, {}", order.refunded_amount))?;
        let told = self.events("order.paid").await.len();
        ensure(told == usize::from(order.status.was_paid()), || format!("{} and {told} order.paid", order.status))
    }

    /// The end: our books, the simulator's books and what downstream was told.
    async fn books_agree(&self) -> Outcome {
        let (mut paid, mut returned) = (0, 0);
        for nth in 0.. {
            let trade = self.trade(nth).await;
            if trade["error"].is_string() {
                break;
            }
            ensure(trade["state"] != "waiting", || format!("can still be paid: {trade}"))?;
            if trade["state"] != "paid" {
                continue;
            }
            paid += trade["amount_fen"].as_i64().unwrap();
            returned += trade["refunded_fen"].as_i64().unwrap();
            let effects = trade["refunds"].as_array().unwrap().iter().map(|refund| refund["effects"].as_u64().unwrap());
            ensure(effects.max().unwrap_or(0) <= 1, || format!("a refund twice: {trade}"))?;
            let broken = &trade["violations"];
            ensure(*broken == json!({}), || format!("limits of the gateway: {broken}"))?;
        }
        let ours: (Option<i64>, Option<i64>) = sqlx::query_as(
            "select (sum(amount * 100) filter (where action_type = 'payment'))::bigint,
                    (sum(amount * 100) filter (where action_type = 'refund'))::bigint
             from payment_transactions where order_id = $1 and status = 'succeeded'",
        )
        .bind(self.order.id.to_string())
        .fetch_one(&self.bench.world.db)
        .await
        .unwrap();
        let ours = (ours.0.unwrap_or(0), ours.1.unwrap_or(0));
        ensure(ours == (paid, returned), || format!("we have {ours:?}, the gateway ({paid}, {returned})"))?;

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
        ensure(paid - returned == delivered - rolled_back, || {
            format!("in {paid}, returned {returned}; delivered {delivered}, rolled back {rolled_back}")
        })?;
        self.shows_what_is_true().await?;
        let ends = self.events("order.closed").await.len() + self.events("order.refunded").await.len();
        let (closed, refunded) = (order.closed_at.is_some(), order.status == Refunded);
        ensure(ends == usize::from(closed) + usize::from(refunded), || format!("{ends} ends of {}", order.status))
    }

    /// What the buyer reads of money that was not owed follows from transactions, refunds and cases as they are now.
    async fn shows_what_is_true(&self) -> Outcome {
        let before = self.bench.world.order(&self.order.id).await;
        let mut tx = self.bench.world.db.begin().await.unwrap();
        shared::db::extra::follow(&mut tx, &[before.id], self.bench.checks.clock.now()).await.unwrap();
        let after = shared::db::orders::lock_one(&mut tx, before.id).await.unwrap().unwrap();
        tx.rollback().await.unwrap();
        let (shown, so) = ((before.extra_state, before.extra_amount), (after.extra_state, after.extra_amount));
        ensure(before.version == after.version, || format!("the buyer reads {shown:?}, and it is {so:?}"))
    }

    /// Years later, with all removed that has had its time, every fact comes once more. Nothing is told or opened twice.
    async fn is_no_news_later(&self) -> Outcome {
        let letters = self.letters().await;
        forget(&self.bench.world.db).await;
        let before = self.told().await;
        self.bench.world.settle(letters).await;
        self.bench.ask_now(self.order.id, json!({})).await;
        self.check().await;
        for refund in self.refunds().await {
            let id = refund.id.to_string();
            jobs::ask_in(&self.bench.world.db, kind::REFUND, &id, &json!({}), Duration::ZERO).await.unwrap();
        }
        self.carry().await;
        let after = self.told().await;
        ensure(after == before, || format!("{after:?} after a repeat, {before:?} before it"))
    }

    /// The events and cases of this order that are there.
    async fn told(&self) -> Vec<String> {
        let sql = "select event_id from events where order_id = $1
            union all select kind || ' ' || gateway_no from cases where order_id = $1 order by 1";
        sqlx::query_scalar(sql).bind(self.order.id.to_string()).fetch_all(&self.bench.world.db).await.unwrap()
    }

    async fn events(&self, kind: &str) -> Vec<Value> {
        let sql = "select data from events where order_id = $1 and type = $2";
        let rows = sqlx::query_scalar(sql).bind(self.order.id.to_string()).bind(kind).fetch_all(&self.bench.world.db);
        rows.await.unwrap()
    }

    async fn refunds(&self) -> Vec<Refund> {
        refunds::of_order(&self.bench.world.db, self.order.id).await.unwrap()
    }

    async fn trade(&self, nth: u32) -> Value {
        self.bench.ledger_of(&self.order, nth).await
    }
}

/// What is not done by then never is.
async fn timeout<F: Future>(micros: u16, work: F) -> Option<F::Output> {
    tokio::time::timeout(StdDuration::from_micros(micros.into()), work).await.ok()
}

fn ensure(holds: bool, wrong: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(wrong()) }
}

/// Whether one step can lead from one status to the other: by the table of moves, or among those that refunds make.
fn may_move(from: OrderStatus, to: OrderStatus) -> bool {
    match (from, to) {
        (Pending, _) => true,
        (Closed, to) => to == Closed || to.was_paid(),
        (from, to) => from.was_paid() && to.was_paid(),
    }
}

/// The database as a process sees it that is about to be killed; named, to be told from others.
struct Mortal(PgPool, String);

impl Mortal {
    async fn new(bench: &Bench) -> Mortal {
        let name = format!("mortal-{:x}", bench.checks.clock.fresh_bits());
        let options = bench.world.db.connect_options().as_ref().clone().application_name(&name);
        Mortal(PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap(), name)
    }

    /// The connections end, wherever they were; what the server was doing for them, a commit it may be, it does.
    async fn die(self, bench: &Bench) {
        self.0.close().await;
        let sessions = "select count(*) from pg_stat_activity where application_name = $1";
        while sqlx::query_scalar::<_, i64>(sessions).bind(&self.1).fetch_one(&bench.world.db).await.unwrap() > 0 {
            tokio::time::sleep(StdDuration::from_millis(1)).await;
        }
    }
}
