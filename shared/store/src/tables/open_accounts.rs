//! The merchant accounts that open orders and refunds name. A process that lacks one of them cannot finish its work.

use std::collections::BTreeSet;

use domain::{AccountName, PaymentMethod};
use sqlx::PgPool;

use crate::error::DbError;

/// How many jobs one statement reads.
const PAGE: i64 = 5_000;

/// An account that an open order or refund names.
pub type Named = (PaymentMethod, AccountName);

/// Every account that a pending order or a non-final refund names. Each of these has its job until it is final. So this
/// walks the jobs by their index, one page at a time, and reads no order that is settled.
///
/// # Errors
/// [`DbError`].
pub async fn named(db: &PgPool) -> Result<BTreeSet<Named>, DbError> {
    let mut named = BTreeSet::new();
    let mut after = String::new();
    while let Some(last) = of_checks(db, &after, &mut named).await? {
        after = last;
    }
    after.clear();
    while let Some(last) = of_refunds(db, &after, &mut named).await? {
        after = last;
    }
    Ok(named)
}

/// Adds the accounts of one page of pending orders. Returns where the next page begins.
async fn of_checks(db: &PgPool, after: &str, named: &mut BTreeSet<Named>) -> Result<Option<String>, DbError> {
    let rows = sqlx::query!(
        r#"
        with page as materialized (
          select ref_id from jobs where kind = 'check' and ref_id > $1::text::bpchar order by ref_id limit $2
        )
        select o.payment_method as "method?: PaymentMethod", o.account as "account?: AccountName",
          max(page.ref_id) as "last!"
        from page left join payment_orders o on o.id = page.ref_id and o.status = 'pending'
        group by o.payment_method, o.account
        "#,
        after,
        PAGE,
    )
    .fetch_all(db)
    .await?;
    let last = rows.iter().map(|row| row.last.clone()).max();
    named.extend(rows.into_iter().filter_map(|row| row.method.zip(row.account)));
    Ok(last)
}

/// The same for refunds that are not final.
async fn of_refunds(db: &PgPool, after: &str, named: &mut BTreeSet<Named>) -> Result<Option<String>, DbError> {
    let rows = sqlx::query!(
        r#"
        with page as materialized (
          select ref_id from jobs where kind = 'refund' and ref_id > $1::text::bpchar order by ref_id limit $2
        )
        select p.payment_method as "method?: PaymentMethod", coalesce(p.account, o.account) as "account?: AccountName",
          max(page.ref_id) as "last!"
        from page
        left join refund_records r on r.id = page.ref_id and r.status in ('pending', 'processing', 'abnormal')
        left join payment_orders o on o.id = r.order_id
        left join payment_transactions p on p.id = r.transaction_id
        group by 1, 2
        "#,
        after,
        PAGE,
    )
    .fetch_all(db)
    .await?;
    let last = rows.iter().map(|row| row.last.clone()).max();
    named.extend(rows.into_iter().filter_map(|row| row.method.zip(row.account)));
    Ok(last)
}
