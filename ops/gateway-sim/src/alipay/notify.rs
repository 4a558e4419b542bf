//! The asynchronous notification and the synchronous return.

use serde_json::{Value, json};
use time::OffsetDateTime;
use url::form_urlencoded;

use super::fields::yuan;
use super::sign::{Pair, notice_content};
use crate::callback::{Overrides, SignedCallback, Wrong};
use crate::clock;
use crate::keys::AlipayMerchant;
use crate::ledger::{Event, Product, Refund, Trade};

/// The signed notification of a trade's last event.
#[must_use]
pub fn render(merchant: &AlipayMerchant, trade: &Trade, overrides: &Overrides) -> SignedCallback {
    let sent = overrides.at.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()).unwrap_or_else(clock::now);
    let mut params = fields(merchant, trade, overrides, sent);
    for (name, value) in &overrides.fields {
        params.retain(|(known, _)| known != name);
        match value {
            Some(Value::String(text)) => params.push((name.clone(), text.clone())),
            Some(value) => params.push((name.clone(), value.to_string())),
            None => {}
        }
    }
    let content = notice_content(&params);
    let signature = match overrides.wrong {
        Some(Wrong::Probe) => format!("-{}", merchant.sign(content.as_bytes())),
        Some(Wrong::Forged | Wrong::WrongSerial) => merchant.stranger.sign(content.as_bytes()),
        _ => merchant.sign(content.as_bytes()),
    };
    if overrides.wrong == Some(Wrong::Tamper) {
        tamper(&mut params);
    }
    params.push(("sign".to_owned(), signature));
    let body = overrides.body.clone().unwrap_or_else(|| encode(&params));
    let headers = vec![
        ("Content-Type".to_owned(), "application/x-www-form-urlencoded; charset=utf-8".to_owned()),
        ("User-Agent".to_owned(), "Mozilla/4.0".to_owned()),
    ];
    let mut callback = SignedCallback::new(trade.notify_url.as_deref(), headers, body.into_bytes());
    callback.apply(&overrides.headers);
    callback
}

/// The address of the browser after the payment: the merchant's `return_url` with signed parameters.
pub(crate) fn return_url(merchant: &AlipayMerchant, trade: &Trade, now: OffsetDateTime) -> Option<String> {
    let url = trade.return_url.as_ref()?;
    let method = match trade.product {
        Product::Page => "alipay.trade.page.pay.return",
        Product::Wap => "alipay.trade.wap.pay.return",
        _ => return None,
    };
    let mut params: Vec<Pair> = [
        ("app_id", merchant.app_id.clone()),
        ("auth_app_id", merchant.app_id.clone()),
        ("method", method.to_owned()),
        ("charset", "utf-8".to_owned()),
        ("timestamp", clock::alipay(now)),
        ("version", "1.0".to_owned()),
        ("sign_type", "RSA2".to_owned()),
        ("out_trade_no", trade.out_trade_no.clone()),
        ("trade_no", trade.trade_no.clone().unwrap_or_default()),
        ("total_amount", yuan(trade.amount_fen)),
        ("seller_id", merchant.seller_id.clone()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    params.push(("sign".to_owned(), merchant.sign(notice_content(&params).as_bytes())));
    let joint = if url.contains('?') { '&' } else { '?' };
    Some(format!("{url}{joint}{}", encode(&params)))
}

fn fields(merchant: &AlipayMerchant, trade: &Trade, overrides: &Overrides, sent: OffsetDateTime) -> Vec<Pair> {
    let notice = trade.notices.last();
    let refund = trade.reported_refund();
    let amount = yuan(overrides.amount_fen.filter(|_| refund.is_none()).unwrap_or(trade.amount_fen));
    let closed = notice.is_some_and(|notice| notice.event == Event::Closed);
    let id = overrides.id.clone().or_else(|| notice.map(|notice| notice.id.clone()));
    let mut fields: Vec<(&str, String)> = vec![
        ("app_id", merchant.app_id.clone()),
        ("auth_app_id", merchant.app_id.clone()),
        ("buyer_id", "2088102122524333".to_owned()),
        ("charset", "utf-8".to_owned()),
        ("gmt_create", clock::alipay(trade.created_at)),
        ("notify_id", id.unwrap_or_default()),
        ("notify_time", clock::alipay(sent)),
        ("notify_type", "trade_status_sync".to_owned()),
        ("out_trade_no", trade.out_trade_no.clone()),
        ("seller_id", merchant.seller_id.clone()),
        ("sign_type", "RSA2".to_owned()),
        ("subject", trade.subject.clone()),
        ("total_amount", amount.clone()),
        ("trade_no", trade.trade_no.clone().unwrap_or_default()),
        ("version", "1.0".to_owned()),
    ];
    if closed {
        fields.push(("trade_status", "TRADE_CLOSED".to_owned()));
        fields.push(("gmt_close", clock::alipay(trade.closed_at.unwrap_or(sent))));
    } else {
        let returned = refund.is_some_and(|refund| refund.total_after_fen >= trade.amount_fen);
        let bill = json!([{ "amount": amount, "fundChannel": "ALIPAYACCOUNT" }]).to_string();
        fields.extend([
            ("trade_status", if returned { "TRADE_CLOSED" } else { "TRADE_SUCCESS" }.to_owned()),
            ("gmt_payment", clock::alipay(trade.paid_at.unwrap_or(sent))),
            ("buyer_logon_id", "159****5620".to_owned()),
            ("buyer_pay_amount", amount.clone()),
            ("receipt_amount", amount.clone()),
            ("invoice_amount", amount),
            ("point_amount", "0.00".to_owned()),
            ("fund_bill_list", bill),
        ]);
    }
    if let Some(refund) = refund {
        fields.extend(refund_fields(trade, refund, overrides));
    }
    if let Some(attach) = &trade.attach {
        fields.push(("passback_params", attach.clone()));
    }
    fields.retain(|(_, value)| !value.is_empty());
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The fields that a refund adds: the total so far, the number, the time with a fraction, and the close time of a
/// trade that is refunded completely.
fn refund_fields(trade: &Trade, refund: &Refund, overrides: &Overrides) -> Vec<(&'static str, String)> {
    let at = refund.success_at.unwrap_or(refund.created_at);
    let mut fields = vec![
        ("refund_fee", yuan(overrides.amount_fen.unwrap_or(refund.total_after_fen))),
        ("gmt_refund", format!("{}.{}", clock::alipay(at), at.millisecond() / 100)),
    ];
    if refund.named {
        fields.push(("out_biz_no", refund.out_refund_no.clone()));
    }
    if refund.total_after_fen >= trade.amount_fen {
        fields.push(("gmt_close", clock::alipay(at)));
    }
    fields
}

/// Changes the amount after signing.
fn tamper(params: &mut [Pair]) {
    for (name, value) in params {
        if name == "total_amount" {
            value.insert(0, '1');
        }
    }
}

pub(crate) fn encode(params: &[Pair]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish()
}
