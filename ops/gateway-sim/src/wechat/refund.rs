//! Refunds: the request, its query, and another way for a refund that could not be paid out.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::Problem;
use super::api::{carry, key};
use super::auth::Call;
use super::contents::refund as view;
use super::fields;
use crate::calls::CallKind;
use crate::clock;
use crate::faults::ApiFault;
use crate::json::{digest, owned, text};
use crate::keys::WechatMerchant;
use crate::ledger::{Gateway, RefundRefusal, RefundRequest, RefundState, Trade, TradeKey, TradeState};
use crate::state::{Shared, Sim};

/// The minimum time between two refunds of an order.
const PAUSE: Duration = Duration::from_secs(60);

/// `POST /v3/refund/domestic/refunds`: 200 means that the refund is accepted.
pub(crate) async fn create(State(sim): State<Shared>, call: Call) -> Response {
    let body = call.json();
    let trade = body.as_ref().ok().and_then(|body| paid(&sim, &call.merchant, body));
    let named = || body.as_ref().ok().and_then(|body| owned(body, "out_trade_no"));
    let number = trade.as_ref().map(|trade| trade.out_trade_no.clone()).or_else(named);
    let work = async {
        let body = body?;
        fields::check_refund(&body)?;
        let trade = trade.ok_or_else(not_exist)?;
        stopped(sim.faults.before_refund(&trade.out_trade_no))?;
        let amount = |name: &str| body.pointer(&format!("/amount/{name}")).and_then(Value::as_i64);
        let notify_url = owned(&body, "notify_url");
        let request = RefundRequest {
            out_refund_no: owned(&body, "out_refund_no").unwrap_or_default(),
            amount_fen: amount("refund").unwrap_or_default(),
            total_fen: amount("total"),
            notified: notify_url.is_some() && !sim.faults.refund(&trade.out_trade_no).no_notice,
            notify_url,
            digest: digest(&body),
            at_once: false,
            pause: sim.deliveries.scaled(PAUSE),
            console: None,
        };
        let booked = sim.refund(&trade.key(), &request).map_err(refused)?;
        stopped(sim.faults.after_refund(&trade.out_trade_no).await)?;
        Ok(Some(view(&booked.trade, &booked.refund)))
    };
    carry(&sim, &call, CallKind::Refund, number.as_deref(), work).await
}

/// `GET /v3/refund/domestic/refunds/{out_refund_no}`.
pub(crate) async fn query(State(sim): State<Shared>, Path(number): Path<String>, call: Call) -> Response {
    let key = sim.ledger.refund_key(&call.merchant.account, &number);
    let out_trade_no = key.as_ref().map(|key| key.out_trade_no.clone());
    let work = async {
        stopped(sim.faults.refund_query(out_trade_no.as_deref().unwrap_or_default()))?;
        let key = key.ok_or_else(not_exist)?;
        let trade = sim.ledger.get(&key, clock::now()).ok_or_else(not_exist)?;
        let refund = trade.refund(&number).ok_or_else(not_exist)?;
        let mut answer = view(&trade, refund);
        answer["amount"]["refund"] = json!(refund.amount_fen + sim.faults.misstated_fen(&key.out_trade_no));
        Ok(Some(answer))
    };
    carry(&sim, &call, CallKind::RefundQuery, out_trade_no.as_deref(), work).await
}

/// `POST /v3/refund/domestic/refunds/{refund_id}/apply-abnormal-refund`: pays out to another card, or to the merchant.
pub(crate) async fn redirect(State(sim): State<Shared>, Path(refund_id): Path<String>, call: Call) -> Response {
    let ours = |(key, _): &(TradeKey, String)| key.account == call.merchant.account;
    let found = sim.ledger.by_refund_id(&refund_id).filter(ours);
    let out_trade_no = found.as_ref().map(|(key, _)| key.out_trade_no.clone());
    let work = async {
        let body = call.json()?;
        fields::check_redirect(&body)?;
        let (key, number) = found.ok_or_else(not_exist)?;
        if text(&body, "out_refund_no") != Some(&number) {
            return Err(Problem::new(400, "PARAM_ERROR", "out_refund_no与refund_id不一致"));
        }
        check_card(&call, &body)?;
        let (trade, refund) = sim
            .ledger
            .redirect_refund(&key, &number)
            .ok_or_else(|| Problem::new(400, "INVALID_REQUEST", "退款单状态不是退款异常，不能发起异常退款"))?;
        sim.process(&key, &number, RefundState::Success);
        Ok(Some(view(&trade, &refund)))
    };
    carry(&sim, &call, CallKind::Redirect, out_trade_no.as_deref(), work).await
}

