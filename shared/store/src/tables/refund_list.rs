//! `refund_records` for the people who search them: by any mix of filters, of all users. As in the list of orders, the
//! filter that leaves the fewest rows drives the query.

use domain::{
    AccountName, Money, OrderId, OrderNo, PaymentMethod, RefundId, RefundNo, RefundOrigin, RefundStatus, TradeNo,
};
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;

use crate::error::DbError;
use crate::page::{Created, LOOKED_THROUGH_FIRST, Part};

/// How many refunds a page looks through at most if no index finds its rows. Fewer than in other lists: each needs its
/// payment and its order.
const LOOKED_THROUGH: i64 = 2_000;

/// Which refunds to list. A filter that is `None` (or empty) does not restrict the list.
#[derive(Debug, Clone, Default)]
pub struct RefundFilter {
    /// Only refunds in one of these states.
    pub statuses: Vec<RefundStatus>,
    /// Only refunds of payments at this gateway.
    pub payment_method: Option<PaymentMethod>,
    /// Only refunds of payments to this account.
    pub account: Option<AccountName>,
    /// Only refunds that were sent by this party.
    pub origin: Option<RefundOrigin>,
    /// Only refunds that this caller requested, as the refund names it.
    pub requested_by: Option<String>,
    /// Only refunds of this order.
    pub order_id: Option<OrderId>,
    /// Only refunds created then.
    pub created: Created,
}

impl RefundFilter {
    /// Whether a filter finds its refunds by an index of its own: the order, who requested it, a state other than
    /// succeeded.
    pub fn has_an_index(&self) -> bool {
        self.order_id.is_some() || self.requested_by.is_some() || self.is_of_few_states()
    }

    /// Whether a filter is set that has no index of its own.
    pub fn reads_on(&self) -> bool {
        self.payment_method.is_some() || self.account.is_some() || self.origin.is_some()
    }

    fn statuses(&self) -> Vec<&'static str> {
        self.statuses.iter().map(|status| status.as_str()).collect()
    }

    fn is_of_few_states(&self) -> bool {
        !self.statuses.is_empty() && !self.statuses.contains(&RefundStatus::Succeeded)
    }
}

/// A refund of the list.
#[derive(Debug, Clone)]
pub struct ListedRefund {
    /// Our id.
    pub id: RefundId,
    /// Our number for the gateways.
    pub refund_no: RefundNo,
    /// The order.
    pub order_id: OrderId,
    /// The number of the order.
    pub order_no: OrderNo,
    /// The trade of the payment that it returns.
    pub trade_no: TradeNo,
    /// The gateway of that payment.
    pub payment_method: PaymentMethod,
    /// The account that received that payment.
    pub account: AccountName,
    /// The amount to return.
    pub amount: Money,
    /// What the buyer reads, where the gateway shows it.
    pub reason: Option<String>,
    /// The state of the refund.
    pub status: RefundStatus,
    /// Who sent it to the gateway.
    pub origin: RefundOrigin,
    /// The gateway's number of the refund.
    pub gateway_refund_no: Option<String>,
    /// How many times we sent the request.
    pub attempts: i32,
    /// The last error, in words.
    pub last_error: Option<String>,
    /// Who requested it.
    pub requested_by: String,
    /// The person who approved the request, or the first of two.
    pub approved_by: Option<String>,
    /// Why it was declined.
    pub decline_reason: Option<String>,
    /// Of a refund that is requested or in flight: when it was requested. Of another one: when it came into its state.
    pub since: OffsetDateTime,
    /// By our clock.
    pub created_at: OffsetDateTime,
}

/// The tables and the filters, as one text, handed to another macro: the list and its sums have the same. $1 and $2 bound
/// the ids.
macro_rules! conditions {
    ($then:ident $($rest:tt)*) => {
        $then!(
            r#"
            from refund_records r
            join payment_transactions p on p.id = r.transaction_id
            join payment_orders o on o.id = r.order_id
            where r.id < $1 and r.id >= $2
              and (cardinality($3::text[]) = 0 or r.status = any($3))
              and ($4::text is null or p.payment_method = $4)
              and ($5::text is null or coalesce(p.account, o.account) = $5)
              and ($6::text is null or r.origin = $6)
              and ($7::text is null or r.requested_by = $7)
              and ($8::bpchar is null or r.order_id = $8)
              and ($9::timestamptz is null or r.created_at >= $9)
              and ($10::timestamptz is null or r.created_at < $10)
            "#,
            $($rest)*
        )
    };
}

/// Reads one page by a condition that names an index, and the filters.
macro_rules! read_listed {
    ($conditions:tt, $driver:tt, $filter:expr, $ids:expr, $limit:expr) => {
        sqlx::query_as!(
            ListedRefund,
            r#"
            select
              r.id as "id: RefundId", r.refund_no as "refund_no: RefundNo", r.order_id as "order_id: OrderId",
              o.order_no as "order_no: OrderNo", p.gateway_no as "trade_no!: TradeNo",
              p.payment_method as "payment_method: PaymentMethod",
              coalesce(p.account, o.account) as "account!: AccountName", r.refund_amount as "amount: Money",
              r.refund_reason as reason, r.status as "status: RefundStatus", r.origin as "origin: RefundOrigin",
              r.gateway_refund_no, r.attempts, r.last_error, r.requested_by, r.approved_by, r.decline_reason,
              case
                when r.status in ('requested', 'pending', 'processing') then r.created_at
                when r.status = 'succeeded'
                  and r.succeeded_at between timestamptz '2000-01-01 00:00Z' and timestamptz '9999-12-31 00:00Z'
                  then r.succeeded_at
                else r.updated_at
              end as "since!",
              r.created_at
            "#
                + $conditions
                + " and "
                + $driver
                + " order by r.id desc limit $11",
            $ids.past as RefundId,
            $ids.first as RefundId,
            &$filter.statuses() as &[&str],
            $filter.payment_method.map(PaymentMethod::as_str),
            $filter.account.as_ref().map(AccountName::as_str),
            $filter.origin.map(RefundOrigin::as_str),
            $filter.requested_by.as_deref(),
            $filter.order_id as Option<OrderId>,
            $filter.created.from,
            $filter.created.to,
            $limit,
        )
    };
}

