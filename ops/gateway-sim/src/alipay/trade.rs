//! The trade methods precreate, query and close, and the offers of a page or an app.

use serde_json::{Map, Value, json};
use time::Duration;

use super::answer::Problem;
use super::fields::{self, yuan};
use super::params::Call;
use crate::clock;
use crate::crypto::{ALPHANUMERIC, random_text};
use crate::json::{digest, owned, text};
use crate::ledger::{Credential, Gateway, Product, Refusal, Trade, TradeKey, TradeState};
use crate::state::{Shared, Sim};

pub(super) type Answer = Result<Map<String, Value>, Problem>;

/// `alipay.trade.precreate`: returns a code. There is no trade until a buyer scans it.
pub(crate) fn precreate(sim: &Sim, call: &Call) -> Answer {
    let trade = offer(sim, call, Product::Qr)?;
    let code = trade.credential.map(|credential| credential.code).unwrap_or_default();
    Ok(members(json!({ "out_trade_no": trade.out_trade_no, "qr_code": code })))
}

/// Books an offer to the client. For a query, the trade does not exist before the buyer acts.
pub(crate) fn offer(sim: &Sim, call: &Call, product: Product) -> Result<Trade, Problem> {
    let (method, biz) = (method(product), &call.biz_content);
    fields::check(method, biz)?;
    let now = clock::now();
    if text(biz, "seller_id").is_some_and(|seller| seller != call.merchant.seller_id) {
        return Err(Problem::business("INVALID_PARAMETER", "参数无效：seller_id"));
    }
    let amount_fen = text(biz, "total_amount").and_then(fields::fen).unwrap_or_default();
    let out_trade_no = text(biz, "out_trade_no").unwrap_or_default();
    let code = format!("https://qr.alipay.com/bax{}", random_text(21, ALPHANUMERIC).to_lowercase());
    let mut trade = Trade::new(product, &call.merchant.account, out_trade_no, amount_fen);
    trade.state = TradeState::Offered;
    trade.app_id.clone_from(&call.merchant.app_id);
    trade.subject = owned(biz, "subject").unwrap_or_default();
    trade.attach = owned(biz, "passback_params");
    trade.quit_url = owned(biz, "quit_url").filter(|url| crate::links::is_web(url));
    trade.notify_url.clone_from(&call.notify_url);
    trade.return_url.clone_from(&call.return_url);
    trade.digest = digest(&json!([biz, call.notify_url, call.return_url]));
    trade.credential = Some(Credential { code, expires_at: now + Duration::hours(2) });
    // A repeat may arrive when less than a minute is left, so only a first request is checked against the range.
    let known = sim.ledger.get(&trade.key(), now);
    trade.expires_at = match known {
        Some(known) => known.expires_at,
        None => fields::expiry(biz, now)?,
    };
    sim.ledger.place(trade, now).map_err(refused)
}

/// `alipay.trade.query`.
pub(crate) fn query(sim: &Sim, call: &Call) -> Answer {
    let trade = named(sim, "alipay.trade.query", call)?;
    let status = match trade.state {
        TradeState::Offered => return Err(not_exist()),
        TradeState::Waiting => "WAIT_BUYER_PAY",
        TradeState::Paid if trade.is_returned() => "TRADE_CLOSED",
        TradeState::Paid if trade.is_past_refunds(clock::now()) => "TRADE_FINISHED",
        TradeState::Paid => "TRADE_SUCCESS",
        TradeState::Closed => "TRADE_CLOSED",
    };
    let mut answer = members(json!({
        "buyer_logon_id": "159****5620",
        "buyer_user_id": "2088102122524333",
        "out_trade_no": trade.out_trade_no,
        "total_amount": yuan(trade.amount_fen),
        "trade_no": trade.trade_no,
        "trade_status": status,
    }));
    let got = if trade.state == TradeState::Paid { trade.amount_fen } else { 0 };
    for name in ["buyer_pay_amount", "invoice_amount", "receipt_amount"] {
        answer.insert(name.to_owned(), yuan(got).into());
    }
    answer.insert("point_amount".to_owned(), "0.00".into());
    if let Some(paid_at) = trade.paid_at {
        answer.insert("send_pay_date".to_owned(), clock::alipay(paid_at).into());
        let channel = json!([{ "fund_channel": "ALIPAYACCOUNT", "amount": yuan(trade.amount_fen) }]);
        answer.insert("fund_bill_list".to_owned(), channel);
    }
    Ok(answer)
}

/// `alipay.trade.close`: closes only a trade that waits for its buyer.
pub(crate) fn close(sim: &Shared, call: &Call) -> Answer {
    let mut trade = named(sim, "alipay.trade.close", call)?;
    let unpaid = matches!(trade.state, TradeState::Offered | TradeState::Waiting);
    if unpaid && sim.faults.pays_before_close(&trade.out_trade_no) {
        trade = sim.pay(&trade.key()).unwrap_or(trade);
    }
    if trade.state == TradeState::Offered {
        return Err(not_exist());
    }
    match sim.ledger.close(&trade.key(), clock::now()) {
        Ok(trade) => Ok(members(json!({ "out_trade_no": trade.out_trade_no, "trade_no": trade.trade_no }))),
        Err(Refusal::Unknown) => Err(not_exist()),
        Err(_) => Err(Problem::business("TRADE_STATUS_ERROR", "交易状态不合法")),
    }
}

/// The trade that a call names; `trade_no` takes precedence.
pub(super) fn named(sim: &Sim, method: &str, call: &Call) -> Result<Trade, Problem> {
    let biz = &call.biz_content;
    fields::check(method, biz)?;
    let now = clock::now();
    let trade = match (text(biz, "trade_no"), text(biz, "out_trade_no")) {
        (Some(trade_no), _) => sim.ledger.by_trade_no(trade_no, now),
        (None, Some(out_trade_no)) => {
            sim.ledger.shown(&TradeKey::new(Gateway::Alipay, &call.merchant.account, out_trade_no), now)
        }
        (None, None) => {
            return Err(Problem::business("INVALID_PARAMETER", "参数无效：out_trade_no 与 trade_no 不能同时为空"));
        }
    };
    let ours = |trade: &Trade| trade.gateway() == Gateway::Alipay && trade.account == call.merchant.account;
    trade.filter(ours).ok_or_else(not_exist)
}

fn refused(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Paid => Problem::business("TRADE_HAS_SUCCESS", "交易已被支付"),
        Refusal::Closed | Refusal::Expired => Problem::business("TRADE_HAS_CLOSE", "交易已经关闭"),
        Refusal::Differs => Problem::business("CONTEXT_INCONSISTENT", "交易信息被篡改"),
        Refusal::TooOften => Problem::business("APPLY_PC_MERCHANT_CODE_ERROR", "申请二维码失败：同一订单号次数过多"),
        Refusal::Unknown | Refusal::Unpaid => not_exist(),
    }
}

pub(super) fn not_exist() -> Problem {
    Problem::business("TRADE_NOT_EXIST", "交易不存在")
}

fn method(product: Product) -> &'static str {
    match product {
        Product::Page => "alipay.trade.page.pay",
        Product::Wap => "alipay.trade.wap.pay",
        Product::AlipayApp => "alipay.trade.app.pay",
        _ => "alipay.trade.precreate",
    }
}

pub(super) fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
