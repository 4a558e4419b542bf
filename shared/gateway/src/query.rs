//! What a gateway answers when it is queried about an order, and how a close ended.

use domain::{Fact, Merchant};

use crate::verified::Verified;

/// An order as the gateway sees it. `fact` is [`Fact::Nothing`] while the buyer can still pay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trade {
    /// What happened.
    pub fact: Fact,
    /// The gateway's own name of the state, for a person to read.
    pub state: String,
    /// The merchant that the order belongs to, as far as the answer states it.
    pub merchant: Merchant,
    /// See [`domain::Notification::doubt`].
    pub doubt: Option<String>,
}

/// What a gateway answers when we query an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TradeAnswer {
    /// The gateway knows the order and has signed its state.
    Found(Verified<Trade>),
    /// The gateway knows no such order. WeChat Pay says so in an unsigned 404, so it proves nothing about money.
    Absent {
        /// The gateway's own name of this state, for a person to read.
        state: String,
    },
}

impl TradeAnswer {
    /// The trade, if the gateway knows one.
    pub fn found(self) -> Option<Verified<Trade>> {
        match self {
            TradeAnswer::Found(trade) => Some(trade),
            TradeAnswer::Absent { .. } => None,
        }
    }
}

/// How a close ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseOutcome {
    /// The buyer can no longer pay it.
    Closed,
    /// The gateway knows no such trade (Alipay, before the buyer opens the cashier). A trade may still appear until the
    /// order expires.
    NoTradeYet,
    /// The gateway knows no such trade, and none can appear (WeChat Pay: nothing is left that the buyer could pay).
    NoTrade,
    /// The order is in another state: query.
    NotClosed,
}
