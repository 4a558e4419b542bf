//! One trade as a gateway knows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::refund::Refund;
use crate::clock;
use crate::crypto::{DIGITS, random, random_text};

/// One of the two gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gateway {
    /// Alipay.
    Alipay,
    /// WeChat Pay.
    Wechat,
}

/// The product a trade was placed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Product {
    /// `alipay.trade.page.pay`.
    Page,
    /// `alipay.trade.wap.pay`.
    Wap,
    /// `alipay.trade.app.pay`.
    AlipayApp,
    /// `alipay.trade.precreate`.
    Qr,
    /// `/v3/pay/transactions/native`.
    Native,
    /// `/v3/pay/transactions/jsapi`: official account and mini program.
    Jsapi,
    /// `/v3/pay/transactions/h5`.
    H5,
    /// `/v3/pay/transactions/app`.
    WechatApp,
}

impl Product {
    /// The gateway of this product.
    #[must_use]
    pub fn gateway(self) -> Gateway {
        match self {
            Product::Page | Product::Wap | Product::AlipayApp | Product::Qr => Gateway::Alipay,
            Product::Native | Product::Jsapi | Product::H5 | Product::WechatApp => Gateway::Wechat,
        }
    }

    /// The value of `trade_type` at WeChat Pay; empty for Alipay.
    #[must_use]
    pub fn trade_type(self) -> &'static str {
        match self {
            Product::Native => "NATIVE",
            Product::Jsapi => "JSAPI",
            Product::H5 => "MWEB",
            Product::WechatApp => "APP",
            _ => "",
        }
    }
}

/// The state of a trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TradeState {
    /// Requested at Alipay, but the buyer has not acted: for a query it does not exist yet.
    Offered,
    /// Waiting for the buyer.
    Waiting,
    /// Paid.
    Paid,
    /// Closed unpaid.
    Closed,
}

/// The event that a notification reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// The trade was paid.
    Paid,
    /// The trade was closed unpaid (Alipay only).
    Closed,
    /// A refund reached its final state.
    Refund,
}

/// One notification, with all its deliveries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// `notify_id` at Alipay, `id` at WeChat Pay: the same in every delivery.
    pub id: String,
    /// The event that it reports.
    pub event: Event,
    /// The merchant's number of the refund that it reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refund: Option<String>,
    /// The number of requests sent, authentic and wrong ones together.
    pub sent: u32,
    /// The number of authentic requests that were answered with success.
    pub accepted: u32,
    /// The number of forged or tampered requests that were answered with success: it must stay 0.
    pub wrong_accepted: u32,
    /// The last answer, or the error if there was none.
    pub last_answer: Option<String>,
}

/// Identifies a trade within the simulator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TradeKey {
    /// The gateway.
    pub gateway: Gateway,
    /// The account it belongs to: numbers are unique only per merchant.
    pub account: String,
    /// The merchant's number.
    pub out_trade_no: String,
    /// 0 for the first payment of that number, 1 for the next, and so on.
    pub nth: u32,
}

/// What the client needs to pay: a code or a `prepay_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The value as given to the merchant.
    pub code: String,
    /// After this time it is no longer valid.
    pub expires_at: OffsetDateTime,
}

/// One trade.
#[derive(Debug, Clone)]
pub struct Trade {
    /// The product, which also determines the gateway.
    pub product: Product,
    /// The account's name.
    pub account: String,
    /// The merchant's number.
    pub out_trade_no: String,
    /// 0 for the first payment of that number, 1 for the next, and so on.
    pub nth: u32,
    /// `app_id` or `appid` of the request; if empty, the account's own.
    pub app_id: String,
    /// The order's amount.
    pub amount_fen: i64,
    /// What is bought: `subject` or `description`.
    pub subject: String,
    /// `passback_params` or `attach`.
    pub attach: Option<String>,
    /// The payer, if the request named one.
    pub openid: Option<String>,
    /// The address for callbacks; `None` means no callbacks.
    pub notify_url: Option<String>,
    /// The address of the browser after the payment (Alipay page and wap).
    pub return_url: Option<String>,
    /// The address of the browser after the buyer cancels (Alipay wap).
    pub quit_url: Option<String>,
    /// The state.
    pub state: TradeState,
    /// The gateway's own number, if it has one already.
    pub trade_no: Option<String>,
    /// When it was requested.
    pub created_at: OffsetDateTime,
    /// The last moment to pay.
    pub expires_at: OffsetDateTime,
    /// When it was paid.
    pub paid_at: Option<OffsetDateTime>,
    /// When it was closed.
    pub closed_at: Option<OffsetDateTime>,
    /// How many times the merchant requested a credential for it.
    pub requests: u32,
    /// The newest credential; older ones are no longer valid.
    pub credential: Option<Credential>,
    /// Digest of the request's parameters: a repeat must have the same.
    pub digest: [u8; 32],
    /// Its notifications.
    pub notices: Vec<Notice>,
    /// Its refunds, in the order in which they were accepted.
    pub refunds: Vec<Refund>,
    /// The limits for refunds that its merchant exceeded, and how many times.
    pub violations: BTreeMap<&'static str, u32>,
}

