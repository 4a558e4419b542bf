//! `payment_orders` for operators: every column except those that may name the payer.

use domain::{
    AccountName, ExtraState, MerchantOrderNo, Money, OfferId, OrderId, OrderNo, OrderRef, OrderStatus, PaymentMethod,
    ProductType, Scene, Subject, TradeNo, UserId, VouchedBy,
};
use sqlx::PgExecutor;
use time::OffsetDateTime;

use crate::error::DbError;

/// An order without the data that may name the payer, for the people who operate the service.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Our id, for paths and events.
    pub id: OrderId,
    /// The buyer.
    pub user_id: UserId,
    /// Our number for the gateways.
    pub order_no: OrderNo,
    /// What kind of thing is sold.
    pub product_type: ProductType,
    /// What the buyer reads.
    pub subject: Subject,
    /// The amount to pay.
    pub amount: Money,
    /// The gateway.
    pub payment_method: PaymentMethod,
    /// Where the buyer pays.
    pub scene: Scene,
    /// The account that receives the money.
    pub account: AccountName,
    /// The state of the order.
    pub status: OrderStatus,
    /// The trade that paid it.
    pub trade_no: Option<TradeNo>,
    /// The amount that was refunded.
    pub refunded_amount: Money,
    /// The last moment to pay.
    pub expires_at: OffsetDateTime,
    /// When it was paid, by the gateway's clock.
    pub paid_at: Option<OffsetDateTime>,
    /// When it was closed, by our clock.
    pub closed_at: Option<OffsetDateTime>,
    /// When a close was first requested, by our clock.
    pub close_requested_at: Option<OffsetDateTime>,
    /// What happened to payments that the order was not owed; `None`: there were none.
    pub extra_state: Option<ExtraState>,
    /// How much of that money is in that state, if the gateway has stated it.
    pub extra_amount: Option<Money>,
    /// The merchant's own number of the purchase.
    pub merchant_order_no: Option<MerchantOrderNo>,
    /// Who vouches for the terms. `None`: an order of an earlier release.
    pub vouched_by: Option<VouchedBy>,
    /// Which backend or issuer of offers that is.
    pub voucher: Option<String>,
    /// The offer by which it was placed.
    pub offer_id: Option<OfferId>,
    /// Increases with each change.
    pub version: i64,
    /// By our clock.
    pub created_at: OffsetDateTime,
    /// By our clock.
    pub updated_at: OffsetDateTime,
    /// When we last queried the gateway.
    pub checked_at: Option<OffsetDateTime>,
    /// The gateway's answer at that time, in its own words.
    pub gateway_state: Option<String>,
}

/// Reads outlines by a clause: one list of columns for every query.
macro_rules! select_outlines {
    ($tail:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Outline,
            r#"
            select
              id as "id: OrderId", user_id as "user_id: UserId", order_no as "order_no: OrderNo",
              product_type as "product_type: ProductType", subject as "subject: Subject", amount as "amount: Money",
              payment_method as "payment_method: PaymentMethod", scene as "scene: Scene",
              account as "account: AccountName", status as "status: OrderStatus", trade_no as "trade_no: TradeNo",
              refunded_amount as "refunded_amount: Money", expires_at,
              case when paid_at between timestamptz '2000-01-01 00:00Z' and timestamptz '9999-12-31 00:00Z'
                then paid_at end as paid_at,
              closed_at, close_requested_at, extra_state as "extra_state: ExtraState",
              extra_amount as "extra_amount: Money", merchant_order_no as "merchant_order_no: MerchantOrderNo",
              vouched_by as "vouched_by: VouchedBy", voucher, offer_id as "offer_id: OfferId", version, created_at, updated_at, checked_at, gateway_state
            from payment_orders
            "# + $tail
            $(, $argument)*
        )
    };
}

/// The outline of an order, by its id or its number. If one order's number equals another's id, the id wins.
///
/// # Errors
/// [`DbError`].
pub async fn of(db: impl PgExecutor<'_>, id_or_number: &str) -> Result<Option<Outline>, DbError> {
    Ok(select_outlines!(
        r#"
        where id = $1::text::bpchar or order_no = $1
        order by id = $1::text::bpchar desc
        limit 1
        "#,
        id_or_number,
    )
    .fetch_optional(db)
    .await?)
}

/// The orders with this number: none, one, or two if the number is ambiguous. Two gateways may give two trades one
/// number, and all orders of a purchase may be closed.
///
/// # Errors
/// [`DbError`].
pub async fn named(db: impl PgExecutor<'_>, name: &OrderRef) -> Result<Vec<Outline>, DbError> {
    Ok(match name {
        OrderRef::Id(id) => select_outlines!("where id = $1", *id as OrderId).fetch_all(db).await?,
        OrderRef::OrderNo(order_no) => select_outlines!("where order_no = $1", order_no.as_str()).fetch_all(db).await?,
        OrderRef::MerchantOrderNo(number) => {
            // Of the orders of a purchase, the one that is not closed.
            select_outlines!(
                r#"
                where merchant_order_no = $1 and (
                  not is_closed
                  or not exists (select from payment_orders other where other.merchant_order_no = $1 and not other.is_closed)
                )
                order by id desc
                limit 2
                "#,
                number.as_str(),
            )
            .fetch_all(db)
            .await?
        }
        OrderRef::TradeNo(trade_no) => {
            select_outlines!(
                r#"
                where id = any(array(
                  select distinct order_id from payment_transactions
                  where action_type = 'payment' and gateway_no = $1
                  limit 2
                ))
                "#,
                trade_no.as_str(),
            )
            .fetch_all(db)
            .await?
        }
        OrderRef::RefundNo(refund_no) => {
            select_outlines!(
                "where id = any(array(select order_id from refund_records where refund_no = $1))",
                refund_no.as_str(),
            )
            .fetch_all(db)
            .await?
        }
    })
}
