//! `alipay.trade.refund` and its query. Alipay has no other state than done: a refund that is not done is not shown.

use serde_json::{Map, json};
use std::time::Duration;

use super::answer::Problem;
use super::fields::{self, yuan};
use super::params::Call;
use super::trade::{Answer, members, named, not_exist};
use crate::clock;
use crate::faults::ApiFault;
use crate::json::{owned, text};
use crate::ledger::{Booked, RefundRefusal, RefundRequest, RefundState, TradeState};
use crate::state::{Shared, Sim};

/// The minimum time between two refunds of a trade.
const PAUSE: Duration = Duration::from_secs(3);

/// `alipay.trade.refund`. `None`: the gateway is unavailable, before or after the refund.
pub(crate) async fn refund(sim: &Shared, call: &Call) -> Option<Answer> {
    let trade = match named(sim, "alipay.trade.refund", call) {
        Ok(trade) => trade,
        Err(problem) => return Some(Err(problem)),
    };
    match sim.faults.before_refund(&trade.out_trade_no) {
        Some(ApiFault::Unavailable) => return None,
        Some(ApiFault::RateLimited) => return Some(Err(too_often())),
        None => {}
    }
    let biz = &call.biz_content;
    let faults = sim.faults.refund(&trade.out_trade_no);
    let mut amount_fen = text(biz, "refund_amount").and_then(fields::fen).unwrap_or_default();
    let own = owned(biz, "out_request_no");
    // Without a number, the trade's own number counts. Then a second refund is a repeat of the first, whatever its
    // amount.
    let out_refund_no = own.clone().unwrap_or_else(|| trade.out_trade_no.clone());
    if let (None, Some(known)) = (&own, trade.refund(&out_refund_no)) {
        amount_fen = known.amount_fen;
        sim.ledger.violation(&trade.key(), "no_request_no");
    }
    let request = RefundRequest {
        out_refund_no,
        amount_fen,
        total_fen: None,
        notify_url: None,
        digest: [0; 32],
        notified: trade.notify_url.is_some() && !faults.no_notice,
        at_once: faults.processing_ms == 0,
        pause: sim.deliveries.scaled(PAUSE),
        console: None,
    };
    let booked = match sim.refund(&trade.key(), &request) {
        Ok(booked) => booked,
        Err(refusal) => return Some(Err(refused(refusal))),
    };
    match sim.faults.after_refund(&trade.out_trade_no).await {
        Some(_) => None,
        None => Some(Ok(answer(&booked))),
    }
}

/// `refund_fee` is the total of the trade; `Y` means that this call itself moved money.
fn answer(Booked { trade, refund, fresh }: &Booked) -> Map<String, serde_json::Value> {
    let moved = *fresh && refund.state == RefundState::Success;
    let mut answer = members(json!({
        "buyer_logon_id": "159****5620",
        "buyer_user_id": "2088102122524333",
        "fund_change": if moved { "Y" } else { "N" },
        "out_trade_no": trade.out_trade_no,
        "refund_fee": yuan(trade.refunded_fen()),
        "send_back_fee": yuan(if moved { refund.amount_fen } else { 0 }),
        "trade_no": trade.trade_no,
    }));
    if let Some(at) = refund.success_at {
        answer.insert("gmt_refund_pay".to_owned(), clock::alipay(at).into());
    }
    answer
}

/// `alipay.trade.fastpay.refund.query`: for a refund that is unknown or not done yet, the answer has no status.
pub(crate) fn query(sim: &Sim, call: &Call) -> Option<Answer> {
    let trade = match named(sim, "alipay.trade.fastpay.refund.query", call) {
        Ok(trade) if trade.state == TradeState::Offered => return Some(Err(not_exist())),
        Ok(trade) => trade,
        Err(problem) => return Some(Err(problem)),
    };
    if sim.faults.refund_query(&trade.out_trade_no).is_some() {
        return None;
    }
    let lag = Duration::from_millis(sim.faults.refund(&trade.out_trade_no).query_lag_ms);
    let number = text(&call.biz_content, "out_request_no").unwrap_or_default();
    let now = clock::now();
    let done = |at| now >= at + lag;
    let Some(refund) = trade.refund(number).filter(|refund| refund.success_at.is_some_and(done)) else {
        return Some(Ok(Map::new()));
    };
    Some(Ok(members(json!({
        "gmt_refund_pay": refund.success_at.map(clock::alipay),
        "out_request_no": refund.out_refund_no,
        "out_trade_no": trade.out_trade_no,
        "refund_amount": yuan(refund.amount_fen + sim.faults.misstated_fen(&trade.out_trade_no)),
        "refund_status": "REFUND_SUCCESS",
        "send_back_fee": yuan(refund.amount_fen),
        "total_amount": yuan(trade.amount_fen),
        "trade_no": trade.trade_no,
    }))))
}

fn refused(refusal: RefundRefusal) -> Problem {
    let (sub_code, words) = match refusal {
        RefundRefusal::Unknown | RefundRefusal::Unpaid(TradeState::Offered) => return not_exist(),
        RefundRefusal::TooSoon => return too_often(),
        RefundRefusal::Unpaid(TradeState::Closed) | RefundRefusal::Returned => ("TRADE_HAS_CLOSE", "交易已经关闭"),
        RefundRefusal::Unpaid(_) => ("TRADE_STATUS_ERROR", "交易状态不合法"),
        RefundRefusal::Differs => ("DISCORDANT_REPEAT_REQUEST", "不一致的请求"),
        RefundRefusal::OverTotal | RefundRefusal::OtherTotal | RefundRefusal::TooMany => {
            ("REASON_TRADE_REFUND_FEE_ERR", "退款金额无效")
        }
        RefundRefusal::TooOld => ("TRADE_HAS_FINISHED", "交易已完结"),
        RefundRefusal::NotEnough => ("SELLER_BALANCE_NOT_ENOUGH", "卖家余额不足"),
    };
    Problem::business(sub_code, words)
}

fn too_often() -> Problem {
    Problem::new("40005", "isv.app-call-limited", "应用调用次数超限")
}
