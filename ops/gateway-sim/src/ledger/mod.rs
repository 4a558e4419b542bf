//! The trades of both gateways, in memory and bounded: when there are too many, the oldest is dropped.

mod book;
mod refund;
mod refunds;
mod trade;
mod view;

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

pub(crate) use book::{Booked, RefundRefusal, RefundRequest};
pub use refund::{Refund, RefundState};
pub use trade::{Credential, Event, Gateway, Notice, Product, Trade, TradeKey, TradeState};

/// The reason why the ledger refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No such trade.
    Unknown,
    /// The number is used by a request with other parameters.
    Differs,
    /// It is neither paid nor closed.
    Unpaid,
    /// It is paid.
    Paid,
    /// It is closed.
    Closed,
    /// The last moment to pay has passed.
    Expired,
    /// Alipay creates no more codes for this number.
    TooOften,
}

/// The number of codes that Alipay creates for one number. Source: its help centre, knowId 201602631395, 2026-11-29.
pub const MAX_CODES: u32 = 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    trades: HashMap<TradeKey, Trade>,
    order: VecDeque<TradeKey>,
    codes: HashMap<String, TradeKey>,
    trade_nos: HashMap<String, TradeKey>,
    /// The trade of each refund, by the merchant's number and the scope in which that number is unique.
    refunds: HashMap<(Gateway, String, String), TradeKey>,
    /// The trade and the merchant's number of each refund, by the gateway's own number.
    refund_ids: HashMap<String, (TradeKey, String)>,
    /// The balance of an account for refunds; an account without an entry has an unlimited balance.
    balances: HashMap<(Gateway, String), i64>,
}

impl Ledger {
    pub(crate) fn new(limit: usize) -> Ledger {
        Ledger { limit: limit.max(1), inner: Mutex::default() }
    }

    /// Books a merchant's request. A repeat must agree with the first request, and gets a new credential.
    pub(crate) fn place(&self, requested: Trade, now: OffsetDateTime) -> Result<Trade, Refusal> {
        let key = requested.key();
        let mut inner = self.lock();
        if let Some(known) = inner.live(&key, now) {
            match known.state {
                TradeState::Paid => return Err(Refusal::Paid),
                TradeState::Closed => return Err(Refusal::Closed),
                _ if known.digest != requested.digest || known.product != requested.product => {
                    return Err(Refusal::Differs);
                }
                _ if known.gateway() == Gateway::Alipay && known.is_expired(now) => return Err(Refusal::Expired),
                _ if known.product == Product::Qr && known.requests >= MAX_CODES => return Err(Refusal::TooOften),
                _ => {}
            }
            known.requests += 1;
            let old = std::mem::replace(&mut known.credential, requested.credential);
            let known = known.clone();
            inner.forget_code(old.as_ref());
            inner.remember_code(&known);
            return Ok(known);
        }
        inner.insert(requested.clone(), self.limit);
        Ok(requested)
    }

    /// The trade with this key.
    pub(crate) fn get(&self, key: &TradeKey, now: OffsetDateTime) -> Option<Trade> {
        self.lock().live(key, now).cloned()
    }

    /// What a query by the merchant's number shows: if the trade is closed, a later payment of the number.
    pub(crate) fn shown(&self, key: &TradeKey, now: OffsetDateTime) -> Option<Trade> {
        let mut inner = self.lock();
        let first = inner.live(key, now)?.clone();
        let again = inner.trades.get(&TradeKey { nth: 1, ..key.clone() });
        Some(again.filter(|_| first.state == TradeState::Closed).cloned().unwrap_or(first))
    }

    /// The trades with this number at a gateway; several only if accounts share it.
    pub(crate) fn find(&self, gateway: Gateway, accounts: &[String], out_trade_no: &str) -> Vec<TradeKey> {
        let inner = self.lock();
        let key = |account: &String| TradeKey::new(gateway, account, out_trade_no);
        accounts.iter().map(key).filter(|key| inner.trades.contains_key(key)).collect()
    }

    /// The trade that a code or `prepay_id` opens, as long as it is valid.
    pub(crate) fn by_code(&self, code: &str, now: OffsetDateTime) -> Option<Trade> {
        let mut inner = self.lock();
        let key = inner.codes.get(code)?.clone();
        let trade = inner.live(&key, now)?;
        let works = trade.credential.as_ref().is_some_and(|credential| now <= credential.expires_at);
        works.then(|| trade.clone())
    }

