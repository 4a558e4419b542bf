//! Books refunds: what is accepted, what is refused, and every limit that a merchant exceeded.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Gateway, Ledger, Refund, RefundState, Trade, TradeKey, TradeState, refund_name};

/// The maximum number of refunds of a payment at WeChat Pay.
const MAX_REFUNDS: usize = 50;

/// A refund as a merchant requests it.
#[derive(Debug, Clone)]
pub(crate) struct RefundRequest {
    pub(crate) out_refund_no: String,
    pub(crate) amount_fen: i64,
    /// The amount of the payment, as the merchant states it (WeChat Pay).
    pub(crate) total_fen: Option<i64>,
    pub(crate) notify_url: Option<String>,
    pub(crate) digest: [u8; 32],
    /// Whether a notice reports its result.
    pub(crate) notified: bool,
    /// Done at once, or processed for a while first.
    pub(crate) at_once: bool,
    /// The minimum time that the gateway requires between two refunds of a payment.
    pub(crate) pause: Duration,
    /// `Some` for a refund from the console, with whether its notice contains the number. Limits that it exceeds
    /// are not the service's fault.
    pub(crate) console: Option<bool>,
}

/// The reason why a refund is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefundRefusal {
    Unknown,
    Unpaid(TradeState),
    /// The number was used with other parameters.
    Differs,
    /// The total is not that of the payment.
    OtherTotal,
    OverTotal,
    Returned,
    TooSoon,
    TooMany,
    TooOld,
    NotEnough,
}

impl RefundRefusal {
    /// The name of the limit that was exceeded, if there is one.
    fn limit(self) -> Option<&'static str> {
        match self {
            RefundRefusal::Differs => Some("other_parameters"),
            RefundRefusal::OtherTotal => Some("other_total"),
            RefundRefusal::OverTotal | RefundRefusal::Returned => Some("over_total"),
            RefundRefusal::TooSoon => Some("too_soon"),
            RefundRefusal::TooMany => Some("too_many"),
            RefundRefusal::TooOld => Some("too_old"),
            RefundRefusal::Unknown | RefundRefusal::Unpaid(_) | RefundRefusal::NotEnough => None,
        }
    }
}

/// An accepted refund.
#[derive(Debug)]
pub(crate) struct Booked {
    pub(crate) trade: Trade,
    pub(crate) refund: Refund,
    /// Whether this call created it; a repeat did not.
    pub(crate) fresh: bool,
}

impl Ledger {
    /// Books a refund, or finds the one that already has this number.
    pub(crate) fn refund(
        &self,
        key: &TradeKey,
        request: &RefundRequest,
        now: OffsetDateTime,
    ) -> Result<Booked, RefundRefusal> {
        let mut inner = self.lock();
        let numbered = refund_name(key, &request.out_refund_no);
        let elsewhere = inner.refunds.get(&numbered).is_some_and(|known| known != key);
        let balance = inner.balances.get(&(key.gateway, key.account.clone())).copied();
        let trade = inner.live(key, now).ok_or(RefundRefusal::Unknown)?;
        let (refund, fresh) = match accept(trade, request, now, elsewhere, balance) {
            Ok(accepted) => accepted,
            Err(refusal) => {
                if let (Some(limit), None) = (refusal.limit(), request.console) {
                    *trade.violations.entry(limit).or_default() += 1;
                }
                return Err(refusal);
            }
        };
        let trade = trade.clone();
        if fresh {
            inner.refunds.insert(numbered, key.clone());
            inner.refund_ids.insert(refund.refund_id.clone(), (key.clone(), refund.out_refund_no.clone()));
            if let Some(left) = inner.balances.get_mut(&(key.gateway, key.account.clone())) {
                *left -= refund.amount_fen;
            }
        }
        Ok(Booked { trade, refund, fresh })
    }

    /// Ends a processing refund. `None` if no such refund is processing, or `end` is `Processing`.
    pub(crate) fn end_refund(
        &self,
        key: &TradeKey,
        out_refund_no: &str,
        end: RefundState,
        now: OffsetDateTime,
    ) -> Option<Trade> {
        let mut inner = self.lock();
        let trade = inner.trades.get_mut(key)?;
        let refund = trade.refund(out_refund_no)?;
        let amount_fen = refund.amount_fen;
        if refund.state != RefundState::Processing || end == RefundState::Processing {
            return None;
        }
        trade.end_refund(out_refund_no, end, now);
        let trade = trade.clone();
        if end == RefundState::Closed
            && let Some(left) = inner.balances.get_mut(&(key.gateway, key.account.clone()))
        {
            *left += amount_fen;
        }
        Some(trade)
    }

