//! What a gateway answers when it is queried about an order, and how a close ended.

use domain::{Fact, Merchant};

use crate::verified::Verified;

/// An order as the gateway sees it. `fact` is [`Fact::Nothing`] while the buyer can still pay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trade {
    /// What happened.
    pub fact: Fact,
    /// The gateway's own word for the state, for a person to read.
    pub state: String,
    /// Whose it is by the answer, as far as the answer says.
    pub merchant: Merchant,
    /// See [`domain::Notification::doubt`].
    pub doubt: Option<String>,
}

/// What a gateway answers when it is asked about an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TradeAnswer {
    /// It knows the order, and has signed how it stands.
    Found(Verified<Trade>),
    /// It knows no such order. WeChat Pay says so in an unsigned 404, so it proves nothing about money.
    Absent {
        /// The gateway's own word for it, for a person to read.
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
    /// Nobody can pay it any more.
    Closed,
    /// The gateway knows no such trade (Alipay, before the buyer came): it may still come to be until it expires.
    NoTrade,
    /// It is in another state: query.
    NotClosed,
}
