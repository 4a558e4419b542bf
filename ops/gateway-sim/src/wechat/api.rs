//! The API: prepay of four products, both queries, close.

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::answer::Problem;
use super::auth::Call;
use super::contents::transaction;
use super::fields::{self, h5_url};
use crate::calls::CallKind;
use crate::clock;
use crate::crypto::{ALPHANUMERIC, DIGITS, random_text};
use crate::json::{digest, owned, text};
use crate::keys::WechatMerchant;
use crate::ledger::{Credential, Gateway, Product, Refusal, Trade, TradeKey, TradeState};
use crate::odd::Refuse;
use crate::state::{Shared, Sim};

pub(super) type Answer = Result<Option<Value>, Problem>;

/// Counts a call about this order, applies its faults, and answers it.
pub(super) async fn carry(
    sim: &Sim,
    call: &Call,
    kind: CallKind,
    out_trade_no: Option<&str>,
    work: impl Future<Output = Answer>,
) -> Response {
    let at = call.at(out_trade_no);
    sim.calls.count(at, kind);
    if sim.faults.api(out_trade_no).await.is_some() {
        return Problem::new(500, "SYSTEM_ERROR", "系统异常，请稍后重试").into_response();
    }
    let odd = sim.faults.odd(at);
    if let Some(Refuse { status, code, message, .. }) = odd.refusal(kind) {
        sim.faults.count("refuse");
        return Problem::new(*status, code, message).into_response();
    }
    let mut answer = work.await;
    if let Ok(Some(body)) = &mut answer {
        odd.change(body);
    }
    call.answer(answer)
}

/// `POST /v3/pay/transactions/{native|jsapi|h5|app}`.
pub(crate) async fn prepay(State(sim): State<Shared>, Path(product): Path<String>, call: Call) -> Response {
    let product = match product.as_str() {
        "native" => Product::Native,
        "jsapi" => Product::Jsapi,
        "h5" => Product::H5,
        "app" => Product::WechatApp,
        _ => return not_found(),
    };
    let body = call.json();
    let number = body.as_ref().ok().and_then(|body| owned(body, "out_trade_no"));
    let work = async { place(&sim, &call.merchant, product, &body?).map(Some) };
    carry(&sim, &call, CallKind::Prepay, number.as_deref(), work).await
}

/// `GET /v3/pay/transactions/out-trade-no/{out_trade_no}?mchid=`.
pub(crate) async fn query_by_number(State(sim): State<Shared>, Path(number): Path<String>, call: Call) -> Response {
    let work = async {
        check_query(&call)?;
        if !fields::is_out_trade_no(&number) {
            return Err(Problem::field("/out_trade_no", Some(&json!(number)), "格式不正确"));
        }
        let trade = sim.ledger.shown(&key(&call.merchant, &number), clock::now()).ok_or_else(no_order)?;
        Ok(Some(current(&call.merchant, &trade)))
    };
    carry(&sim, &call, CallKind::Query, Some(&number), work).await
}

/// `GET /v3/pay/transactions/id/{transaction_id}?mchid=`: paid orders only.
pub(crate) async fn query_by_id(State(sim): State<Shared>, Path(id): Path<String>, call: Call) -> Response {
    let found = sim.ledger.by_trade_no(&id, clock::now());
    let number = found.as_ref().map(|trade| trade.out_trade_no.clone());
    let work = async {
        check_query(&call)?;
        let ours = |trade: &Trade| {
            let mine = trade.gateway() == Gateway::Wechat && trade.account == call.merchant.account;
            mine && trade.state == TradeState::Paid
        };
        let trade = found.filter(ours).ok_or_else(no_order)?;
        Ok(Some(current(&call.merchant, &trade)))
    };
    carry(&sim, &call, CallKind::Query, number.as_deref(), work).await
}

/// `POST /v3/pay/transactions/out-trade-no/{out_trade_no}/close`: 204, even if it is closed already.
pub(crate) async fn close(State(sim): State<Shared>, Path(number): Path<String>, call: Call) -> Response {
    let work = async {
        let body = call.json()?;
        fields::check_close(&body)?;
        check_mchid(text(&body, "mchid"), &call.merchant)?;
        let key = key(&call.merchant, &number);
        let unpaid = sim.ledger.get(&key, clock::now()).is_some_and(|trade| trade.state == TradeState::Waiting);
        if unpaid && sim.faults.pays_before_close(&number) {
            let _ = sim.pay(&key); // If it is too late to pay, the fault has no effect.
        }
        match sim.ledger.close(&key, clock::now()) {
            Ok(_) | Err(Refusal::Closed) => Ok(None),
            Err(Refusal::Unknown) => Err(no_order()),
            Err(_) => Err(Problem::new(400, "ORDER_PAID", "该订单已支付")),
        }
    };
    carry(&sim, &call, CallKind::Close, Some(&number), work).await
}

