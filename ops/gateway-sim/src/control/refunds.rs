//! `/sim/refunds`, `/sim/balances`: what became of refunds, and what they are paid from.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Failure, key, object, read, view};
use crate::clock;
use crate::ledger::{Gateway, Refund, RefundState, Refusal, Trade};
use crate::pages::Which;
use crate::server::Shared;

pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/sim/refunds", get(list))
        .route("/sim/refunds/age", post(age_refunds))
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

/// A processing refund ends now, as it is told.
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

/// The payment was made so many days earlier.
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

/// Every refund so far was asked for so many seconds earlier.
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

/// What an account has for refunds; `null`: as much as it takes.
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
