//! `/sim/…`: the ledger, the buyer's actions and the faults, for tests and people.

pub(crate) mod keys;
pub(crate) mod refunds;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::callback::Overrides;
use crate::calls::WantedCalls;
use crate::clock;
use crate::deliver;
use crate::faults::FaultSet;
use crate::ledger::{Event, Gateway, Notice, Refusal, Trade, TradeKey, TradeState};
use crate::links::cashier_path;
use crate::pages::Which;
use crate::state::{Shared, Sim};

pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/sim/ledger", get(ledger))
        .route("/sim/trades", get(ledger))
        .route("/sim/trades/{gateway}/{out_trade_no}", get(show))
        .route("/sim/trades/{gateway}/{out_trade_no}/open", post(open))
        .route("/sim/trades/{gateway}/{out_trade_no}/pay", post(pay))
        .route("/sim/trades/{gateway}/{out_trade_no}/pay-again", post(pay_again))
        .route("/sim/trades/{gateway}/{out_trade_no}/close", post(close))
        .route("/sim/trades/{gateway}/{out_trade_no}/expire", post(expire))
        .route("/sim/trades/{gateway}/{out_trade_no}/notify", post(notify))
        .route("/sim/calls", get(calls).delete(clear_calls))
        .route("/sim/faults", get(faults).put(put_faults).delete(clear_faults))
        .route("/sim/reset", post(reset))
}

/// A failure of the control API.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let (status, text) = match refusal {
            Refusal::Unknown => (StatusCode::NOT_FOUND, "no such trade"),
            Refusal::Differs => (StatusCode::CONFLICT, "several accounts use this number: name one with ?account="),
            Refusal::Unpaid => (StatusCode::CONFLICT, "the trade is neither paid nor closed"),
            Refusal::Paid => (StatusCode::CONFLICT, "the trade is paid"),
            Refusal::Closed => (StatusCode::CONFLICT, "the trade is closed; POST .../pay-again pays it all the same"),
            Refusal::TooOften => (StatusCode::CONFLICT, "the gateway gives this number no more codes"),
            Refusal::Expired => (StatusCode::CONFLICT, "the last moment to pay has passed"),
        };
        Failure(status, text.to_owned())
    }
}

type Answer = Result<Json<Value>, Failure>;
type Name = Path<(Gateway, String)>;

#[derive(Debug, Deserialize)]
struct Wanted {
    gateway: Option<Gateway>,
    state: Option<TradeState>,
    limit: Option<usize>,
}

async fn ledger(State(sim): State<Shared>, Query(wanted): Query<Wanted>) -> Json<Value> {
    let fits = |trade: &Trade| {
        wanted.gateway.is_none_or(|gateway| gateway == trade.gateway())
            && wanted.state.is_none_or(|state| state == trade.state)
    };
    let trades = sim.ledger.newest(wanted.limit.unwrap_or(10_000), fits);
    Json(Value::Array(trades.iter().map(Trade::view).collect()))
}

async fn show(State(sim): State<Shared>, Path(name): Name, Query(which): Query<Which>) -> Answer {
    let key = key(&sim, &name, &which)?;
    Ok(Json(view(&sim, &sim.ledger.get(&key, clock::now()).ok_or(Refusal::Unknown)?)))
}