impl Trade {
    /// A trade waiting for its buyer, with nothing optional set.
    #[must_use]
    pub fn new(product: Product, account: &str, out_trade_no: &str, amount_fen: i64) -> Trade {
        let now = clock::now();
        Trade {
            product,
            account: account.to_owned(),
            out_trade_no: out_trade_no.to_owned(),
            nth: 0,
            app_id: String::new(),
            amount_fen,
            subject: String::new(),
            attach: None,
            openid: None,
            notify_url: None,
            return_url: None,
            quit_url: None,
            state: TradeState::Waiting,
            trade_no: None,
            created_at: now,
            expires_at: now + Duration::days(7),
            paid_at: None,
            closed_at: None,
            requests: 1,
            credential: None,
            digest: [0; 32],
            notices: Vec::new(),
            refunds: Vec::new(),
            violations: BTreeMap::new(),
        }
    }

    /// The same trade, paid now: a load generator needs this for a callback.
    #[must_use]
    pub fn paid(mut self) -> Trade {
        self.settle(clock::now());
        self
    }

    /// Its gateway.
    #[must_use]
    pub fn gateway(&self) -> Gateway {
        self.product.gateway()
    }

    /// Its key within the simulator.
    #[must_use]
    pub fn key(&self) -> TradeKey {
        TradeKey { nth: self.nth, ..TradeKey::new(self.gateway(), &self.account, &self.out_trade_no) }
    }

    /// The same order paid again, with a separate trade.
    pub(crate) fn again(&self, nth: u32, now: OffsetDateTime) -> Trade {
        let mut again = Trade {
            nth,
            trade_no: None,
            created_at: now,
            closed_at: None,
            credential: None,
            notices: Vec::new(),
            refunds: Vec::new(),
            violations: BTreeMap::new(),
            ..self.clone()
        };
        again.settle(now);
        again
    }

    pub(crate) fn is_expired(&self, now: OffsetDateTime) -> bool {
        now > self.expires_at
    }

    /// The buyer's first action: Alipay creates the trade only now.
    pub(crate) fn open(&mut self, now: OffsetDateTime) {
        self.state = TradeState::Waiting;
        self.trade_no = Some(trade_no(self.gateway(), now));
    }

    pub(crate) fn settle(&mut self, now: OffsetDateTime) {
        if self.trade_no.is_none() {
            self.open(now);
        }
        self.state = TradeState::Paid;
        self.paid_at = Some(now);
        self.notices.push(Notice::new(self.gateway(), Event::Paid, now));
    }

    pub(crate) fn close(&mut self, now: OffsetDateTime) {
        self.state = TradeState::Closed;
        self.closed_at = Some(now);
    }
}

impl TradeKey {
    /// The first payment of a number.
    pub(crate) fn new(gateway: Gateway, account: &str, out_trade_no: &str) -> TradeKey {
        TradeKey { gateway, account: account.to_owned(), out_trade_no: out_trade_no.to_owned(), nth: 0 }
    }
}

impl Notice {
    pub(crate) fn new(gateway: Gateway, event: Event, now: OffsetDateTime) -> Notice {
        let id = match gateway {
            Gateway::Alipay => format!("{}00222{}", clock::day(now), random_text(21, DIGITS)),
            Gateway::Wechat => uuid::Builder::from_random_bytes(random()).into_uuid().to_string(),
        };
        Notice { id, event, refund: None, sent: 0, accepted: 0, wrong_accepted: 0, last_answer: None }
    }
}

fn trade_no(gateway: Gateway, now: OffsetDateTime) -> String {
    let day = clock::day(now);
    match gateway {
        Gateway::Alipay => format!("{day}22001{}", random_text(15, DIGITS)),
        Gateway::Wechat => format!("42000{}{day}{}", random_text(5, DIGITS), random_text(10, DIGITS)),
    }
}