    /// Processes an abnormal refund again, in another way. `None` if it is not abnormal.
    pub(crate) fn redirect_refund(&self, key: &TradeKey, out_refund_no: &str) -> Option<(Trade, Refund)> {
        let mut inner = self.lock();
        let trade = inner.trades.get_mut(key)?;
        let refund = trade.refunds.iter_mut().find(|refund| refund.out_refund_no == out_refund_no)?;
        if refund.state != RefundState::Abnormal {
            return None;
        }
        refund.state = RefundState::Processing;
        let refund = refund.clone();
        Some((trade.clone(), refund))
    }

    /// Makes every existing refund request older by this time.
    pub(crate) fn age_refunds(&self, by: time::Duration) {
        for refund in self.lock().trades.values_mut().flat_map(|trade| &mut trade.refunds) {
            refund.created_at = refund.created_at.saturating_sub(by);
        }
    }

    /// The payment that this refund of a WeChat Pay merchant belongs to.
    pub(crate) fn refund_key(&self, account: &str, out_refund_no: &str) -> Option<TradeKey> {
        self.lock().refunds.get(&(Gateway::Wechat, account.to_owned(), out_refund_no.to_owned())).cloned()
    }

    /// The refund with the gateway's own number.
    pub(crate) fn by_refund_id(&self, refund_id: &str) -> Option<(TradeKey, String)> {
        self.lock().refund_ids.get(refund_id).cloned()
    }

    /// Sets the balance of an account for refunds; `None` means unlimited.
    pub(crate) fn set_balance(&self, gateway: Gateway, account: &str, fen: Option<i64>) {
        let name = (gateway, account.to_owned());
        let balances = &mut self.lock().balances;
        match fen {
            Some(fen) => balances.insert(name, fen),
            None => balances.remove(&name),
        };
    }

    /// The balance of an account for refunds.
    pub(crate) fn balance(&self, gateway: Gateway, account: &str) -> Option<i64> {
        self.lock().balances.get(&(gateway, account.to_owned())).copied()
    }

    /// Notes a limit that the merchant exceeded.
    pub(crate) fn violation(&self, key: &TradeKey, limit: &'static str) {
        if let Some(trade) = self.lock().trades.get_mut(key) {
            *trade.violations.entry(limit).or_default() += 1;
        }
    }
}

fn accept(
    trade: &mut Trade,
    request: &RefundRequest,
    now: OffsetDateTime,
    elsewhere: bool,
    balance: Option<i64>,
) -> Result<(Refund, bool), RefundRefusal> {
    let wechat = trade.gateway() == Gateway::Wechat;
    if elsewhere {
        return Err(RefundRefusal::Differs);
    }
    if let Some(known) = trade.refund(&request.out_refund_no) {
        let agrees = if wechat { known.digest == request.digest } else { known.amount_fen == request.amount_fen };
        return if agrees { Ok((known.clone(), false)) } else { Err(RefundRefusal::Differs) };
    }
    if trade.state != TradeState::Paid {
        return Err(RefundRefusal::Unpaid(trade.state));
    }
    if request.total_fen.is_some_and(|total| total != trade.amount_fen) {
        return Err(RefundRefusal::OtherTotal);
    }
    if trade.is_past_refunds(now) {
        return Err(RefundRefusal::TooOld);
    }
    if trade.is_returned() {
        return Err(RefundRefusal::Returned);
    }
    if trade.reserved_fen() + request.amount_fen > trade.amount_fen {
        return Err(RefundRefusal::OverTotal);
    }
    if wechat && trade.refunds.len() >= MAX_REFUNDS {
        return Err(RefundRefusal::TooMany);
    }
    // A refund from the console does not count: the service cannot know its time.
    let last = trade.refunds.iter().rev().find(|refund| !refund.console);
    if last.is_some_and(|last| now < last.created_at + request.pause) {
        return Err(RefundRefusal::TooSoon);
    }
    if balance.is_some_and(|fen| fen < request.amount_fen) {
        return Err(RefundRefusal::NotEnough);
    }
    let mut refund = Refund::new(&request.out_refund_no, request.amount_fen, now);
    refund.notify_url.clone_from(&request.notify_url);
    refund.digest = request.digest;
    refund.notified = request.notified;
    refund.console = request.console.is_some();
    refund.named = request.console.unwrap_or(true);
    trade.refunds.push(refund);
    if request.at_once {
        trade.end_refund(&request.out_refund_no, RefundState::Success, now);
    }
    let refund = trade.refund(&request.out_refund_no).cloned().ok_or(RefundRefusal::Unknown)?;
    Ok((refund, true))
}

