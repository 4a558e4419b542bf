//! Money that moves without us: refunds in the gateway's console, before and after we first see a payment.

use domain::OrderStatus::{Closed, Paid, PartiallyRefunded, Pending, Refunded, Refunding};
use domain::PaymentMethod::{self, Alipay, Wechat};
use domain::message::callback::Callback;
use domain::message::job::CheckRequest;
use domain::{Fact, Money, RefundOrigin, RefundReport, RefundStatus, TradeNo, Verdict};
use gateway_sim::ledger::{RefundState, Trade};
use gateway_sim::notify::Overrides;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use store::settle;
use store::settle::refunds::RefundRefusal;
use store::tables::orders::Order;
use store::tables::refunds::{self, Refund};
use time::Duration;

use crate::bench::Bench;
use crate::support::World;

const BOTH: [PaymentMethod; 2] = [Alipay, Wechat];

fn yuan(text: &str) -> Money {
    Money::from_yuan(text).unwrap()
}

fn failed() -> RefundReport {
    RefundReport::of(domain::RefundState::Absent)
}

fn succeeded() -> RefundReport {
    RefundReport::of(domain::RefundState::Succeeded)
}

impl World {
    /// The callback that reports a refund that is not ours. Alipay's callback need not name the refund.
    pub fn went(&self, trade: &Trade, (number, fen): (&str, i64), named: bool) -> (Trade, Callback) {
        let after = trade.clone().refunded(number, fen, RefundState::Success);
        let unnamed = [("out_biz_no".to_owned(), None)].into_iter().collect();
        let fields = if named { Default::default() } else { unnamed };
        let callback = self.notice_of(&after, &Overrides { fields, ..Overrides::default() });
        (after, callback)
    }

    /// The refunds of an order: origin, amount, status.
    async fn booked(&self, order: &Order) -> Vec<(RefundOrigin, String, RefundStatus)> {
        let all = refunds::of_order(&self.db, order.id).await.unwrap();
        all.into_iter().map(|refund| (refund.origin, refund.amount.to_string(), refund.status)).collect()
    }

    /// The events about an order without those of cases: type, and the refund's origin if the event has one.
    async fn news(&self, order: &Order) -> Vec<(String, Option<String>)> {
        let sql =
            "select type, data ->> 'origin' from events where order_id = $1 and type <> 'case.opened' order by seq";
        sqlx::query_as(sql).bind(order.id.to_string()).fetch_all(&self.db).await.unwrap()
    }

    /// The cases of an order: kind and status.
    async fn open_cases(&self, order: &Order) -> Vec<(String, String)> {
        let sql = "select kind, status from cases where order_id = $1 order by id";
        sqlx::query_as(sql).bind(order.id.to_string()).fetch_all(&self.db).await.unwrap()
    }

    async fn resolve_all(&self) {
        sqlx::query("update cases set status = 'resolved'").execute(&self.db).await.unwrap();
    }

    pub async fn paid_with(&self, method: PaymentMethod, amount: &str) -> (Order, Trade) {
        let order = self.pending_order(method, amount).await;
        let trade = self.paid_trade(&order);
        self.settle(vec![self.notice_of(&trade, &Overrides::default())]).await;
        (self.order(&order.id).await, trade)
    }

    async fn end(&self, order: &Order) {
        let mut tx = self.db.begin().await.unwrap();
        let ended = settle::end_unpaid(&mut tx, order, &self.worker.clock).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(ended, Verdict::Settled);
    }
}

fn of(kind: &str, origin: Option<&str>) -> (String, Option<String>) {
    (kind.to_owned(), origin.map(str::to_owned))
}

fn case(kind: &str, status: &str) -> (String, String) {
    (kind.to_owned(), status.to_owned())
}

const OUTSIDE: RefundOrigin = RefundOrigin::Outside;
const OURS: RefundOrigin = RefundOrigin::Service;

