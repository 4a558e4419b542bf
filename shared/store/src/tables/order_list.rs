//! `payment_orders` for the people who search and count them: by any mix of filters, of all users.
//!
//! One query would serve every filter, but one plan would not. So the list is driven by the filter that leaves the fewest
//! rows, and the others only drop rows.

use domain::{
    AccountName, ExtraState, MerchantOrderNo, Money, OrderId, OrderNo, OrderStatus, PaymentMethod, ProductType, Scene,
    Subject, TradeNo, UserId,
};
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;

use crate::error::DbError;
use crate::page::{Created, LOOKED_THROUGH, LOOKED_THROUGH_FIRST, Part};

/// Which orders to list. A filter that is `None` (or empty) does not restrict the list.
#[derive(Debug, Clone, Default)]
pub struct OrderFilter {
    /// Only orders in one of these states.
    pub statuses: Vec<OrderStatus>,
    /// Only orders of this gateway.
    pub payment_method: Option<PaymentMethod>,
    /// Only orders of this account.
    pub account: Option<AccountName>,
    /// Only orders of this scene.
    pub scene: Option<Scene>,
    /// Only orders of this kind of product.
    pub product_type: Option<ProductType>,
    /// Only orders of this user.
    pub user_id: Option<UserId>,
    /// Only orders of this amount or more.
    pub amount_from: Option<Money>,
    /// Only orders of this amount or less.
    pub amount_to: Option<Money>,
    /// Only orders created then.
    pub created: Created,
    /// Only orders paid at this time or later, by the gateway's clock.
    pub paid_from: Option<OffsetDateTime>,
    /// Only orders paid before this time.
    pub paid_to: Option<OffsetDateTime>,
    /// Only orders with a case that is not resolved, or only orders without one.
    pub has_case: Option<bool>,
    /// Only orders with money that was not owed and is in this state.
    pub extra_payment: Option<ExtraState>,
}

impl OrderFilter {
    /// Whether a filter finds its orders by an index of its own: the user, an open case, money that was not owed.
    pub fn has_an_index(&self) -> bool {
        self.user_id.is_some() || self.has_case == Some(true) || self.extra_payment.is_some()
    }

    /// Whether a filter is set that has no index of its own.
    pub fn reads_on(&self) -> bool {
        let kinds = self.payment_method.is_some() || self.account.is_some() || self.scene.is_some();
        let amounts = self.amount_from.is_some() || self.amount_to.is_some();
        let paid = self.paid_from.is_some() || self.paid_to.is_some();
        let others = self.product_type.is_some() || self.has_case == Some(false) || !self.statuses.is_empty();
        kinds || amounts || paid || others
    }

    fn statuses(&self) -> Vec<&'static str> {
        self.statuses.iter().map(|status| status.as_str()).collect()
    }
}

/// An order of the list.
#[derive(Debug, Clone)]
pub struct ListedOrder {
    /// Our id.
    pub id: OrderId,
    /// Our number for the gateways.
    pub order_no: OrderNo,
    /// The merchant's own number of the purchase.
    pub merchant_order_no: Option<MerchantOrderNo>,
    /// The gateway's number of the payment; `None`: it is not paid.
    pub trade_no: Option<TradeNo>,
    /// What the buyer reads.
    pub subject: Subject,
    /// What kind of thing is sold.
    pub product_type: ProductType,
    /// The buyer.
    pub user_id: UserId,
    /// The gateway.
    pub payment_method: PaymentMethod,
    /// The account that receives the money.
    pub account: AccountName,
    /// Where the buyer pays.
    pub scene: Scene,
    /// The amount to pay.
    pub amount: Money,
    /// The state of the order.
    pub status: OrderStatus,
    /// The amount that was refunded.
    pub refunded_amount: Money,
    /// The state of money that was not owed; `None`: there was none.
    pub extra_state: Option<ExtraState>,
    /// How much of that money is in that state, if the gateway has stated it.
    pub extra_amount: Option<Money>,
    /// By our clock.
    pub created_at: OffsetDateTime,
    /// The last moment to pay.
    pub expires_at: OffsetDateTime,
    /// When it was paid, by the gateway's clock.
    pub paid_at: Option<OffsetDateTime>,
    /// Whether a case about it is not resolved.
    pub case: bool,
    /// Whether it was paid after it was closed.
    pub late: bool,
}

/// The filters, as one condition, handed to another macro: the list and its sums have the same. $1 and $2 bound the ids,
/// so that a time narrows the scan of an index.
macro_rules! conditions {
    ($then:ident $($rest:tt)*) => {
        $then!(
            r#"
              o.id < $1 and o.id >= $2
              and (cardinality($3::text[]) = 0 or o.status = any($3))
              and ($4::text is null or o.payment_method = $4)
              and ($5::text is null or o.account = $5)
              and ($6::text is null or o.scene = $6)
              and ($7::text is null or o.product_type = $7)
              and ($8::text is null or o.user_id = $8)
              and ($9::numeric is null or o.amount >= $9)
              and ($10::numeric is null or o.amount <= $10)
              and ($11::timestamptz is null or o.created_at >= $11)
              and ($12::timestamptz is null or o.created_at < $12)
              and ($13::timestamptz is null or o.paid_at >= $13)
              and ($14::timestamptz is null or o.paid_at < $14)
              and ($15::boolean is null or $15 = exists (
                select from cases c where c.order_id = o.id and c.status <> 'resolved'
              ))
              and ($16::text is null or o.extra_state = $16)
            "#,
            $($rest)*
        )
    };
}

