//! What a gateway tells us about money, in our own words.

use time::OffsetDateTime;

use crate::account::AccountName;
use crate::money::Money;
use crate::order_no::TradeNo;
use crate::payment_method::PaymentMethod;

/// One authentic message of a gateway, read and translated. Only an adapter makes it, and hands it out as
/// `Verified<Notification>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The gateway that speaks.
    pub method: PaymentMethod,
    /// The account whose keys proved it.
    pub account: AccountName,
    /// The gateway's id of this message, the same in each redelivery.
    pub notice_id: String,
    /// Whether the gateway was just asked, or wrote by itself at some time.
    pub source: Source,
    /// Whether the message names the merchant and the app of `account`. What it leaves out is not wrong.
    pub merchant: Merchant,
    /// The order's number as the gateway has it; not yet known to be one of ours.
    pub order_no: String,
    /// What it tells.
    pub fact: Fact,
    /// What in the message was not believed, although it is authentic: names of fields, for the evidence.
    pub doubt: Option<String>,
}

/// How a message came to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A notice: true when the gateway wrote it, which may be hours ago.
    Notice,
    /// The answer to a query: how things stand now.
    Query,
}

/// Whose money a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merchant {
    /// The merchant and app of the account that was addressed.
    Ours,
    /// The merchant of that account, and an app that is none of its apps today. An order that was placed with this app
    /// takes it.
    OtherApp {
        /// The app.
        app: String,
        /// The ids found, for the case.
        ids: String,
    },
    /// Somebody else: the ids found, for the case.
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
    /// The trade was closed and nobody had paid.
    ClosedUnpaid,
    /// The trade was paid, and some or all of it has been returned since. It tells of no single refund.
    PaidAndReturned(ReturnedTrade),
    /// One refund has reached an end, or is said to have.
    Refund {
        /// The trade that was paid.
        trade: Box<ReturnedTrade>,
        /// The merchant's number of the refund, as the gateway has it. It need not be one of ours.
        refund_no: String,
        /// `None` where the message does not tell this refund's own amount.
        amount: Option<Money>,
        /// The gateway's number of the refund, where it has one.
        gateway_refund_no: Option<String>,
        /// When the money went back, by the gateway's clock, where it tells.
        at: Option<OffsetDateTime>,
        /// How it ended.
        outcome: RefundOutcome,
    },
    /// Nothing that changes a state (the buyer is still at the cashier, an unknown kind of message).
    Nothing,
}

impl Fact {
    /// The number of the refund that a message names.
    pub fn number(&self) -> Option<&str> {
        match self {
            Fact::Refund { refund_no, .. } => Some(refund_no),
            _ => None,
        }
    }
}

/// A trade of which money went back, as one message tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnedTrade {
    /// The gateway's number of the trade.
    pub trade_no: TradeNo,
    /// What the buyer paid, coupons included. `None`: not stated, or an amount that no order of ours has.
    pub paid: Option<Money>,
    /// When the buyer paid, by the gateway's clock, where it is stated.
    pub paid_at: Option<OffsetDateTime>,
    /// What went back of this trade in all, where it is stated. Alipay states this sum; WeChat Pay never does.
    pub returned: Option<Money>,
}

impl Fact {
    /// The trade of which money went back, or may have gone back: no payment of it is settled by a notice alone.
    pub fn returned_trade(&self) -> Option<&ReturnedTrade> {
        match self {
            Fact::PaidAndReturned(trade) => Some(trade),
            // Nothing was or will be paid back under this number.
            Fact::Refund { outcome: RefundOutcome::Closed, .. } => None,
            Fact::Refund { trade, .. } => Some(trade),
            Fact::Paid { .. } | Fact::ClosedUnpaid | Fact::Nothing => None,
        }
    }
}

/// How a refund ended, by the word of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefundOutcome {
    /// The money went back.
    Succeeded,
    /// It will not go back under this number.
    Closed,
    /// It could not be delivered; a person has to act.
    Abnormal,
    /// A hint only: the refund has to be asked for.
    Hint,
}
