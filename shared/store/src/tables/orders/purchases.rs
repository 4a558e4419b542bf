//! The orders of one purchase.

use std::collections::HashSet;

use domain::{OrderId, UserId};
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use super::Order;
use crate::error::DbError;

impl Order {
    /// Whether it is of a purchase with a name, which can have only one order that is not closed.
    pub fn has_purchase(&self) -> bool {
        self.offer_id.is_some() || self.merchant_order_no.is_some()
    }
}

/// Which of these orders are of a purchase that has another order, one that is not closed.
///
/// # Errors
/// [`DbError`].
pub async fn with_another(tx: &mut PgConnection, ids: &[OrderId]) -> Result<HashSet<OrderId>, DbError> {
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let found = sqlx::query_scalar!(
        r#"
        select o.id as "id: OrderId"
        from payment_orders o
        where o.id = any($1::bpchar[])
          and (
            exists (
              select from payment_orders other
              where other.merchant_order_no = o.merchant_order_no and not other.is_closed and other.id <> o.id
            )
            or exists (
              select from payment_orders other
              where other.voucher = o.voucher and other.offer_id = o.offer_id and not other.is_closed
                and other.id <> o.id
            )
          )
        "#,
        ids as &[OrderId],
    );
    Ok(found.fetch_all(tx).await?.into_iter().collect())
}

/// How many orders of a user wait for a payment at this time: those that the user placed since `first`, counted to `most`.
///
/// # Errors
/// [`DbError`].
pub async fn pending_of(
    db: impl PgExecutor<'_>,
    user: &UserId,
    first: OrderId,
    now: OffsetDateTime,
    most: i64,
) -> Result<i64, DbError> {
    let counted = sqlx::query_scalar!(
        r#"
        select count(*) as "count!"
        from (
          select from payment_orders
          where user_id = $1 and id >= $2 and status = 'pending' and expires_at > $3 and vouched_by is distinct from 'backend'
          limit $4
        ) pending
        "#,
        user.as_str(),
        first as OrderId,
        now,
        most,
    );
    Ok(counted.fetch_one(db).await?)
}