/// Reads one page by a condition that names an index, and the filters. The marks are looked up for each row that is
/// returned: for `exists` the planner would rather read all cases of the kind.
macro_rules! read_listed {
    ($conditions:tt, $driver:tt, $filter:expr, $ids:expr, $limit:expr) => {
        sqlx::query_as!(
            ListedOrder,
            r#"
            select
              o.id as "id: OrderId", o.order_no as "order_no: OrderNo", o.trade_no as "trade_no: TradeNo",
              o.merchant_order_no as "merchant_order_no: MerchantOrderNo", o.subject as "subject: Subject",
              o.product_type as "product_type: ProductType", o.user_id as "user_id: UserId",
              o.payment_method as "payment_method: PaymentMethod", o.account as "account: AccountName",
              o.scene as "scene: Scene", o.amount as "amount: Money", o.status as "status: OrderStatus",
              o.refunded_amount as "refunded_amount: Money", o.extra_state as "extra_state: ExtraState",
              o.extra_amount as "extra_amount: Money", o.created_at, o.expires_at,
              case when o.paid_at between timestamptz '2000-01-01 00:00Z' and timestamptz '9999-12-31 00:00Z'
                then o.paid_at end as paid_at,
              coalesce(
                (select true from cases c where c.order_id = o.id and c.status <> 'resolved' limit 1), false
              ) as "case!",
              coalesce(
                (select true from cases c where c.order_id = o.id and c.kind = 'late_payment' limit 1), false
              ) as "late!"
            from payment_orders o
            where
            "#
                + $driver
                + " and "
                + $conditions
                + " order by o.id desc limit $17",
            $ids.past as OrderId,
            $ids.first as OrderId,
            &$filter.statuses() as &[&str],
            $filter.payment_method.map(PaymentMethod::as_str),
            $filter.account.as_ref().map(AccountName::as_str),
            $filter.scene.map(Scene::as_str),
            $filter.product_type.as_ref().map(ProductType::as_str),
            $filter.user_id.as_ref().map(UserId::as_str),
            $filter.amount_from as Option<Money>,
            $filter.amount_to as Option<Money>,
            $filter.created.from,
            $filter.created.to,
            $filter.paid_from,
            $filter.paid_to,
            $filter.has_case,
            $filter.extra_payment.map(ExtraState::as_str),
            $limit,
        )
    };
}

/// Adds up what the filters leave.
macro_rules! read_sums {
    ($conditions:tt, $filter:expr, $ids:expr) => {
        sqlx::query_as!(
            Sums,
            r#"
            select
              count(*) as "count!", coalesce(sum(o.amount), 0.00)::text as "amount!",
              count(*) filter (where o.status not in ('pending', 'closed')) as "paid_count!",
              coalesce(sum(o.amount) filter (where o.status not in ('pending', 'closed')), 0.00)::text as "paid_amount!",
              coalesce(sum(o.refunded_amount), 0.00)::text as "refunded_amount!"
            from payment_orders o
            where
            "# + $conditions,
            $ids.past as OrderId,
            $ids.first as OrderId,
            &$filter.statuses() as &[&str],
            $filter.payment_method.map(PaymentMethod::as_str),
            $filter.account.as_ref().map(AccountName::as_str),
            $filter.scene.map(Scene::as_str),
            $filter.product_type.as_ref().map(ProductType::as_str),
            $filter.user_id.as_ref().map(UserId::as_str),
            $filter.amount_from as Option<Money>,
            $filter.amount_to as Option<Money>,
            $filter.created.from,
            $filter.created.to,
            $filter.paid_from,
            $filter.paid_to,
            $filter.has_case,
            $filter.extra_payment.map(ExtraState::as_str),
        )
    };
}

/// Adds up what the filters leave, by state and gateway.
macro_rules! read_groups {
    ($conditions:tt, $filter:expr, $ids:expr) => {
        sqlx::query_as!(
            OrderGroup,
            r#"
            select
              o.status as "status: OrderStatus", o.payment_method as "payment_method: PaymentMethod", count(*) as "count!",
              (sum(o.amount) * 100)::bigint as "amount_fen!", (sum(o.refunded_amount) * 100)::bigint as "refunded_fen!"
            from payment_orders o
            where
            "# + $conditions
                + " group by o.status, o.payment_method",
            $ids.past as OrderId,
            $ids.first as OrderId,
            &$filter.statuses() as &[&str],
            $filter.payment_method.map(PaymentMethod::as_str),
            $filter.account.as_ref().map(AccountName::as_str),
            $filter.scene.map(Scene::as_str),
            $filter.product_type.as_ref().map(ProductType::as_str),
            $filter.user_id.as_ref().map(UserId::as_str),
            $filter.amount_from as Option<Money>,
            $filter.amount_to as Option<Money>,
            $filter.created.from,
            $filter.created.to,
            $filter.paid_from,
            $filter.paid_to,
            $filter.has_case,
            $filter.extra_payment.map(ExtraState::as_str),
        )
    };
}