/// The buyer scans or opens it: at Alipay this creates the trade.
async fn open(State(sim): State<Shared>, Path(name): Name, Query(which): Query<Which>) -> Answer {
    let key = key(&sim, &name, &which)?;
    Ok(Json(view(&sim, &sim.ledger.open(&key, clock::now())?)))
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Pay {
    /// Callbacks contain this amount; the trade keeps its own.
    amount_fen: Option<i64>,
    /// Whether callbacks are sent at all.
    notify: bool,
}

impl Default for Pay {
    fn default() -> Pay {
        Pay { amount_fen: None, notify: true }
    }
}

async fn pay(State(sim): State<Shared>, Path(name): Name, Query(which): Query<Which>, body: Bytes) -> Answer {
    let pay: Pay = read(&body)?;
    let key = key(&sim, &name, &which)?;
    if let Some(amount_fen) = pay.amount_fen {
        sim.faults.wrong_amount(&key.out_trade_no, amount_fen).map_err(bad)?;
    }
    let trade = if pay.notify { sim.pay(&key)? } else { sim.ledger.pay(&key, clock::now())? };
    Ok(Json(view(&sim, &trade)))
}

/// The number is paid again with a separate trade. No gateway should allow this, but it has happened.
async fn pay_again(State(sim): State<Shared>, Path(name): Name, Query(which): Query<Which>, body: Bytes) -> Answer {
    let Pay { notify, .. } = read(&body)?;
    let trade = sim.ledger.pay_again(&key(&sim, &name, &which)?, clock::now())?;
    if notify {
        sim.deliver(&trade);
    }
    Ok(Json(view(&sim, &trade)))
}

/// Closes an unpaid trade, as its expiry does. Alipay notifies the merchant; WeChat Pay never does.
async fn close(State(sim): State<Shared>, Path(name): Name, Query(which): Query<Which>, body: Bytes) -> Answer {
    let Pay { notify, .. } = read(&body)?;
    let key = key(&sim, &name, &which)?;
    let now = clock::now();
    sim.ledger.open(&key, now)?;
    let mut trade = sim.ledger.close(&key, now)?;
    if notify && trade.gateway() == Gateway::Alipay && trade.trade_no.is_some() {
        trade = sim.ledger.change(&key, now, |trade| {
            trade.notices.push(Notice::new(Gateway::Alipay, Event::Closed, now));
            Ok(())
        })?;
        sim.deliver(&trade);
    }
    Ok(Json(view(&sim, &trade)))
}

/// Sets the last moment to pay to now.
async fn expire(State(sim): State<Shared>, Path(name): Name, Query(which): Query<Which>) -> Answer {
    let key = key(&sim, &name, &which)?;
    let now = clock::now();
    sim.ledger.change(&key, now, |trade| {
        trade.expires_at = trade.expires_at.min(now);
        Ok(())
    })?;
    Ok(Json(view(&sim, &sim.ledger.get(&key, clock::now()).ok_or(Refusal::Unknown)?)))
}

/// Sends the last notification again now, under its id, and returns the merchant's answer.
async fn notify(State(sim): State<Shared>, Path(name): Name, Query(which): Query<Which>, body: Bytes) -> Answer {
    let overrides: Overrides = read(&body)?;
    let key = key(&sim, &name, &which)?;
    let mut trade = sim.ledger.get(&key, clock::now()).ok_or(Refusal::Unknown)?;
    if let Some(number) = &which.refund {
        trade = trade.telling_of(number).ok_or(Refusal::Unknown)?;
    } else if let Some(event) = which.event {
        trade = trade.telling(event).ok_or(Refusal::Unknown)?;
    }
    match deliver::once(&sim, trade, &overrides).await {
        Some(delivered) => Ok(Json(json!({ "accepted": delivered.accepted, "answer": delivered.answer }))),
        None => Err(Failure(StatusCode::CONFLICT, "no event to notify yet, or no notify_url".to_owned())),
    }
}

async fn faults(State(sim): State<Shared>) -> Json<Value> {
    Json(sim.faults.view())
}

async fn put_faults(State(sim): State<Shared>, body: Bytes) -> Answer {
    let set: FaultSet = object(&body)?;
    sim.faults.put(set).map_err(bad)?;
    Ok(Json(sim.faults.view()))
}

async fn clear_faults(State(sim): State<Shared>) -> Json<Value> {
    sim.faults.clear();
    Json(sim.faults.view())
}

/// The number of calls to the gateways, by order and kind of call.
async fn calls(State(sim): State<Shared>, Query(wanted): Query<WantedCalls>) -> Json<Value> {
    Json(sim.calls.view(&wanted))
}

async fn clear_calls(State(sim): State<Shared>) -> Json<Value> {
    sim.calls.clear();
    Json(json!({}))
}

/// Clears trades, deliveries, faults and counters of calls.
async fn reset(State(sim): State<Shared>) -> Json<Value> {
    sim.deliveries.stop();
    sim.ledger.clear();
    sim.faults.clear();
    sim.calls.clear();
    Json(json!({}))
}

fn key(sim: &Sim, (gateway, out_trade_no): &(Gateway, String), which: &Which) -> Result<TradeKey, Failure> {
    let first = sim.one_trade(*gateway, out_trade_no, which.account.as_deref())?;
    Ok(TradeKey { nth: which.nth.unwrap_or(0), ..first })
}

fn view(sim: &Sim, trade: &Trade) -> Value {
    let mut view = trade.view();
    view["cashier"] = cashier_path(trade).into();
    if trade.state == TradeState::Paid {
        view["return_url"] = sim.return_url(trade).into();
    }
    view
}

/// An absent body means the default.
fn read<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Failure> {
    if body.is_empty() { Ok(T::default()) } else { object(body) }
}

/// Reads a JSON object; serde alone would also accept an array of values.
fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    let value: Value = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    if !value.is_object() {
        return Err(bad("the body is a JSON object".to_owned()));
    }
    serde_json::from_value(value).map_err(|error| bad(error.to_string()))
}

fn bad(text: String) -> Failure {
    Failure(StatusCode::BAD_REQUEST, text)
}