    /// The trade with the gateway's own number.
    pub(crate) fn by_trade_no(&self, trade_no: &str, now: OffsetDateTime) -> Option<Trade> {
        let mut inner = self.lock();
        let key = inner.trade_nos.get(trade_no)?.clone();
        inner.live(&key, now).cloned()
    }

    /// The buyer opens it: at Alipay this creates the trade.
    pub(crate) fn open(&self, key: &TradeKey, now: OffsetDateTime) -> Result<Trade, Refusal> {
        self.change(key, now, |trade| {
            if trade.state == TradeState::Offered && !trade.is_expired(now) {
                trade.open(now);
            }
            Ok(())
        })
    }

    /// The buyer pays.
    pub(crate) fn pay(&self, key: &TradeKey, now: OffsetDateTime) -> Result<Trade, Refusal> {
        self.change(key, now, |trade| match trade.state {
            TradeState::Paid => Err(Refusal::Paid),
            TradeState::Closed => Err(Refusal::Closed),
            _ if trade.is_expired(now) => Err(Refusal::Expired),
            _ => {
                trade.settle(now);
                Ok(())
            }
        })
    }

    /// The number of a paid or closed trade is paid again, with a separate trade.
    pub(crate) fn pay_again(&self, key: &TradeKey, now: OffsetDateTime) -> Result<Trade, Refusal> {
        let mut inner = self.lock();
        let first = inner.live(key, now).ok_or(Refusal::Unknown)?.clone();
        if !matches!(first.state, TradeState::Paid | TradeState::Closed) {
            return Err(Refusal::Unpaid);
        }
        let mut again = key.clone();
        while inner.trades.contains_key(&again) {
            again.nth += 1;
        }
        let again = first.again(again.nth, now);
        if let Some(trade_no) = &again.trade_no {
            inner.trade_nos.insert(trade_no.clone(), again.key());
        }
        inner.insert(again.clone(), self.limit);
        Ok(again)
    }

    /// Closes an unpaid trade. A second close is refused as `Closed`; the gateways answer that differently.
    pub(crate) fn close(&self, key: &TradeKey, now: OffsetDateTime) -> Result<Trade, Refusal> {
        self.change(key, now, |trade| match trade.state {
            TradeState::Paid => Err(Refusal::Paid),
            TradeState::Closed => Err(Refusal::Closed),
            _ => {
                trade.close(now);
                Ok(())
            }
        })
    }

    /// Changes a trade with `change`, which may refuse, and returns it.
    pub(crate) fn change(
        &self,
        key: &TradeKey,
        now: OffsetDateTime,
        change: impl FnOnce(&mut Trade) -> Result<(), Refusal>,
    ) -> Result<Trade, Refusal> {
        let mut inner = self.lock();
        let trade = inner.live(key, now).ok_or(Refusal::Unknown)?;
        let had = trade.trade_no.is_some();
        change(trade)?;
        let trade = trade.clone();
        if let (false, Some(trade_no)) = (had, &trade.trade_no) {
            inner.trade_nos.insert(trade_no.clone(), key.clone());
        }
        Ok(trade)
    }

    /// Notes the result of a delivery of the notification `id`.
    pub(crate) fn note(&self, key: &TradeKey, id: &str, note: impl FnOnce(&mut Notice)) {
        let mut inner = self.lock();
        let notices = inner.trades.get_mut(key).map(|trade| &mut trade.notices);
        if let Some(notice) = notices.into_iter().flatten().find(|notice| notice.id == id) {
            note(notice);
        }
    }

    /// The newest `limit` trades that `wanted` accepts, newest first.
    pub(crate) fn newest(&self, limit: usize, wanted: impl Fn(&Trade) -> bool) -> Vec<Trade> {
        let inner = self.lock();
        let newest_first = inner.order.iter().rev().filter_map(|key| inner.trades.get(key));
        newest_first.filter(|trade| wanted(trade)).take(limit).cloned().collect()
    }

    /// Removes everything.
    pub(crate) fn clear(&self) {
        *self.lock() = Inner::default();
    }

    /// A panic elsewhere leaves complete trades behind, so the data under a poisoned lock is still valid.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The trade, closed first if its time ran out: Alipay closes it by itself, WeChat Pay only stops accepting money.
    fn live(&mut self, key: &TradeKey, now: OffsetDateTime) -> Option<&mut Trade> {
        let trade = self.trades.get_mut(key)?;
        if trade.gateway() == Gateway::Alipay && trade.state == TradeState::Waiting && trade.is_expired(now) {
            trade.close(trade.expires_at);
        }
        Some(trade)
    }