#[cfg(test)]
mod tests {
    use time::Duration as Span;

    use super::*;
    use crate::clock;
    use crate::ledger::Product;

    fn request(number: &str, amount_fen: i64) -> RefundRequest {
        RefundRequest {
            out_refund_no: number.to_owned(),
            amount_fen,
            total_fen: Some(10_000),
            notify_url: None,
            digest: [u8::try_from(amount_fen % 256).unwrap(); 32],
            notified: true,
            at_once: true,
            pause: Duration::from_secs(60),
            console: None,
        }
    }

    fn paid(product: Product) -> (Ledger, TradeKey, OffsetDateTime) {
        let (ledger, now) = (Ledger::new(10), clock::now());
        let key = ledger.place(Trade::new(product, "main", "A", 10_000), now).unwrap().key();
        ledger.pay(&key, now).unwrap();
        (ledger, key, now)
    }

    #[test]
    fn the_sum_the_pause_and_the_count_are_limits() {
        let (ledger, key, now) = paid(Product::Native);
        let refuse = |number: &str, fen, at| ledger.refund(&key, &request(number, fen), at).unwrap_err();
        for number in 0..50 {
            let at = now + Span::minutes(number);
            assert!(ledger.refund(&key, &request(&format!("R{number}"), 1), at).unwrap().fresh);
            assert_eq!(
                refuse("soon", 1, at + Span::seconds(59)),
                if number < 49 { RefundRefusal::TooSoon } else { RefundRefusal::TooMany }
            );
        }
        let later = now + Span::HOUR;
        assert_eq!(refuse("R50", 1, later), RefundRefusal::TooMany);
        assert_eq!(refuse("R50", 9_951, later), RefundRefusal::OverTotal);
        assert_eq!(refuse("R50", 1, now + Span::days(366)), RefundRefusal::TooOld);
        assert_eq!(ledger.refund(&key, &request("R3", 2), later).unwrap_err(), RefundRefusal::Differs);
        let again = ledger.refund(&key, &request("R3", 1), later).unwrap();
        assert!(!again.fresh && again.refund.effects == 1 && again.trade.refunded_fen() == 50);
        assert_eq!(again.trade.violations["too_soon"], 49);
        assert_eq!(again.trade.violations["too_many"], 2);
    }

    #[test]
    fn a_balance_is_spent_and_a_closed_refund_gives_it_back() {
        let (ledger, key, now) = paid(Product::Native);
        ledger.set_balance(Gateway::Wechat, "main", Some(100));
        assert_eq!(ledger.refund(&key, &request("R", 101), now).unwrap_err(), RefundRefusal::NotEnough);
        let slow = RefundRequest { at_once: false, ..request("R", 100) };
        assert_eq!(ledger.refund(&key, &slow, now).unwrap().refund.state, RefundState::Processing);
        assert_eq!(ledger.balance(Gateway::Wechat, "main"), Some(0));
        let trade = ledger.end_refund(&key, "R", RefundState::Closed, now).unwrap();
        assert_eq!((trade.refunded_fen(), trade.reserved_fen()), (0, 0));
        assert_eq!(ledger.balance(Gateway::Wechat, "main"), Some(100));
        assert!(ledger.end_refund(&key, "R", RefundState::Success, now).is_none(), "an end is an end");
    }

    #[test]
    fn a_number_belongs_to_one_merchant_at_wechat_and_to_one_trade_at_alipay() {
        for (product, refused) in [(Product::Native, true), (Product::Qr, false)] {
            let (ledger, key, now) = paid(product);
            let other = ledger.place(Trade::new(product, "main", "B", 10_000), now).unwrap().key();
            ledger.pay(&other, now).unwrap();
            ledger.refund(&key, &request("R", 1), now).unwrap();
            assert_eq!(ledger.refund(&other, &request("R", 1), now).is_err(), refused);
        }
    }

    #[test]
    fn what_is_unpaid_or_returned_has_nothing_to_give() {
        let (ledger, key, now) = paid(Product::Qr);
        let waiting = ledger.place(Trade::new(Product::Qr, "main", "W", 10_000), now).unwrap().key();
        assert_eq!(
            ledger.refund(&waiting, &request("R", 1), now).unwrap_err(),
            RefundRefusal::Unpaid(TradeState::Waiting)
        );
        assert!(ledger.refund(&key, &request("ALL", 10_000), now).unwrap().trade.is_returned());
        assert_eq!(ledger.refund(&key, &request("MORE", 1), now).unwrap_err(), RefundRefusal::Returned);
    }
}
