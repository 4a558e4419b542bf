//! A page of odd values: each field of a gateway's words absent, empty, or with an unexpected value, with its verdict.
//! All of it is authentic: the simulator signs what it sends.

use domain::OrderStatus::{self, Closed, Paid, Pending};
use domain::PaymentMethod::{self, Alipay, Wechat};
use gateway_sim::notify::Overrides;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::orders::{self, Order};
use store::{DbError, MIGRATOR};
use time::{Duration, OffsetDateTime};
use worker::consumer::Ack;

use crate::bench::Bench;
use crate::support::World;

/// Which fields differ: names at Alipay, pointers at WeChat Pay. `null` leaves one out.
type Fields = &'static [(&'static str, &'static str)];

/// The result of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It pays its order, at the time that it states.
    Settled,
    /// It pays its order, at our own time: the stated one is absent, or cannot be.
    SettledNow,
    /// It is evidence, and no more.
    Ignored,
    /// A person looks: the kind of the case.
    Case(&'static str),
    /// It can never be read: a dead letter.
    Dead,
}
use End::{Case, Dead, Ignored, Settled, SettledNow};

const OFF: &str = "null";

/// Values are JSON.
#[rustfmt::skip]
const AT_ALIPAY: &[(&str, Fields, End)] = &[
    ("nothing odd", &[], Settled),
    ("no payee", &[("seller_id", OFF)], Settled),
    ("the payee by mail", &[("seller_id", OFF), ("seller_email", r#""shop@example.com""#)], Settled),
    ("an empty payee", &[("seller_id", r#""""#)], Settled),
    ("another payee", &[("seller_id", r#""2088000000000000""#)], Case("wrong_merchant")),
    ("no buyer", &[("buyer_id", OFF), ("buyer_logon_id", OFF)], Settled),
    ("no amounts but the order's", &[("receipt_amount", OFF), ("buyer_pay_amount", OFF), ("invoice_amount", OFF), ("point_amount", OFF), ("fund_bill_list", OFF)], Settled),
    ("less was received, by a coupon", &[("receipt_amount", r#""0.01""#), ("buyer_pay_amount", r#""0.00""#)], Settled),
    ("a bill that is no list", &[("fund_bill_list", r#""{[""#)], Settled),
    ("no subject", &[("subject", OFF), ("gmt_create", OFF)], Settled),
    ("a subject of 4 kB", &[("subject", r#""LONG""#)], Settled),
    ("a subject that shows nothing", &[("subject", r#""\u0000\u200b\ufeff""#)], Settled),
    ("an emoji, a quote, a plus", &[("subject", r#""🎁 \"a+b%26c=d\"""#)], Settled),
    ("a field that is new", &[("notify_action_type", r#""payByAccountAction""#), ("x_new", r#""""#)], Settled),
    ("nothing went back", &[("refund_fee", r#""0.00""#)], Settled),
    ("finished", &[("trade_status", r#""TRADE_FINISHED""#)], Settled),
    ("one decimal", &[("total_amount", r#""88.8""#)], Settled),
    ("no time of payment", &[("gmt_payment", OFF)], SettledNow),
    ("an empty time", &[("gmt_payment", r#""""#)], SettledNow),
    ("the year 0", &[("gmt_payment", r#""0000-01-01 00:00:00""#)], SettledNow),
    ("before Alipay", &[("gmt_payment", r#""1999-12-31 23:59:59""#)], SettledNow),
    ("the last second", &[("gmt_payment", r#""9999-12-31 23:59:59""#)], SettledNow),
    ("30 February", &[("gmt_payment", r#""2026-02-30 10:00:00""#)], SettledNow),
    ("another form of time", &[("gmt_payment", r#""2026-01-05T10:21:08Z""#)], SettledNow),
    ("a word for a time", &[("gmt_payment", r#""yesterday""#), ("notify_time", r#""now""#)], SettledNow),
    ("no time at all", &[("gmt_payment", OFF), ("notify_time", OFF), ("gmt_create", OFF)], SettledNow),
    ("a fen more", &[("total_amount", r#""88.81""#)], Case("amount_mismatch")),
    ("more than any order", &[("total_amount", r#""100000000000.00""#)], Case("amount_mismatch")),
    ("nothing was paid", &[("total_amount", r#""0.00""#)], Case("amount_mismatch")),
    ("no amount", &[("total_amount", OFF)], Dead),
    ("a power", &[("total_amount", r#""8.88e1""#)], Dead),
    ("a negative amount", &[("total_amount", r#""-88.80""#)], Dead),
    ("wide digits", &[("total_amount", r#""８８.８０""#)], Dead),
    ("three decimals", &[("total_amount", r#""88.801""#)], Dead),
    ("a state in small letters", &[("trade_status", r#""trade_success""#)], Ignored),
    ("a state that is new", &[("trade_status", r#""TRADE_PENDING""#)], Ignored),
    ("no state", &[("trade_status", OFF)], Ignored),
    ("no trade", &[("trade_no", OFF)], Dead),
    ("a trade that is a sentence", &[("trade_no", r#""a trade; drop table""#)], Dead),
    ("a trade of 65 digits", &[("trade_no", r#""12345678901234567890123456789012345678901234567890123456789012345""#)], Dead),
    ("an order of 65 letters", &[("out_trade_no", r#""abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklm""#)], Dead),
    ("an order that is no text", &[("out_trade_no", r#""\u0000\u0001🎁""#)], Dead),
    ("an order of somebody else", &[("out_trade_no", r#""20260105-7*|""#)], Case("unknown_order")),
];

#[rustfmt::skip]
const AT_WECHAT: &[(&str, Fields, End)] = &[
    ("nothing odd", &[], Settled),
    ("no payer", &[("/payer", OFF)], Settled),
    ("a payer without an openid", &[("/payer/openid", OFF)], Settled),
    ("no bank, no words, no kind of trade", &[("/bank_type", OFF), ("/trade_state_desc", OFF), ("/trade_type", OFF)], Settled),
    ("a kind of trade that is new", &[("/trade_type", r#""TELEPATHY""#), ("/bank_type", "7")], Settled),
    ("no currency", &[("/amount/currency", OFF), ("/amount/payer_currency", OFF)], Settled),
    ("less was paid, by a coupon", &[("/amount/payer_total", "1"), ("/promotion_detail", r#"[{"amount": 8879, "name": "满减"}]"#)], Settled),
    ("no amount of the payer's", &[("/amount/payer_total", OFF)], Settled),
    ("a field that is new", &[("/x_new", r#"{"deep": [1, null, {"er": "🎁"}]}"#)], Settled),
    ("an attachment of 4 kB", &[("/attach", r#""LONG""#)], Settled),
    ("no time of payment", &[("/success_time", OFF)], Settled),
    ("an empty time", &[("/success_time", r#""""#)], Settled),
    ("past the last year in UTC", &[("/success_time", r#""9999-12-31T23:59:59-08:00""#)], SettledNow),
    ("the year 0", &[("/success_time", r#""0000-01-01T00:00:00+08:00""#)], SettledNow),
    ("before WeChat Pay", &[("/success_time", r#""1999-12-31T23:59:59+08:00""#)], SettledNow),
    ("next year", &[("/success_time", r#""2030-01-01T00:00:00+08:00""#)], SettledNow),
    ("no offset", &[("/success_time", r#""2026-01-05T10:21:08""#)], SettledNow),
    ("a word for a time", &[("/success_time", r#""soon""#)], SettledNow),
    ("a fen less", &[("/amount/total", "8879")], Case("amount_mismatch")),
    ("dollars", &[("/amount/currency", r#""USD""#)], Case("amount_mismatch")),
    ("a negative amount", &[("/amount/total", "-8880")], Case("amount_mismatch")),
    ("as much as fits", &[("/amount/total", "9223372036854775807")], Case("amount_mismatch")),
    ("no amount", &[("/amount", OFF)], Dead),
    ("an amount in text", &[("/amount/total", r#""8880""#)], Dead),
    ("an amount with a fraction", &[("/amount/total", "8880.5")], Dead),
    ("more than fits", &[("/amount/total", "9223372036854775808")], Dead),
    ("another merchant", &[("/mchid", r#""1900000000""#)], Case("wrong_merchant")),
    ("another application", &[("/appid", r#""wx0000000000000000""#)], Case("wrong_merchant")),
    ("a state that is new", &[("/trade_state", r#""ACCEPT""#)], Ignored),
    ("no state", &[("/trade_state", OFF)], Ignored),
    ("no trade", &[("/transaction_id", OFF)], Dead),
    ("a trade that is a number", &[("/transaction_id", "42000")], Dead),
    ("an order of 65 letters", &[("/out_trade_no", r#""abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklm""#)], Dead),
    ("an order of somebody else", &[("/out_trade_no", r#""20260105-7*|""#)], Case("unknown_order")),
    ("no order", &[("/out_trade_no", OFF)], Dead),
];

fn overrides(fields: Fields) -> Overrides {
    let value = |text: &str| match serde_json::from_str(text).unwrap() {
        Value::Null => None,
        Value::String(text) if text == "LONG" => Some(json!("礼".repeat(1_365))),
        value => Some(value),
    };
    let fields = fields.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect();
    Overrides { fields, ..Overrides::default() }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_odd_notice_of_alipay_has_its_verdict(db: PgPool) {
    notices(db, Alipay, AT_ALIPAY).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_odd_notice_of_wechat_has_its_verdict(db: PgPool) {
    notices(db, Wechat, AT_WECHAT).await;
}

/// All rows arrive together: none may take another with it.
async fn notices(db: PgPool, method: PaymentMethod, rows: &[(&str, Fields, End)]) {
    let world = World::new(db);
    let (mut orders, mut callbacks) = (Vec::new(), Vec::new());
    let began = world.worker.clock.now();
    for (_, fields, _) in rows {
        let order = world.pending_order(method, "88.80").await;
        let mut trade = world.paid_trade(&order);
        trade.paid_at = Some(stated(began));
        callbacks.push(world.notice_of(&trade, &overrides(fields)));
        orders.push(order);
    }
    let acks = world.settle(callbacks).await;
    let mut wrong = Vec::new();
    for (((what, _, end), order), ack) in rows.iter().zip(&orders).zip(acks) {
        let is = (ack, status(&world, order).await, cases(&world, order).await);
        let due = match end {
            Settled | SettledNow => (Ack::Done, Paid, vec![]),
            Ignored => (Ack::Done, Pending, vec![]),
            // Of an order that is not named there is no case of this one.
            Case("unknown_order") => (Ack::Done, Pending, vec![]),
            Case(kind) => (Ack::Done, Pending, vec![(*kind).to_owned()]),
            Dead => (Ack::Dead, Pending, vec![]),
        };
        if is != due {
            wrong.push(format!("{what}: {is:?} and not {due:?}"));
        }
        if let (Settled | SettledNow, Some(paid_at)) = (end, world.order(&order.id).await.paid_at) {
            let own = paid_at >= began - Duration::SECOND && paid_at <= world.worker.clock.now() + Duration::SECOND;
            if own != (*end == SettledNow) || (!own && paid_at != stated(began)) {
                wrong.push(format!("{what}: paid at {paid_at}, which is not {end:?}"));
            }
        }
    }
    let unknown = rows.iter().filter(|(_, _, end)| *end == Case("unknown_order")).count();
    let known = world.cases().await.iter().filter(|(kind, _)| kind == "unknown_order").count();
    assert_eq!((wrong, known), (Vec::<String>::new(), unknown));
    readable(&world, &orders).await;
}

/// An hour ago, as the gateways write times.
fn stated(now: OffsetDateTime) -> OffsetDateTime {
    (now - Duration::HOUR).replace_nanosecond(0).unwrap()
}

async fn status(world: &World, order: &Order) -> OrderStatus {
    world.order(&order.id).await.status
}

async fn cases(world: &World, order: &Order) -> Vec<String> {
    let sql = "select kind from cases where order_id = $1 order by id";
    sqlx::query_scalar(sql).bind(order.id.to_string()).fetch_all(&world.db).await.unwrap()
}

/// Whatever was believed: the lists can be read, and every time in an event is one that consumers can read.
async fn readable(world: &World, orders: &[Order]) {
    let ids: Vec<_> = orders.iter().map(|order| order.id).collect();
    let listed: Result<Vec<Order>, DbError> = orders::by_ids(&world.db, &ids).await;
    assert_eq!(listed.unwrap().len(), orders.len());
    for (kind, data) in world.events().await {
        let time = |name: &str| data[name].as_str().map(str::to_owned);
        for text in ["paid_at", "closed_at", "succeeded_at"].into_iter().filter_map(time) {
            let at = OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339);
            assert!(at.is_ok_and(|at| (2000..2100).contains(&at.year())), "{kind}: {text}");
        }
    }
}

/// The result of an answer to a query about an order.
struct Answer {
    what: &'static str,
    method: PaymentMethod,
    /// What is odd about the gateway's words, as the simulator takes it.
    odd: &'static str,
    standing: Standing,
    status: OrderStatus,
}

/// How the order stands at the gateway.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The buyer has paid.
    PaidThere,
    /// Its time is up without a payment.
    Expired,
}

use Standing::{Expired, PaidThere};

#[rustfmt::skip]
const ANSWERS: &[Answer] = &[
    answer(("no date", Alipay), r#"{"answers":{"send_pay_date":null}}"#, PaidThere, Paid),
    answer(("no payer, no amounts but the order's", Alipay), r#"{"answers":{"buyer_user_id":null,"buyer_logon_id":null,"receipt_amount":null,"buyer_pay_amount":null,"invoice_amount":null,"point_amount":null,"fund_bill_list":null}}"#, PaidThere, Paid),
    answer(("the year 0", Alipay), r#"{"answers":{"send_pay_date":"0000-01-01 00:00:00"}}"#, PaidThere, Paid),
    answer(("the last second", Alipay), r#"{"answers":{"send_pay_date":"9999-12-31 23:59:59"}}"#, PaidThere, Paid),
    answer(("a word for a date", Alipay), r#"{"answers":{"send_pay_date":"soon"}}"#, PaidThere, Paid),
    answer(("an amount as a number", Alipay), r#"{"answers":{"total_amount":8.88}}"#, PaidThere, Paid),
    answer(("an amount that is none", Alipay), r#"{"answers":{"total_amount":"8.88e0"}}"#, PaidThere, Pending),
    answer(("paid, in GBK", Alipay), r#"{"charset":"gbk"}"#, PaidThere, Paid),
    answer(("no such trade, in GBK", Alipay), r#"{"charset":"gbk"}"#, Expired, Closed),
    answer(("no such trade, in GBK that is not named", Alipay), r#"{"charset":"gbk_unnamed"}"#, Expired, Closed),
    answer(("no such trade, in no charset", Alipay), r#"{"charset":"garbage"}"#, Expired, Closed),
    answer(("busy, in GBK", Alipay), r#"{"charset":"gbk","refuse":[{"code":"20000","sub_code":"aop.unknow-error"}]}"#, PaidThere, Pending),
    answer(("no time", Wechat), r#"{"answers":{"/success_time":null}}"#, PaidThere, Paid),
    answer(("no payer, no bank, no currency", Wechat), r#"{"answers":{"/payer":null,"/bank_type":null,"/trade_type":null,"/amount/currency":null,"/amount/payer_total":null}}"#, PaidThere, Paid),
    answer(("past the last year in UTC", Wechat), r#"{"answers":{"/success_time":"9999-12-31T23:59:59-08:00"}}"#, PaidThere, Paid),
    answer(("the year 0", Wechat), r#"{"answers":{"/success_time":"0000-01-01T00:00:00+08:00"}}"#, PaidThere, Paid),
    answer(("a word for a time", Wechat), r#"{"answers":{"/success_time":"soon"}}"#, PaidThere, Paid),
    answer(("no such order, by another name", Wechat), r#"{"refuse":[{"call":"query","status":404,"code":"ORDERNOTEXIST"}]}"#, Expired, Closed),
    answer(("no such order, by a third name", Wechat), r#"{"refuse":[{"call":"query","status":404,"code":"RESOURCE_NOT_EXISTS"}]}"#, Expired, Closed),
    answer(("nothing that is known", Wechat), r#"{"refuse":[{"call":"query","status":404,"code":"TEAPOT"}]}"#, Expired, Pending),
    answer(("our own trouble", Wechat), r#"{"refuse":[{"status":403,"code":"NO_AUTH"}]}"#, PaidThere, Pending),
];

const fn answer(
    (what, method): (&'static str, PaymentMethod),
    odd: &'static str,
    standing: Standing,
    status: OrderStatus,
) -> Answer {
    Answer { what, method, odd, standing, status }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_odd_answer_to_a_question_has_its_verdict(db: PgPool) {
    let bench = Bench::new(db, "hold").await;
    let (mut wrong, mut orders) = (Vec::new(), Vec::new());
    for Answer { what, method, odd, standing, status } in ANSWERS {
        let order = bench.offered(*method).await;
        if *standing == PaidThere {
            bench.act(&order, "pay").await;
        }
        if *standing == Expired {
            bench.expire(&order, Duration::SECOND).await;
            bench.act(&order, "expire").await;
        }
        bench.faults(&format!(r#"{{"scope":"{}","odd":{odd}}}"#, order.order_no)).await;
        bench.check(&order).await;
        let is = bench.world.order(&order.id).await;
        if is.status != *status {
            wrong.push(format!("{method}, {what}: {} and not {status}", is.status));
        }
        if bench.job(&order).await.is_none() && is.status == Pending {
            wrong.push(format!("{method}, {what}: no query is planned"));
        }
        orders.push(order);
    }
    assert_eq!(wrong, Vec::<String>::new());
    let kinds: Vec<String> = bench.world.cases().await.into_iter().map(|(kind, _)| kind).collect();
    let due = ["gateway_protocol", "misconfigured"];
    assert_eq!(kinds, due, "an amount that is none and our own trouble are for a person, and nothing else");
    readable(&bench.world, &orders).await;
}
