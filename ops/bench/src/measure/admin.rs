//! Search and lists of the admin API among millions of orders, compared with a small shop.

use std::sync::Arc;

use anyhow::{Context, Result};
use sqlx::PgPool;

use crate::archive;
use crate::figures::{Spread, short};
use crate::http::{self, Load, render};
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

/// The small shop.
const SMALL: u32 = 10_000;
/// How often each question is asked in a repeat, one after the other.
const ASKED: usize = 200;
/// The longest time of an answer, in milliseconds.
const LONGEST_MS: f64 = 50.0;

/// Searches: the kind of number, its column, its table, and how many of its characters are typed.
const NUMBERS: [(&str, &str, &str, usize); 12] = [
    ("order id", "id", "payment_orders", 32),
    ("order_no", "order_no", "payment_orders", 64),
    ("12 characters of an order_no", "order_no", "payment_orders", 12),
    ("merchant_order_no", "merchant_order_no", "payment_orders", 64),
    ("8 characters of a merchant_order_no", "merchant_order_no", "payment_orders", 8),
    ("trade_no", "gateway_no", "payment_transactions", 64),
    ("16 characters of a trade_no", "gateway_no", "payment_transactions", 16),
    ("refund_no", "refund_no", "refund_records", 64),
    ("gateway's number of a refund", "gateway_refund_no", "refund_records", 64),
    ("case id", "id", "cases", 32),
    ("event id", "event_id", "events", 128),
    ("user id", "user_id", "payment_orders", 64),
];

/// Lists: their path and filters. `{user}` and `{order}` are one of many, `{range}` is the last 31 days and begins at `{from}`.
const LISTS: [&str; 24] = [
    "orders",
    "orders?user_id={user}",
    "orders?has_case=true",
    "orders?extra_payment=held",
    "orders?{range}",
    "orders?{range}&status=paid",
    "orders?{range}&status=refunding",
    "orders?{range}&payment_method=alipay",
    "orders?{range}&account=second",
    "orders?{range}&account=third",
    "orders?{range}&scene=jsapi",
    "orders?{range}&product_type=book",
    "orders?{range}&product_type=poster",
    "orders?{range}&product_type=nothing",
    "orders?{range}&amount_from=900.00&amount_to=910.00",
    "orders?{range}&paid_from={from}",
    "orders?{range}&has_case=false",
    "refunds",
    "refunds?status=processing",
    "refunds?requested_by=user%20{user}",
    "refunds?order_id={order}",
    "refunds?{range}&payment_method=alipay",
    "refunds?{range}&account=third",
    "refunds?{range}&origin=outside",
];

/// Nearly the longest range that a list without an index takes.
const FROM: &str =
    "select to_char(now() at time zone 'UTC' - interval '30 days 20 hours', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";

/// One question in many variants: its name, and the path of each variant.
struct Asked {
    name: String,
    paths: Vec<String>,
}

/// The slowest twentieth of the answers among `large` orders, beside the same among `SMALL`.
pub(super) async fn measure(stage: &Stage<'_>, large: u32, progress: &Progress) -> Result<Vec<Row>> {
    let key = stage.reader()?;
    let small = among(stage, SMALL, &key, progress).await?;
    let large_times = among(stage, large, &key, progress).await?;
    let slowest = large_times.iter().map(|(_, p95)| Spread::of(p95).median).fold(0.0, f64::max);
    let mut rows: Vec<Row> = small
        .into_iter()
        .zip(large_times)
        .map(|((name, small), (_, large_p95))| {
            let question = Question {
                what: format!("{name}, p95 among {large} orders"),
                unit: "ms",
                against: format!("the same among {SMALL}"),
                target: Target::AtMost(1.5),
            };
            question.answer(&large_p95, &small, Vec::new())
        })
        .collect();
    let question = Question {
        what: format!("the slowest of these, p95 among {large} orders"),
        unit: "ms",
        against: "the longest time that people should wait".to_owned(),
        target: Target::AtMost(1.0),
    };
    rows.push(question.answer(&[slowest], &[LONGEST_MS], Vec::new()));
    Ok(rows)
}

/// The p95 of each question in each repeat, in milliseconds.
async fn among(stage: &Stage<'_>, size: u32, key: &str, progress: &Progress) -> Result<Vec<(String, Vec<f64>)>> {
    let report = |placed| progress.say(&format!("admin: {placed} of {size} orders placed"));
    archive::fill(&stage.db, size, report).await?;
    progress.say(&format!("admin: choosing numbers among {size} orders"));
    let repeats = stage.cli.repeats();
    let asked = questions(&stage.db, ASKED * repeats as usize).await?;
    let services = stage.start(&["payment-api"]).await?;
    let mut times: Vec<(String, Vec<f64>)> = asked.iter().map(|asked| (asked.name.clone(), Vec::new())).collect();
    for repeat in 0..repeats as usize {
        for (asked, (name, times)) in asked.iter().zip(&mut times) {
            progress.say(&format!("admin {}: {name} among {size} orders", repeat + 1));
            let mine = asked.paths.iter().cycle().skip(repeat * ASKED).take(ASKED);
            let requests = Arc::new(mine.map(|path| render("GET", path, &[("Authorization", key)], b"")).collect());
            let load = Load { to: stage.api, connections: 1, pace: None, from: None };
            let sent = http::send(load, &requests).await.with_context(|| format!("asking for {name}"))?;
            times.push(sent.percentile(95.0));
        }
        let slowest = times.iter().filter_map(|(name, p95)| Some((p95.last()?, name)));
        if let Some((p95, name)) = slowest.max_by(|a, b| a.0.total_cmp(b.0)) {
            progress.done(&format!("among {size} orders the slowest is {name}: p95 {} ms", short(*p95)));
        }
    }
    services.stop().await?;
    Ok(times)
}

async fn questions(db: &PgPool, variants: usize) -> Result<Vec<Asked>> {
    let mut asked = Vec::new();
    for (kind, column, table, typed) in NUMBERS {
        let numbers = archive::sample(db, column, table, variants).await?;
        let path = |number: &String| format!("/v1/admin/search?number={}", &number[..typed.min(number.len())]);
        asked.push(Asked { name: format!("search: {kind}"), paths: numbers.iter().map(path).collect() });
    }
    let users = archive::sample(db, "substring(requested_by from '^user (.*)')", "refund_records", variants).await?;
    let orders = archive::sample(db, "order_id", "refund_records", variants).await?;
    let from: String = sqlx::query_scalar(FROM).fetch_one(db).await?;
    for list in LISTS {
        let path = |(user, order): (&String, &String)| {
            let filled = list.replace("{range}", "created_from={from}").replace("{from}", &from);
            format!("/v1/admin/{}", filled.replace("{user}", user).replace("{order}", order))
        };
        let paths = users.iter().zip(orders.iter().cycle()).map(path).collect();
        asked.push(Asked { name: list.replace("{range}", "31 days"), paths });
    }
    Ok(asked)
}
