//! `/sim/refunds`, `/sim/balances`: the refunds, and the balances from which they are paid.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Failure, bad, key, object, read, view};
use crate::clock;
use crate::crypto::{DIGITS, random_text};
use crate::ledger::{Gateway, Refund, RefundRequest, RefundState, Refusal, Trade};
use crate::pages::Which;
use crate::state::Shared;

pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/sim/refunds", get(list))
        .route("/sim/refunds/age", post(age_refunds))
        .route("/sim/trades/{gateway}/{out_trade_no}/refunds", post(refund))
        .route("/sim/trades/{gateway}/{out_trade_no}/refunds/{out_refund_no}/finish", post(finish))
        .route("/sim/trades/{gateway}/{out_trade_no}/age", post(age))
        .route("/sim/balances/{gateway}/{account}", put(set_balance).get(balance))
}

#[derive(Debug, Deserialize)]
struct Wanted {
    gateway: Option<Gateway>,
    state: Option<RefundState>,
    limit: Option<usize>,
}

/// Refunds, those of the newest trades first.
async fn list(State(sim): State<Shared>, Query(wanted): Query<Wanted>) -> Json<Value> {
    let fits = |trade: &Trade| wanted.gateway.is_none_or(|gateway| gateway == trade.gateway());
    let trades = sim.ledger.newest(usize::MAX, |trade| fits(trade) && !trade.refunds.is_empty());
    let wanted_state = |refund: &&Refund| wanted.state.is_none_or(|state| state == refund.state);
    let of = |trade: &Trade| trade.refunds.iter().rev().filter(wanted_state).map(|refund| refund.view(trade)).collect();
    let refunds = trades.iter().flat_map(|trade| -> Vec<Value> { of(trade) });
    Json(Value::Array(refunds.take(wanted.limit.unwrap_or(10_000)).collect()))
}

/// A refund that a person makes in the gateway's console.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConsoleRefund {
    /// The amount; if absent, all that is left.
    amount_fen: Option<i64>,
    /// Its number; if absent, the gateway creates one.
    out_refund_no: Option<String>,
    /// Whether its result is sent to the payment's `notify_url`.
    notify: bool,
    /// Whether the notice contains the number (`out_biz_no`, Alipay).
    named: bool,
    /// Whether it is processed first, as the faults configure.
    processing: bool,
}

impl Default for ConsoleRefund {
    fn default() -> ConsoleRefund {
        ConsoleRefund { amount_fen: None, out_refund_no: None, notify: true, named: true, processing: false }
    }
}

/// Refunds money without the merchant's service.
async fn refund(
    State(sim): State<Shared>,
    Path(name): Path<(Gateway, String)>,
    Query(which): Query<Which>,
    body: Bytes,
) -> Answer {
    let ConsoleRefund { amount_fen, out_refund_no, notify, named, processing } = read(&body)?;
    let key = key(&sim, &name, &which)?;
    let trade = sim.ledger.get(&key, clock::now()).ok_or(Refusal::Unknown)?;
    let amount_fen = amount_fen.unwrap_or(trade.amount_fen - trade.reserved_fen());
    if amount_fen < 1 && !trade.is_returned() {
        return Err(bad(format!("a refund of {amount_fen} fen")));
    }
    let request = RefundRequest {
        out_refund_no: out_refund_no
            .unwrap_or_else(|| format!("{}{}", clock::day(clock::now()), random_text(20, DIGITS))),
        amount_fen,
        total_fen: None,
        notify_url: trade.notify_url.clone(),
        digest: [0; 32],
        notified: notify && trade.notify_url.is_some(),
        at_once: !processing,
        pause: std::time::Duration::ZERO,
        console: Some(named),
    };
    match sim.refund(&key, &request) {
        Ok(booked) => Ok(Json(json!({
            "out_refund_no": booked.refund.out_refund_no,
            "refund": booked.refund.view(&booked.trade),
            "trade": view(&sim, &booked.trade),
        }))),
        Err(refusal) => Err(Failure(StatusCode::CONFLICT, format!("the gateway refuses it: {refusal:?}"))),
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Finish {
    state: RefundState,
}

impl Default for Finish {
    fn default() -> Finish {
        Finish { state: RefundState::Success }
    }
}

/// Ends a processing refund now, with the requested state.
async fn finish(
    State(sim): State<Shared>,
    Path((gateway, out_trade_no, out_refund_no)): Path<(Gateway, String, String)>,
    Query(which): Query<Which>,
    body: Bytes,
) -> Answer {
    let Finish { state } = read(&body)?;
    let key = key(&sim, &(gateway, out_trade_no), &which)?;
    if gateway == Gateway::Alipay && state != RefundState::Success {
        return Err(Failure(StatusCode::BAD_REQUEST, "a refund at Alipay ends with success".to_owned()));
    }
    match sim.end_refund(&key, &out_refund_no, state) {
        Some(trade) => Ok(Json(view(&sim, &trade))),
        None => Err(Failure(StatusCode::CONFLICT, "no such refund is being processed".to_owned())),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Age {
    days: u16,
}

/// Makes the payment this many days older.
async fn age(
    State(sim): State<Shared>,
    Path(name): Path<(Gateway, String)>,
    Query(which): Query<Which>,
    body: Bytes,
) -> Answer {
    let Age { days } = object(&body)?;
    let key = key(&sim, &name, &which)?;
    let trade = sim.ledger.change(&key, clock::now(), |trade| match trade.paid_at {
        Some(paid_at) => {
            trade.paid_at = paid_at.checked_sub(time::Duration::days(i64::from(days)));
            Ok(())
        }
        None => Err(Refusal::Unknown),
    })?;
    Ok(Json(view(&sim, &trade)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgeRefunds {
    seconds: u32,
}

/// Makes every existing refund request this many seconds older.
async fn age_refunds(State(sim): State<Shared>, body: Bytes) -> Answer {
    let AgeRefunds { seconds } = object(&body)?;
    sim.ledger.age_refunds(time::Duration::seconds(seconds.into()));
    Ok(Json(json!({ "seconds": seconds })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Balance {
    fen: Option<i64>,
}

/// Sets the balance of an account for refunds; `null` means unlimited.
async fn set_balance(
    State(sim): State<Shared>,
    Path((gateway, account)): Path<(Gateway, String)>,
    body: Bytes,
) -> Answer {
    let Balance { fen } = object(&body)?;
    let known = match gateway {
        Gateway::Alipay => sim.keys.alipay_account(&account).is_some(),
        Gateway::Wechat => sim.keys.wechat_account(&account).is_some(),
    };
    if !known {
        return Err(Failure(StatusCode::NOT_FOUND, "no such account".to_owned()));
    }
    sim.ledger.set_balance(gateway, &account, fen);
    Ok(Json(json!({ "fen": fen })))
}

async fn balance(State(sim): State<Shared>, Path((gateway, account)): Path<(Gateway, String)>) -> Json<Value> {
    Json(json!({ "fen": sim.ledger.balance(gateway, &account) }))
}