/// How the return and the payment reach us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    ReturnThenPayment,
    CaseResolvedBetween,
    OneBatch,
    OneBatchReturnFirst,
    ReturnTwiceThenPayment,
}

const ARRIVALS: [Arrival; 5] = [
    Arrival::ReturnThenPayment,
    Arrival::CaseResolvedBetween,
    Arrival::OneBatch,
    Arrival::OneBatchReturnFirst,
    Arrival::ReturnTwiceThenPayment,
];

async fn arrive(world: &World, arrival: Arrival, came: Callback, went: Callback) {
    match arrival {
        Arrival::ReturnThenPayment => {
            world.settle(vec![went]).await;
            world.settle(vec![came]).await;
        }
        Arrival::CaseResolvedBetween => {
            world.settle(vec![went]).await;
            world.resolve_all().await;
            world.settle(vec![came]).await;
        }
        Arrival::OneBatch => drop(world.settle(vec![came, went]).await),
        Arrival::OneBatchReturnFirst => drop(world.settle(vec![went, came]).await),
        Arrival::ReturnTwiceThenPayment => {
            world.settle(vec![went.clone(), went]).await;
            world.settle(vec![came]).await;
        }
    }
}

/// Trap: the order becomes paid, and what was bought is delivered for money that is not there.
#[sqlx::test(migrator = "MIGRATOR")]
async fn money_that_came_and_went_before_it_was_recorded_is_never_delivered_for(db: PgPool) {
    let world = World::new(db);
    for (method, named) in [(Alipay, true), (Alipay, false), (Wechat, true)] {
        for arrival in ARRIVALS {
            for closed in [false, true] {
                let place = format!("{method} {named} {arrival:?} closed: {closed}");
                let order = world.pending_order(method, "5").await;
                if closed {
                    world.end(&order).await;
                }
                let trade = world.paid_trade(&order);
                let came = world.notice_of(&trade, &Overrides::default());
                let (_, went) = world.went(&trade, ("CONSOLE1", 500), named);
                arrive(&world, arrival, came.clone(), went.clone()).await;
                world.settle(vec![came, went]).await;
                let after = world.order(&order.id).await;
                assert_eq!(after.status, if closed { Closed } else { Pending }, "{place}");
                assert!(world.news(&order).await.iter().all(|(kind, _)| kind == "order.closed"), "{place}");
                let whole = (OUTSIDE, "5.00".to_owned(), RefundStatus::Succeeded);
                assert_eq!(world.booked(&order).await, [whole], "{place}");
                let cases = world.open_cases(&order).await;
                assert_eq!(cases.len(), 1, "{place}: {cases:?}");
                assert_eq!(cases[0].0, "refunded_elsewhere", "{place}");
            }
        }
        // Another trade pays its order as ever.
        let order = world.pending_order(method, "5").await;
        let (_, went) = world.went(&world.paid_trade(&order), ("CONSOLE1", 500), named);
        world.settle(vec![went]).await;
        world.settle(vec![world.paid(&order)]).await;
        assert_eq!(world.status(&order).await, Paid, "{method}");
    }
}