fn place(sim: &Sim, merchant: &WechatMerchant, product: Product, body: &Value) -> Result<Value, Problem> {
    fields::check(product, body)?;
    check_mchid(text(body, "mchid"), merchant)?;
    let appid = owned(body, "appid").unwrap_or_default();
    if !merchant.is_bound(&appid) {
        return Err(Problem::new(400, "APPID_MCHID_NOT_MATCH", "appid和mch_id不匹配"));
    }
    let now = clock::now();
    let prepay_id = format!("wx{}{}", clock::day(now), random_text(26, DIGITS));
    let (code, life) = credential(product, &prepay_id);
    let amount_fen = body.pointer("/amount/total").and_then(Value::as_i64).unwrap_or_default();
    let mut trade = Trade::new(product, &merchant.account, text(body, "out_trade_no").unwrap_or_default(), amount_fen);
    trade.app_id = appid;
    trade.subject = owned(body, "description").unwrap_or_default();
    trade.attach = owned(body, "attach");
    trade.openid = body.pointer("/payer/openid").and_then(Value::as_str).map(str::to_owned);
    trade.notify_url = owned(body, "notify_url");
    trade.expires_at = expiry(body, now);
    trade.digest = digest(body);
    trade.credential = Some(Credential { code: code.clone(), expires_at: now + life });
    match sim.ledger.place(trade, now) {
        Ok(_) => Ok(match product {
            Product::Native => json!({ "code_url": code }),
            Product::H5 => json!({ "h5_url": code }),
            _ => json!({ "prepay_id": code }),
        }),
        Err(Refusal::Paid) => Err(Problem::new(400, "ORDER_PAID", "该订单已支付")),
        Err(Refusal::Closed) => Err(Problem::new(400, "ORDER_CLOSED", "该订单已关闭")),
        Err(_) => Err(Problem::new(403, "OUT_TRADE_NO_USED", "商户订单号重复：请求重入时，参数与首次请求时不一致")),
    }
}

/// The credential for the client, and how long it is valid.
fn credential(product: Product, prepay_id: &str) -> (String, Duration) {
    match product {
        Product::Native => {
            let code = format!("weixin://wxpay/bizpayurl/up?pr={}&groupid=00", random_text(12, ALPHANUMERIC));
            (code, Duration::hours(2))
        }
        Product::H5 => (h5_url(prepay_id, &random_text(10, DIGITS)), Duration::minutes(5)),
        _ => (prepay_id.to_owned(), Duration::hours(2)),
    }
}

/// The expiry, limited to 1 minute to 7 days from now; if absent, 7 days.
fn expiry(body: &Value, now: OffsetDateTime) -> OffsetDateTime {
    let (first, last) = (now + Duration::MINUTE, now + Duration::days(7));
    text(body, "time_expire").and_then(clock::parse_wechat).map_or(last, |at| at.clamp(first, last))
}

/// The answer of both queries. It shows any refund, even a partial one.
fn current(merchant: &WechatMerchant, trade: &Trade) -> Value {
    let mut answer = transaction(merchant, trade);
    if trade.state == TradeState::Paid && trade.reserved_fen() > 0 {
        answer["trade_state"] = json!("REFUND");
        answer["trade_state_desc"] = json!("转入退款");
    }
    answer
}

fn check_query(call: &Call) -> Result<(), Problem> {
    let query = call.uri.query().unwrap_or_default();
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
    match pairs.as_slice() {
        [(name, mchid)] if name == "mchid" => check_mchid(Some(mchid), &call.merchant),
        _ => Err(Problem::new(400, "PARAM_ERROR", "查询参数应当只有mchid")),
    }
}

fn check_mchid(mchid: Option<&str>, merchant: &WechatMerchant) -> Result<(), Problem> {
    if mchid == Some(merchant.mchid.as_str()) {
        return Ok(());
    }
    Err(Problem::new(400, "PARAM_ERROR", "商户号与签名中的商户号不一致"))
}

pub(super) fn key(merchant: &WechatMerchant, out_trade_no: &str) -> TradeKey {
    TradeKey::new(Gateway::Wechat, &merchant.account, out_trade_no)
}

fn no_order() -> Problem {
    Problem::new(404, "ORDER_NOT_EXIST", "订单不存在")
}

/// The front end's answer to an unknown path: no body.
fn not_found() -> Response {
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = axum::http::StatusCode::NOT_FOUND;
    response
}