/// A buyer's card and name are encrypted with the key that `Wechatpay-Serial` names.
fn check_card(call: &Call, body: &Value) -> Result<(), Problem> {
    if text(body, "type") == Some("MERCHANT_BANK_CARD") {
        return Ok(());
    }
    let named = call.wanted_serial().map(|serial| (serial, call.merchant.signing_key(Some(serial))));
    let Some((_, signing)) = named.filter(|(serial, signing)| signing.0 == *serial) else {
        return Err(Problem::new(400, "PARAM_ERROR", "Http头Wechatpay-Serial缺失或不是微信支付公钥ID"));
    };
    for name in ["bank_account", "real_name"] {
        if text(body, name).and_then(|sealed| signing.1.open(sealed)).is_none_or(|open| open.is_empty()) {
            return Err(Problem::field(&format!("/{name}"), None, "敏感信息解密失败"));
        }
    }
    match text(body, "bank_type") {
        Some(_) => Ok(()),
        None => Err(Problem::field("/bank_type", None, "缺少必填参数")),
    }
}

/// The paid order that a request names.
fn paid(sim: &Sim, merchant: &WechatMerchant, body: &Value) -> Option<Trade> {
    let now = clock::now();
    let trade = match (text(body, "transaction_id"), text(body, "out_trade_no")) {
        (Some(id), number) => {
            sim.ledger.by_trade_no(id, now).filter(|trade| number.is_none_or(|number| number == trade.out_trade_no))
        }
        (None, Some(number)) => sim.ledger.get(&key(merchant, number), now),
        (None, None) => None,
    };
    let ours = |trade: &Trade| trade.gateway() == Gateway::Wechat && trade.account == merchant.account;
    trade.filter(|trade| ours(trade) && trade.state == TradeState::Paid)
}

fn stopped(fault: Option<ApiFault>) -> Result<(), Problem> {
    match fault {
        Some(ApiFault::Unavailable) => Err(Problem::new(500, "SYSTEM_ERROR", "系统超时，请稍后重试")),
        Some(ApiFault::RateLimited) => Err(too_often()),
        None => Ok(()),
    }
}

fn refused(refusal: RefundRefusal) -> Problem {
    match refusal {
        RefundRefusal::Unknown | RefundRefusal::Unpaid(_) => not_exist(),
        RefundRefusal::Differs => Problem::new(400, "INVALID_REQUEST", "请求重入时，参数与首次请求时不一致"),
        RefundRefusal::OtherTotal => Problem::new(400, "INVALID_REQUEST", "订单金额与原订单不一致"),
        RefundRefusal::OverTotal => Problem::new(400, "INVALID_REQUEST", "申请退款金额超过订单可退金额"),
        RefundRefusal::Returned => Problem::new(400, "INVALID_REQUEST", "订单已全额退款"),
        RefundRefusal::TooSoon => too_often(),
        RefundRefusal::TooMany => Problem::new(400, "INVALID_REQUEST", "一笔订单最多支持50次部分退款"),
        RefundRefusal::TooOld => Problem::new(400, "TRADE_OVERDUE", "订单已经超过可退款期限"),
        RefundRefusal::NotEnough => Problem::new(403, "NOT_ENOUGH", "基本账户余额不足，请充值后重新发起"),
    }
}

fn not_exist() -> Problem {
    Problem::new(404, "RESOURCE_NOT_EXISTS", "退款单或订单不存在")
}

fn too_often() -> Problem {
    Problem::new(429, "FREQUENCY_LIMITED", "频率超限，请降低请求频率后重试")
}