/// Trap: the order is stuck for ever, and the rest of the money can be neither delivered for nor returned.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_part_that_went_back_before_our_first_sight_leaves_the_rest_in_reach(db: PgPool) {
    let world = World::new(db);
    for (method, named) in [(Alipay, true), (Alipay, false), (Wechat, true)] {
        for arrival in ARRIVALS {
            let place = format!("{method} {named} {arrival:?}");
            let order = world.pending_order(method, "5").await;
            let trade = world.paid_trade(&order);
            let came = world.notice_of(&trade, &Overrides::default());
            let (_, went) = world.went(&trade, ("CONSOLE1", 150), named);
            arrive(&world, arrival, came, went).await;
            assert_eq!(world.status(&order).await, Pending, "{place}");
            assert_eq!(world.news(&order).await, [], "{place}");
            let part = (OUTSIDE, "1.50".to_owned(), RefundStatus::Succeeded);
            assert_eq!(world.booked(&order).await, [part], "{place}");
            let paid: Vec<String> = world.payments(&order).await.into_iter().filter_map(|(no, _)| no).collect();
            assert!(paid.contains(&trade.trade_no.clone().unwrap()), "{place}: the payment is recorded");
            let evidence = world.cases().await.pop().unwrap().1;
            assert_eq!((&evidence["amount"], &evidence["returned"]), (&json!("5.00"), &json!("1.50")), "{place}");
            // The rest can go back.
            let rest = world.request_of(&order, &trade).await.unwrap();
            assert_eq!(rest.amount, yuan("3.50"), "{place}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_of_the_console_is_booked_once_and_the_rest_is_what_is_left(db: PgPool) {
    let world = World::new(db);
    for (method, named) in [(Alipay, true), (Alipay, false), (Wechat, true)] {
        let (order, trade) = world.paid_with(method, "4").await;
        let (trade, went) = world.went(&trade, ("CONSOLE1", 150), named);
        world.settle(vec![went.clone(), went]).await;
        // The same fact in another message.
        let again = Overrides { id: Some(format!("again-{}", order.order_no)), ..Overrides::default() };
        world.settle(vec![world.notice_of(&trade, &again)]).await;
        let after = world.order(&order.id).await;
        assert_eq!((after.status, after.refunded_amount), (PartiallyRefunded, yuan("1.50")), "{method}");
        assert_eq!(world.booked(&order).await, [(OUTSIDE, "1.50".to_owned(), RefundStatus::Succeeded)]);
        assert_eq!(world.open_cases(&order).await, []);
        assert_eq!(
            world.request_refund(order.id, Some("2.51")).await.unwrap_err(),
            RefundRefusal::TooMuch(yuan("2.50"))
        );
        let rest = world.request_refund(order.id, None).await.unwrap();
        assert_eq!(rest.amount, yuan("2.50"));
        world.tell(&rest, &succeeded()).await;
        assert_eq!(world.status(&order).await, Refunded);
        let expected = [
            of("order.paid", None),
            of("refund.succeeded", Some("outside")),
            of("refund.succeeded", Some("service")),
            of("order.refunded", Some("service")),
        ];
        assert_eq!(world.news(&order).await, expected, "{method}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn parts_of_the_console_are_booked_in_whatever_order_they_are_reported(db: PgPool) {
    let world = World::new(db);
    for method in BOTH {
        for backwards in [false, true] {
            let (order, trade) = world.paid_with(method, "4").await;
            let (one, first) = world.went(&trade, ("CONSOLE1", 100), true);
            let (_, second) = world.went(&one, ("CONSOLE2", 300), true);
            let both = if backwards { [second, first] } else { [first, second] };
            for callback in both {
                world.settle(vec![callback]).await;
            }
            let after = world.order(&order.id).await;
            assert_eq!((after.status, after.refunded_amount), (Refunded, yuan("4")), "{method} {backwards}");
            let refunded = world.news(&order).await.iter().filter(|(kind, _)| kind == "order.refunded").count();
            assert_eq!(refunded, 1);
            assert_eq!(world.open_cases(&order).await, []);
        }
    }
}

/// Trap: a refund of ours that was never sent explains money that went back without it.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_went_back_while_ours_was_on_its_way_is_distinguished_when_ours_ends(db: PgPool) {
    let world = World::new(db);
    for method in BOTH {
        for fails in [true, false] {
            let (order, trade) = world.paid_with(method, "4").await;
            let ours = world.request_refund(order.id, Some("1")).await.unwrap();
            let trade = if fails { trade } else { trade.refunded(ours.refund_no.as_str(), 100, RefundState::Success) };
            let (_, went) = world.went(&trade, ("CONSOLE1", 250), true);
            world.settle(vec![went]).await;
            let pending = (OURS, "1.00".to_owned(), RefundStatus::Pending);
            assert_eq!(world.booked(&order).await, [pending], "{method}: nothing is booked yet");
            assert_eq!(world.status(&order).await, Refunding);
            world.tell(&ours, &if fails { failed() } else { succeeded() }).await;
            let outside = (OUTSIDE, "2.50".to_owned(), RefundStatus::Succeeded);
            assert_eq!(world.booked(&order).await[1], outside, "{method} {fails}");
            let after = world.order(&order.id).await;
            let returned = if fails { "2.50" } else { "3.50" };
            assert_eq!((after.status, after.refunded_amount), (PartiallyRefunded, yuan(returned)), "{method}");
            let open: Vec<_> =
                world.open_cases(&order).await.into_iter().filter(|(_, status)| status != "resolved").collect();
            assert_eq!(open, [], "{method} {fails}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_order_that_the_console_returned_whole_is_refunded_once_ours_has_failed(db: PgPool) {
    let world = World::new(db);
    for named in [true, false] {
        let (order, trade) = world.paid_with(Alipay, "4").await;
        let ours = world.request_refund(order.id, None).await.unwrap();
        let (_, went) = world.went(&trade, ("CONSOLE1", 400), named);
        world.settle(vec![went]).await;
        world.tell(&ours, &failed()).await;
        assert_eq!(world.order(&order.id).await.refunded_amount, yuan("4"));
        let expected = [
            of("order.paid", None),
            of("refund.failed", Some("service")),
            of("refund.succeeded", Some("outside")),
            of("order.refunded", Some("outside")),
        ];
        assert_eq!(world.news(&order).await, expected);
        let queries: i64 = sqlx::query_scalar("select count(*) from jobs where kind = 'check' and ref_id = $1")
            .bind(order.id.to_string())
            .fetch_one(&world.db)
            .await
            .unwrap();
        assert_eq!(queries, 1, "the gateway is asked about the trade once more");
    }
}

/// A refund that we count as failed may be the returned money, so it is queried before anything is booked.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_a_failed_refund_may_explain_is_queried_first(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for ours_went in [true, false] {
        let order = bench.paid(Alipay).await;
        let ours = bench.world.request_refund(order.id, Some("1.00")).await.unwrap();
        if ours_went {
            bench.faults(r#"{"refund":{"effect_then_timeout":1}}"#).await;
            bench.carry(ours.id).await;
            bench.faults(r#"{"refund":{}}"#).await;
        }
        bench.world.tell(&ours, &failed()).await;
        if !ours_went {
            bench.console(&order, json!({ "amount_fen": 100 })).await;
        }
        let notice = bench.notice(&order, "?event=refund").await.unwrap();
        bench.world.settle(vec![notice]).await;
        assert_eq!(bench.world.booked(&order).await.len(), 1, "not before the question");
        bench.carry(ours.id).await;
        let booked = bench.world.booked(&order).await;
        let succeeded = booked.iter().filter(|(_, _, status)| *status == RefundStatus::Succeeded);
        let origins: Vec<RefundOrigin> = succeeded.map(|(origin, ..)| *origin).collect();
        assert_eq!(origins, [if ours_went { OURS } else { OUTSIDE }]);
        assert_eq!(bench.world.order(&order.id).await.refunded_amount, yuan("1"));
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn more_than_was_paid_is_a_case_and_nothing_is_booked(db: PgPool) {
    let world = World::new(db);
    for method in BOTH {
        let (order, trade) = world.paid_with(method, "4").await;
        let (_, went) = world.went(&trade, ("CONSOLE1", 401), true);
        world.settle(vec![went]).await;
        assert_eq!(world.booked(&order).await, [], "{method}");
        assert_eq!(world.open_cases(&order).await, [case("amount_mismatch", "open")], "{method}");
        assert_eq!(world.status(&order).await, Paid);
        // The case is about a refund: the buyer reads of no other payment that is held.
        let mut tx = world.db.begin().await.unwrap();
        store::tables::extra::follow(&mut tx, &[order.id], world.worker.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(world.order(&order.id).await.extra_state, None, "{method}");
    }
}

/// Trap: we deliver for a late payment that waits for a decision, although a person has refunded it in the meantime.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_payment_that_went_back_is_noted_in_its_case_and_not_honoured(db: PgPool) {
    let world = World::new(db);
    for (method, fen) in [(Alipay, 500), (Wechat, 500), (Alipay, 100), (Wechat, 100)] {
        let order = world.pending_order(method, "5").await;
        world.end(&order).await;
        let trade = world.paid_trade(&order);
        world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await;
        let (_, went) = world.went(&trade, ("CONSOLE1", fen), true);
        world.settle(vec![went]).await;
        let evidence = world.cases().await.pop().unwrap();
        let returned = Money::from_fen(fen).unwrap().to_string();
        assert_eq!((evidence.0.as_str(), &evidence.1["returned"]), ("late_payment", &json!(returned)), "{method}");
        let held = [of("order.closed", None), of("extra_payment.received", None)];
        assert_eq!(world.news(&order).await, held, "the order's own money did not move");
        let case = store::tables::cases::of_order(&world.db, order.id).await.unwrap().pop().unwrap().id;
        // Even an answer that shows the money does not make more of it than the books know.
        let trade_no = TradeNo::parse(trade.trade_no.clone().unwrap()).unwrap();
        let said = Fact::Paid { trade_no, amount: Some(yuan("5")), paid_at: order.created_at };
        let mut tx = world.db.begin().await.unwrap();
        let verdict = settle::fulfil(&mut tx, order.id, case, Some(&said), &world.worker.clock).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(verdict, if fen == 500 { Verdict::NotPending } else { Verdict::Settled }, "{method} {fen}");
        if fen == 100 {
            // What went back before is published after the payment, so that the sums of those who deliver agree.
            let after = world.order(&order.id).await;
            assert_eq!((after.status, after.refunded_amount), (PartiallyRefunded, yuan("1")));
            let paid = [of("order.paid", None), of("refund.succeeded", Some("outside"))];
            assert_eq!(world.news(&order).await, [held, paid].concat());
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_second_payment_that_came_and_went_is_recorded_and_changes_no_order(db: PgPool) {
    let world = World::new(db);
    for method in BOTH {
        let (order, _) = world.paid_with(method, "5").await;
        let second = world.paid_trade(&order);
        let (_, went) = world.went(&second, ("CONSOLE1", 500), true);
        world.settle(vec![went]).await;
        world.settle(vec![world.notice_of(&second, &Overrides::default())]).await;
        let after = world.order(&order.id).await;
        assert_eq!((after.status, after.refunded_amount), (Paid, Money::ZERO), "{method}");
        assert_eq!(world.news(&order).await, [of("order.paid", None)]);
        assert_eq!(world.booked(&order).await, [(OUTSIDE, "5.00".to_owned(), RefundStatus::Succeeded)]);
        assert_eq!(world.open_cases(&order).await, [case("double_payment", "open")]);
    }
}

/// WeChat Pay's answer says that money was returned, but not how much. A person decides, unless a notification states
/// it.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_only_a_query_shows_waits_for_a_person_or_for_the_notice(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.paid(Wechat).await;
    bench.console(&order, json!({ "amount_fen": 150, "notify": true })).await;
    bench.request_now(order.id, CheckRequest::sync()).await;
    bench.check(&order).await;
    assert_eq!(bench.world.open_cases(&order).await, [case("unknown_refund", "open")]);
    assert!(matches!(bench.world.request_refund(order.id, None).await, Err(RefundRefusal::CaseOpen)));
    let notice = bench.notice(&order, "?event=refund").await.unwrap();
    bench.world.settle(vec![notice]).await;
    let after = bench.world.order(&order.id).await;
    assert_eq!((after.status, after.refunded_amount), (PartiallyRefunded, yuan("1.50")));
    assert_eq!(bench.world.open_cases(&order).await, [case("unknown_refund", "resolved")]);
    assert_eq!(bench.world.request_refund(order.id, None).await.unwrap().amount, yuan("7.38"));
}

/// Alipay's query shows a trade that was fully refunded, and its answer to our next refund states the sum.
#[sqlx::test(migrator = "MIGRATOR")]
async fn without_a_notice_the_query_or_our_next_refund_shows_it(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let order = bench.paid(Alipay).await;
    bench.console(&order, json!({ "notify": false })).await;
    bench.request_now(order.id, CheckRequest::sync()).await;
    bench.check(&order).await;
    let after = bench.world.order(&order.id).await;
    assert_eq!((after.status, after.refunded_amount), (Refunded, order.amount));

    let order = bench.paid(Alipay).await;
    bench.console(&order, json!({ "amount_fen": 100, "notify": false })).await;
    let ours = bench.world.request_refund(order.id, Some("2.00")).await.unwrap();
    bench.carry_to_its_end(ours.id).await;
    let after = bench.world.order(&order.id).await;
    assert_eq!((after.status, after.refunded_amount), (PartiallyRefunded, yuan("3")));
    let origins: Vec<_> = bench.world.booked(&order).await.into_iter().map(|(origin, ..)| origin).collect();
    assert_eq!(origins, [OURS, OUTSIDE]);
}

/// Trap: stuck pending at Alipay, silently closed at WeChat Pay.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_order_of_which_a_part_went_back_ends_in_time_with_its_case_open(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    for method in BOTH {
        let order = bench.opened(method).await;
        bench.act(&order, "pay").await;
        bench.console(&order, json!({ "amount_fen": 100 })).await;
        if method == Alipay {
            // Only a notification reports a partial refund.
            let notice = bench.notice(&order, "?event=refund").await.unwrap();
            bench.world.settle(vec![notice]).await;
        }
        bench.check(&order).await;
        assert_eq!(bench.world.status(&order).await, Pending, "{method}");
        assert!(bench.job(&order).await.is_some());
        bench.expire(&order, Duration::seconds(1)).await;
        bench.check(&order).await;
        assert_eq!(bench.world.status(&order).await, Closed, "{method}");
        assert_eq!(bench.world.open_cases(&order).await, [case("refunded_elsewhere", "open")], "{method}");
        let payments = bench.world.payments(&order).await;
        let mut states: Vec<&str> = payments.iter().map(|(_, status)| status.as_str()).collect();
        states.sort_unstable();
        states.dedup();
        assert_eq!(states, ["failed", "succeeded"], "{method}: the payment is on record");
    }
}

impl Bench {
    /// A refund in the gateway's console.
    pub async fn console(&self, order: &Order, refund: Value) -> Value {
        let path = format!("/sim/trades/{}/{}/refunds", order.payment_method, order.order_no);
        let answer = self.control("POST", &path, &refund.to_string()).await;
        assert!(answer["error"].is_null(), "{answer}");
        answer
    }
}

impl World {
    /// Requests a refund of the rest of a payment that is not the order's own.
    async fn request_of(&self, order: &Order, trade: &Trade) -> Result<Refund, RefundRefusal> {
        let clock = self.worker.clock;
        let id = domain::RefundId::from_u128(clock.fresh_bits());
        let request = settle::refunds::RequestedRefund {
            id,
            order_id: order.id,
            extra_trade: Some(TradeNo::parse(trade.trade_no.clone().unwrap()).unwrap()),
            refund_no: domain::RefundNo::parse(format!("P{id}")).unwrap(),
            amount: None,
            reason: None,
            requested_by: "a person".to_owned(),
        };
        let mut tx = self.db.begin().await.unwrap();
        let refund = settle::refunds::request(&mut tx, &request, clock.now()).await;
        tx.commit().await.unwrap();
        refund.map_err(|not_done| not_done.refusal().unwrap())
    }
}
