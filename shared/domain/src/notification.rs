//! The messages of the gateways about payments, translated into our own terms.

use time::OffsetDateTime;

use crate::account::AccountName;
use crate::money::Money;
use crate::order_no::TradeNo;
use crate::payment_method::PaymentMethod;
use crate::refund_report::{RefundReport, RefundState};

/// One authentic message of a gateway, parsed and translated. Only a gateway adapter makes it, and returns it as
/// `Verified<Notification>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The gateway that sent it.
    pub method: PaymentMethod,
    /// The account whose keys verified it.
    pub account: AccountName,
    /// The gateway's id of this message, the same in each redelivery.
    pub notice_id: String,
    /// Whether it answers a query of ours, or the gateway sent it at some time of its own choice.
    pub source: Source,
    /// Whether the message names the merchant and the app of `account`. A field that it leaves out does not count as
    /// wrong.
    pub merchant: Merchant,
    /// The order number that the gateway states. It may not be one of ours.
    pub order_no: String,
    /// The content of the message.
    pub fact: Fact,
    /// The fields of the message that we did not trust, although it is authentic. Names of fields, for the evidence.
    pub doubt: Option<String>,
}

/// How a message reached us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A notice. It was true when the gateway wrote it, which may be hours ago.
    Notice,
    /// The answer to a query. It shows the present state.
    Query,
}

/// The merchant that a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merchant {
    /// The merchant and app of the account that was addressed.
    Ours,
    /// The merchant of that account, with an app that is not one of its apps today. An order that was placed with this
    /// app accepts the message.
    OtherApp {
        /// The app.
        app: String,
        /// The ids found, for the case.
        ids: String,
    },
    /// Another merchant: the ids found, for the case.
    Other(String),
}

/// What happened at the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// The buyer paid. `amount` is the order's whole amount, coupons included.
    Paid {
        /// The gateway's number of the trade.
        trade_no: TradeNo,
        /// `None`: an amount in another currency or beyond [`Money::MAX`], which no order of ours has.
        amount: Option<Money>,
        /// When the buyer paid, by the gateway's clock.
        paid_at: OffsetDateTime,
    },
    /// The trade was closed without a payment.
    ClosedUnpaid,
    /// The trade was paid, and some or all of it has been returned since. The message names no single refund.
    PaidAndReturned(ReturnedTrade),
    /// One refund is final at the gateway, or the message hints that it may be.
    Refund {
        /// The trade that was paid.
        trade: Box<ReturnedTrade>,
        /// The merchant's number of the refund, as the gateway states it. It may not be one of ours.
        refund_no: String,
        /// What the message states about it. `Processing` is only a hint: the refund must be queried.
        report: RefundReport,
    },
    /// Nothing that changes a state (the buyer is still at the cashier, an unknown kind of message).
    Nothing,
}

impl Fact {
    /// The number of the refund that the fact names.
    pub fn number(&self) -> Option<&str> {
        match self {
            Fact::Refund { refund_no, .. } => Some(refund_no),
            _ => None,
        }
    }
}

/// A trade of which money was returned, as one message states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnedTrade {
    /// The gateway's number of the trade.
    pub trade_no: TradeNo,
    /// What the buyer paid, coupons included. `None`: not stated, or an amount that no order of ours has.
    pub paid: Option<Money>,
    /// When the buyer paid, by the gateway's clock, if it is stated.
    pub paid_at: Option<OffsetDateTime>,
    /// The total refunded of this trade, if it is stated. Alipay states this sum; WeChat Pay never does.
    pub returned: Option<Money>,
}

impl Fact {
    /// The trade of which money was returned, or may have been. A notice alone never settles a payment of this trade.
    pub fn returned_trade(&self) -> Option<&ReturnedTrade> {
        match self {
            Fact::PaidAndReturned(trade) => Some(trade),
            // No money was or will be returned under this number.
            Fact::Refund { report, .. } if report.state == RefundState::Closed => None,
            Fact::Refund { trade, .. } => Some(trade),
            Fact::Paid { .. } | Fact::ClosedUnpaid | Fact::Nothing => None,
        }
    }
}
