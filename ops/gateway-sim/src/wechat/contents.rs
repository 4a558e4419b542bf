//! The JSON of a transaction and of a refund, in answers and in notices.

use serde_json::{Map, Value, json};

use crate::clock;
use crate::keys::WechatMerchant;
use crate::ledger::{Refund, RefundState, Trade, TradeState};

/// The transaction as it was paid: the contents of a notification.
pub(super) fn transaction(merchant: &WechatMerchant, trade: &Trade) -> Value {
    let appid = Some(&trade.app_id).filter(|appid| !appid.is_empty()).or(merchant.appids.first());
    let (state, words) = match trade.state {
        TradeState::Paid => ("SUCCESS", "支付成功"),
        TradeState::Closed => ("CLOSED", "订单已关闭"),
        _ => ("NOTPAY", "订单未支付"),
    };
    let mut answer = Map::new();
    let mut put = |name: &str, value: Value| answer.insert(name.to_owned(), value);
    put("appid", json!(appid));
    put("mchid", json!(merchant.mchid));
    put("out_trade_no", json!(trade.out_trade_no));
    put("trade_state", json!(state));
    put("trade_state_desc", json!(words));
    if trade.state != TradeState::Paid {
        put("amount", json!({ "total": trade.amount_fen }));
        return Value::Object(answer);
    }
    let (total, openid) = (trade.amount_fen, trade.openid.as_deref().unwrap_or("oUpF8uMuAJO_M2pxb1Q9zNjWeS6o"));
    put("transaction_id", json!(trade.trade_no));
    put("trade_type", json!(trade.product.trade_type()));
    put("bank_type", json!("OTHERS"));
    put("success_time", json!(trade.paid_at.map(clock::wechat)));
    put("payer", json!({ "openid": openid }));
    put("amount", json!({ "total": total, "payer_total": total, "currency": "CNY", "payer_currency": "CNY" }));
    if let Some(attach) = &trade.attach {
        put("attach", json!(attach));
    }
    Value::Object(answer)
}

/// A refund, as the answers of all three calls show it.
pub(super) fn refund(trade: &Trade, refund: &Refund) -> Value {
    let (total, amount) = (trade.amount_fen, refund.amount_fen);
    let mut answer = common(trade, refund);
    let mut put = |name: &str, value: Value| answer.insert(name.to_owned(), value);
    put("channel", json!("ORIGINAL"));
    put("funds_account", json!("AVAILABLE"));
    put("create_time", json!(clock::wechat(refund.created_at)));
    put("status", json!(refund.state.wechat()));
    put("promotion_detail", json!([]));
    put(
        "amount",
        json!({
            "total": total,
            "refund": amount,
            "from": [],
            "payer_total": total,
            "payer_refund": amount,
            "settlement_total": total,
            "settlement_refund": amount,
            "discount_refund": 0,
            "refund_fee": 0,
            "currency": "CNY",
        }),
    );
    Value::Object(answer)
}

/// A refund in a notice before encryption: the state has another name there.
pub(super) fn reported_refund(merchant: &WechatMerchant, trade: &Trade, refund: &Refund) -> Value {
    let (total, amount) = (trade.amount_fen, refund.amount_fen);
    let mut resource = common(trade, refund);
    let mut put = |name: &str, value: Value| resource.insert(name.to_owned(), value);
    put("mchid", json!(merchant.mchid));
    put("refund_status", json!(refund.state.wechat()));
    put("amount", json!({ "total": total, "refund": amount, "payer_total": total, "payer_refund": amount }));
    Value::Object(resource)
}

fn common(trade: &Trade, refund: &Refund) -> Map<String, Value> {
    let mut members = Map::new();
    let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
    put("refund_id", json!(refund.refund_id));
    put("out_refund_no", json!(refund.out_refund_no));
    put("transaction_id", json!(trade.trade_no));
    put("out_trade_no", json!(trade.out_trade_no));
    put("user_received_account", json!("支付用户零钱"));
    if refund.state == RefundState::Success {
        put("success_time", json!(refund.success_at.map(clock::wechat)));
    }
    members
}
