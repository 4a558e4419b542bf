//! The form in which clients see an order.

use domain::{ExtraState, Money, OrderStatus};
use gateway::Payment;
use serde::Serialize;
use serde_json::Value;
use store::tables::orders::{NewOrder, Order};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// An order.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OrderView {
    /// 32 hex digits.
    pub id: String,
    /// The number that both gateways use for it.
    pub order_no: String,
    /// The merchant's own number of the purchase, if there is one.
    pub merchant_order_no: Option<String>,
    /// As created.
    pub product_type: String,
    /// As created.
    pub subject: String,
    /// In yuan.
    #[schema(example = "12.34")]
    pub amount: String,
    /// `alipay` or `wechat`.
    pub payment_method: String,
    /// As created.
    pub scene: String,
    /// The merchant account that receives the money.
    pub account: String,
    /// `pending` `paid` `closed` `refunding` `partially_refunded` `refunded`.
    #[schema(example = "pending")]
    pub status: String,
    /// The gateway's number of the trade, once the order is paid.
    pub trade_no: Option<String>,
    /// In yuan.
    #[schema(example = "0.00")]
    pub refunded_amount: String,
    /// The last moment to pay.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// By the gateway's clock, or by ours if the gateway states an impossible time.
    #[serde(with = "time::serde::rfc3339::option")]
    pub paid_at: Option<OffsetDateTime>,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339::option")]
    pub closed_at: Option<OffsetDateTime>,
    /// Whether the close of the order was requested. While the order is `pending`, the buyer can still pay it.
    pub close_requested: bool,
    /// Money that the buyer paid but did not owe for this order: a payment after the order was closed, a second
    /// payment, or a payment of another amount. Null: there is none. While it is `held` or `returning`, inform the
    /// buyer, and never ask them to pay again.
    pub extra_payment: Option<ExtraPaymentView>,
    /// As created.
    #[schema(value_type = Object)]
    pub metadata: Value,
    /// Increases with each change.
    pub version: i64,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

impl OrderView {
    /// The order as its owner sees it.
    pub fn of(order: &Order) -> OrderView {
        OrderView {
            id: order.id.to_string(),
            order_no: order.order_no.to_string(),
            merchant_order_no: order.merchant_order_no.as_ref().map(ToString::to_string),
            product_type: order.product_type.to_string(),
            subject: order.subject.to_string(),
            amount: order.amount.to_string(),
            payment_method: order.payment_method.to_string(),
            scene: order.scene.to_string(),
            account: order.account.to_string(),
            status: order.status.to_string(),
            trade_no: order.trade_no.as_ref().map(ToString::to_string),
            refunded_amount: order.refunded_amount.to_string(),
            expires_at: order.expires_at,
            paid_at: order.paid_at,
            closed_at: order.closed_at,
            close_requested: order.close_requested_at.is_some(),
            extra_payment: ExtraPaymentView::of(order.extra_state, order.extra_amount),
            metadata: order.metadata.clone(),
            version: order.version,
            created_at: order.created_at,
            updated_at: order.updated_at,
        }
    }
}

/// Money that was not owed, and its state.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExtraPaymentView {
    /// `held`: the merchant has it and decides. `returning`: it is on its way back. `returned`: the buyer has it back.
    #[schema(example = "held")]
    pub state: String,
    /// In yuan: how much of it is in that state. Null: the gateway has stated no amount.
    #[schema(example = "12.34")]
    pub amount: Option<String>,
}

impl ExtraPaymentView {
    /// From the columns of the order's row.
    pub fn of(state: Option<ExtraState>, amount: Option<Money>) -> Option<ExtraPaymentView> {
        let amount = amount.map(|amount| amount.to_string());
        state.map(|state| ExtraPaymentView { state: state.to_string(), amount })
    }
}

/// The row of an order that is being created, without a read from the database.
pub fn created(new: &NewOrder) -> Order {
    Order {
        id: new.id,
        user_id: new.user_id.clone(),
        order_no: new.order_no.clone(),
        product_type: new.product_type.clone(),
        subject: new.subject.clone(),
        amount: new.amount,
        payment_method: new.payment_method,
        scene: new.scene,
        account: new.account.clone(),
        status: OrderStatus::Pending,
        trade_no: None,
        refunded_amount: Money::ZERO,
        expires_at: new.expires_at,
        paid_at: None,
        closed_at: None,
        close_requested_at: None,
        extra_state: None,
        extra_amount: None,
        merchant_order_no: new.purchase.merchant_order_no.clone(),
        vouched_by: Some(new.purchase.vouched_by),
        voucher: new.purchase.voucher.clone(),
        offer_id: new.purchase.offer_id.clone(),
        metadata: new.metadata.clone(),
        prepay: new.prepay.clone(),
        version: 1,
        created_at: new.created_at,
        updated_at: new.created_at,
    }
}

/// An order and what the buyer needs to pay it.
#[derive(Serialize, ToSchema)]
pub struct PayableOrder {
    /// The order.
    pub order: OrderView,
    /// What the frontend does next.
    #[schema(value_type = PaymentView)]
    pub payment: Payment,
    /// Lets its holder read this order, and nothing else, until a day after it expires.
    pub view_token: String,
}

/// What the frontend does next.
#[derive(Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PaymentView {
    /// Send the browser to this URL.
    Redirect {
        /// The URL of the cashier page.
        url: String,
    },
    /// Show a QR code of this text.
    Qr {
        /// The text to encode.
        code_url: String,
    },
    /// Pass these parameters to the gateway's SDK or script.
    Invoke {
        /// In the form that the SDK expects.
        #[schema(value_type = Object)]
        params: Value,
    },
}

/// Orders, newest first.
#[derive(Serialize, ToSchema)]
pub struct OrderPage {
    /// This page.
    pub orders: Vec<OrderView>,
    /// The cursor of the next page; null on the last page.
    pub next_cursor: Option<String>,
}