/// The bounds of the ids of a list.
struct Ids {
    first: OrderId,
    past: OrderId,
}

impl Ids {
    fn of(filter: &OrderFilter, before: Option<OrderId>) -> Ids {
        let (first, past) = filter.created.id_range();
        let past = OrderId::from_u128(past).min(before.unwrap_or(OrderId::from_u128(u128::MAX)));
        Ids { first: OrderId::from_u128(first), past }
    }

    /// The last of so many rows, if there are so many.
    async fn edge(&self, db: &PgPool, rows: i64) -> Result<Option<OrderId>, DbError> {
        let edge = sqlx::query_scalar!(
            r#"select id as "id: OrderId" from payment_orders where id < $1 and id >= $2 order by id desc offset $3 limit 1"#,
            self.past as OrderId,
            self.first as OrderId,
            rows - 1,
        );
        Ok(edge.fetch_optional(db).await?)
    }
}

/// One page, newest first; only orders older than `before`.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: impl PgExecutor<'_>,
    filter: &OrderFilter,
    before: Option<OrderId>,
    limit: i64,
) -> Result<Vec<ListedOrder>, DbError> {
    select(db, filter, &Ids::of(filter, before), limit).await
}

/// The same, and a page whose filters have no index looks through a part of the list only.
///
/// # Errors
/// [`DbError`].
pub async fn part(
    db: &PgPool,
    filter: &OrderFilter,
    before: Option<OrderId>,
    limit: i64,
) -> Result<Part<ListedOrder, OrderId>, DbError> {
    let first = look_through(db, filter, before, limit, LOOKED_THROUGH_FIRST).await?;
    match first.looked_to {
        None => Ok(first),
        Some(_) => look_through(db, filter, before, limit, LOOKED_THROUGH).await,
    }
}

/// A page that looks through so many rows at most, if its filters have no index.
async fn look_through(
    db: &PgPool,
    filter: &OrderFilter,
    before: Option<OrderId>,
    limit: i64,
    rows: i64,
) -> Result<Part<ListedOrder, OrderId>, DbError> {
    let mut ids = Ids::of(filter, before);
    let edge = if filter.reads_on() && !filter.has_an_index() { ids.edge(db, rows).await? } else { None };
    ids.first = edge.unwrap_or(ids.first);
    Ok(Part::new(select(db, filter, &ids, limit).await?, edge, limit))
}

async fn select(
    db: impl PgExecutor<'_>,
    filter: &OrderFilter,
    ids: &Ids,
    limit: i64,
) -> Result<Vec<ListedOrder>, DbError> {
    Ok(match filter {
        OrderFilter { user_id: Some(_), .. } => {
            conditions!(read_listed "o.user_id = $8::text", filter, ids, limit).fetch_all(db).await?
        }
        OrderFilter { has_case: Some(true), .. } => {
            conditions!(read_listed
                "o.id = any(array(select order_id from cases where status <> 'resolved' and order_id is not null))",
                filter, ids, limit)
            .fetch_all(db)
            .await?
        }
        OrderFilter { extra_payment: Some(_), .. } => {
            conditions!(read_listed "o.extra_state = $16::text", filter, ids, limit).fetch_all(db).await?
        }
        _ => conditions!(read_listed "true", filter, ids, limit).fetch_all(db).await?,
    })
}

/// The sums over a list, in yuan. They can be larger than any amount of an order, so they are text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// How many orders.
    pub count: i64,
    /// What all of them were to pay.
    pub amount: String,
    /// How many of them were paid, whether money was returned since or not.
    pub paid_count: i64,
    /// What the paid ones were to pay.
    pub paid_amount: String,
    /// What was refunded of them.
    pub refunded_amount: String,
}

/// The sums over every order that the filter selects. It reads them all: give a range of creation times.
///
/// # Errors
/// [`DbError`].
pub async fn sums(db: impl PgExecutor<'_>, filter: &OrderFilter) -> Result<Sums, DbError> {
    let ids = Ids::of(filter, None);
    Ok(conditions!(read_sums filter, ids).fetch_one(db).await?)
}

/// The sums over the orders of one state at one gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderGroup {
    /// The state.
    pub status: OrderStatus,
    /// The gateway.
    pub payment_method: PaymentMethod,
    /// How many orders.
    pub count: i64,
    /// What they were to pay, in fen.
    pub amount_fen: i64,
    /// What was refunded of them, in fen.
    pub refunded_fen: i64,
}

/// The sums over every order that the filter selects, by state and gateway. It reads them all.
///
/// # Errors
/// [`DbError`].
pub async fn groups(db: impl PgExecutor<'_>, filter: &OrderFilter) -> Result<Vec<OrderGroup>, DbError> {
    let ids = Ids::of(filter, None);
    Ok(conditions!(read_groups filter, ids).fetch_all(db).await?)
}