    fn insert(&mut self, trade: Trade, limit: usize) {
        while self.trades.len() >= limit {
            let Some(oldest) = self.order.pop_front() else { break };
            self.drop_trade(&oldest);
        }
        self.remember_code(&trade);
        if let Some(trade_no) = &trade.trade_no {
            self.trade_nos.insert(trade_no.clone(), trade.key());
        }
        self.order.push_back(trade.key());
        self.trades.insert(trade.key(), trade);
    }

    fn drop_trade(&mut self, key: &TradeKey) {
        let Some(trade) = self.trades.remove(key) else { return };
        self.forget_code(trade.credential.as_ref());
        if let Some(trade_no) = &trade.trade_no {
            self.trade_nos.remove(trade_no);
        }
        for refund in &trade.refunds {
            self.refunds.remove(&refund_name(key, &refund.out_refund_no));
            self.refund_ids.remove(&refund.refund_id);
        }
    }

    fn remember_code(&mut self, trade: &Trade) {
        if let Some(credential) = &trade.credential {
            self.codes.insert(credential.code.clone(), trade.key());
        }
    }

    fn forget_code(&mut self, credential: Option<&Credential>) {
        if let Some(credential) = credential {
            self.codes.remove(&credential.code);
        }
    }
}

/// `out_refund_no` is unique per merchant at WeChat Pay, and per trade at Alipay.
fn refund_name(key: &TradeKey, out_refund_no: &str) -> (Gateway, String, String) {
    let name = match key.gateway {
        Gateway::Alipay => format!("{}/{}/{out_refund_no}", key.out_trade_no, key.nth),
        Gateway::Wechat => out_refund_no.to_owned(),
    };
    (key.gateway, key.account.clone(), name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn trade(number: &str, code: &str) -> Trade {
        let mut trade = Trade::new(Product::Native, "main", number, 100);
        trade.credential = Some(Credential { code: code.to_owned(), expires_at: trade.expires_at });
        trade
    }

    #[test]
    fn the_oldest_trade_makes_room_with_all_that_names_it() {
        let (ledger, now) = (Ledger::new(2), clock::now());
        let first = ledger.place(trade("A", "a"), now).unwrap();
        let trade_no = ledger.pay(&first.key(), now).unwrap().trade_no.unwrap();
        assert!(ledger.by_trade_no(&trade_no, now).is_some());
        for (number, code) in [("B", "b"), ("C", "c")] {
            ledger.place(trade(number, code), now).unwrap();
        }
        assert!(ledger.get(&first.key(), now).is_none());
        assert!(ledger.by_code("a", now).is_none() && ledger.by_trade_no(&trade_no, now).is_none());
        assert_eq!(ledger.newest(10, |_| true).len(), 2);
        let inner = ledger.lock();
        assert_eq!((inner.order.len(), inner.codes.len(), inner.trade_nos.len()), (2, 2, 0));
    }

    #[test]
    fn a_fresh_code_replaces_the_older_one() {
        let (ledger, now) = (Ledger::new(2), clock::now());
        ledger.place(trade("A", "a"), now).unwrap();
        ledger.place(trade("A", "b"), now).unwrap();
        assert!(ledger.by_code("a", now).is_none() && ledger.by_code("b", now).is_some());
        let mut other = trade("A", "c");
        other.digest = [1; 32];
        assert_eq!(ledger.place(other, now).unwrap_err(), Refusal::Differs);
        assert!(ledger.by_code("b", now).is_some());
    }

    #[test]
    fn nothing_is_paid_twice_late_or_after_closing() {
        let (ledger, now) = (Ledger::new(10), clock::now());
        let [paid, closed, late] =
            ["P", "C", "L"].map(|number| ledger.place(trade(number, number), now).unwrap().key());
        ledger.pay(&paid, now).unwrap();
        ledger.close(&closed, now).unwrap();
        assert_eq!(ledger.pay(&paid, now).unwrap_err(), Refusal::Paid);
        assert_eq!(ledger.close(&paid, now).unwrap_err(), Refusal::Paid);
        assert_eq!(ledger.pay(&closed, now).unwrap_err(), Refusal::Closed);
        assert_eq!(ledger.pay(&late, now + time::Duration::days(8)).unwrap_err(), Refusal::Expired);
    }
}
