//! The state of the simulator, which all handlers share.

use std::sync::Arc;

use anyhow::Result;

use crate::alipay::notify as alipay;
use crate::callback::{Overrides, SignedCallback};
use crate::calls::Calls;
use crate::clock;
use crate::deliveries::Deliveries;
use crate::faults::Faults;
use crate::keys::SimKeys;
use crate::ledger::{Gateway, Ledger, Refusal, Trade, TradeKey};
use crate::wechat::notify as wechat;

/// The options of a simulator.
#[derive(Debug, Clone)]
pub struct Options {
    /// The pauses of the callback schedules are divided by this number.
    pub speed: f64,
    /// The seed of the dice that decide on faults.
    pub seed: u64,
    /// The maximum number of trades; the oldest is dropped for a new one.
    pub max_trades: usize,
    /// The maximum number of callbacks in flight.
    pub max_deliveries: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { speed: 1.0, seed: 1, max_trades: 1_000_000, max_deliveries: 64 }
    }
}

/// The state that all handlers share.
pub(crate) type Shared = Arc<Sim>;

#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) keys: SimKeys,
    pub(crate) ledger: Ledger,
    pub(crate) faults: Faults,
    pub(crate) calls: Calls,
    pub(crate) deliveries: Deliveries,
}

impl Sim {
    pub(crate) fn new(keys: SimKeys, options: &Options) -> Result<Sim> {
        Ok(Sim {
            keys,
            ledger: Ledger::new(options.max_trades),
            faults: Faults::new(options.seed),
            calls: Calls::default(),
            deliveries: Deliveries::new(options.speed, options.max_deliveries)?,
        })
    }

    /// The trade with this number; `Differs` if several accounts use it and none is named.
    pub(crate) fn one_trade(
        &self,
        gateway: Gateway,
        out_trade_no: &str,
        account: Option<&str>,
    ) -> Result<TradeKey, Refusal> {
        let accounts: Vec<String> = match (account, gateway) {
            (Some(account), _) => vec![account.to_owned()],
            (None, Gateway::Alipay) => self.keys.alipay.iter().map(|merchant| merchant.account.clone()).collect(),
            (None, Gateway::Wechat) => self.keys.wechat.iter().map(|merchant| merchant.account.clone()).collect(),
        };
        let mut found = self.ledger.find(gateway, &accounts, out_trade_no);
        match found.len() {
            0 | 1 => found.pop().ok_or(Refusal::Unknown),
            _ => Err(Refusal::Differs),
        }
    }

    /// The callback of the trade's last notification; `None` if its account does not exist.
    pub(crate) fn render(&self, trade: &Trade, overrides: &Overrides) -> Option<SignedCallback> {
        match trade.gateway() {
            Gateway::Alipay => {
                self.keys.alipay_account(&trade.account).map(|merchant| alipay::render(merchant, trade, overrides))
            }
            Gateway::Wechat => {
                self.keys.wechat_account(&trade.account).map(|merchant| wechat::render(merchant, trade, overrides))
            }
        }
    }

    /// The address of the browser after the payment, if the merchant named one.
    pub(crate) fn return_url(&self, trade: &Trade) -> Option<String> {
        let merchant = self.keys.alipay_account(&trade.account).filter(|_| trade.gateway() == Gateway::Alipay)?;
        alipay::return_url(merchant, trade, clock::now())
    }

    /// The payee's number at the gateway.
    pub(crate) fn merchant_id(&self, trade: &Trade) -> String {
        let id = match trade.gateway() {
            Gateway::Alipay => self.keys.alipay_account(&trade.account).map(|merchant| &merchant.seller_id),
            Gateway::Wechat => self.keys.wechat_account(&trade.account).map(|merchant| &merchant.mchid),
        };
        id.cloned().unwrap_or_default()
    }
}