/// Adds up what the filters leave, by state and gateway.
macro_rules! read_groups {
    ($conditions:tt, $filter:expr, $ids:expr) => {
        sqlx::query_as!(
            RefundGroup,
            r#"
            select
              r.status as "status: RefundStatus", p.payment_method as "payment_method: PaymentMethod", count(*) as "count!",
              (sum(r.refund_amount) * 100)::bigint as "amount_fen!"
            "# + $conditions
                + " group by r.status, p.payment_method",
            $ids.past as RefundId,
            $ids.first as RefundId,
            &$filter.statuses() as &[&str],
            $filter.payment_method.map(PaymentMethod::as_str),
            $filter.account.as_ref().map(AccountName::as_str),
            $filter.origin.map(RefundOrigin::as_str),
            $filter.requested_by.as_deref(),
            $filter.order_id as Option<OrderId>,
            $filter.created.from,
            $filter.created.to,
        )
    };
}

/// The bounds of the ids of a list.
struct Ids {
    first: RefundId,
    past: RefundId,
}

impl Ids {
    fn of(filter: &RefundFilter, before: Option<RefundId>) -> Ids {
        let (first, past) = filter.created.id_range();
        let past = RefundId::from_u128(past).min(before.unwrap_or(RefundId::from_u128(u128::MAX)));
        Ids { first: RefundId::from_u128(first), past }
    }

    /// The last of so many rows, if there are so many.
    async fn edge(&self, db: &PgPool, rows: i64) -> Result<Option<RefundId>, DbError> {
        let edge = sqlx::query_scalar!(
            r#"select id as "id: RefundId" from refund_records where id < $1 and id >= $2 order by id desc offset $3 limit 1"#,
            self.past as RefundId,
            self.first as RefundId,
            rows - 1,
        );
        Ok(edge.fetch_optional(db).await?)
    }
}

/// One page, newest first; only refunds older than `before`.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: impl PgExecutor<'_>,
    filter: &RefundFilter,
    before: Option<RefundId>,
    limit: i64,
) -> Result<Vec<ListedRefund>, DbError> {
    select(db, filter, &Ids::of(filter, before), limit).await
}

/// The same, and a page whose filters have no index looks through a part of the list only.
///
/// # Errors
/// [`DbError`].
pub async fn part(
    db: &PgPool,
    filter: &RefundFilter,
    before: Option<RefundId>,
    limit: i64,
) -> Result<Part<ListedRefund, RefundId>, DbError> {
    let first = look_through(db, filter, before, limit, LOOKED_THROUGH_FIRST).await?;
    match first.looked_to {
        None => Ok(first),
        Some(_) => look_through(db, filter, before, limit, LOOKED_THROUGH).await,
    }
}

/// A page that looks through so many rows at most, if its filters have no index.
async fn look_through(
    db: &PgPool,
    filter: &RefundFilter,
    before: Option<RefundId>,
    limit: i64,
    rows: i64,
) -> Result<Part<ListedRefund, RefundId>, DbError> {
    let mut ids = Ids::of(filter, before);
    let edge = if filter.reads_on() && !filter.has_an_index() { ids.edge(db, rows).await? } else { None };
    ids.first = edge.unwrap_or(ids.first);
    Ok(Part::new(select(db, filter, &ids, limit).await?, edge, limit))
}

async fn select(
    db: impl PgExecutor<'_>,
    filter: &RefundFilter,
    ids: &Ids,
    limit: i64,
) -> Result<Vec<ListedRefund>, DbError> {
    Ok(match filter {
        RefundFilter { order_id: Some(_), .. } => {
            conditions!(read_listed "r.order_id = $8::bpchar", filter, ids, limit).fetch_all(db).await?
        }
        RefundFilter { requested_by: Some(_), .. } => {
            conditions!(read_listed "r.requested_by = $7::text", filter, ids, limit).fetch_all(db).await?
        }
        few if few.is_of_few_states() => {
            conditions!(read_listed "r.status <> 'succeeded'", filter, ids, limit).fetch_all(db).await?
        }
        _ => conditions!(read_listed "true", filter, ids, limit).fetch_all(db).await?,
    })
}

/// The sums over the refunds of one state at one gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundGroup {
    /// The state.
    pub status: RefundStatus,
    /// The gateway.
    pub payment_method: PaymentMethod,
    /// How many refunds.
    pub count: i64,
    /// What they return, in fen.
    pub amount_fen: i64,
}

/// The sums over every refund that the filter selects, by state and gateway. It reads them all.
///
/// # Errors
/// [`DbError`].
pub async fn groups(db: impl PgExecutor<'_>, filter: &RefundFilter) -> Result<Vec<RefundGroup>, DbError> {
    let ids = Ids::of(filter, None);
    Ok(conditions!(read_groups filter, ids).fetch_all(db).await?)
}
