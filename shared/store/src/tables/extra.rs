//! Payments that orders were not owed, and what happened to them: late payments, second payments, payments of another
//! amount.

use domain::OrderId;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;

/// Locks an order for [`follow`]. Lock it before the rows that [`follow`] reads, as every transaction does.
///
/// # Errors
/// [`DbError`].
pub async fn lock(tx: &mut PgConnection, order: OrderId) -> Result<(), DbError> {
    sqlx::query!("select id from payment_orders where id = $1 for update", order as OrderId).fetch_optional(tx).await?;
    Ok(())
}

/// Updates `extra_state` and `extra_amount` of these orders from transactions, refunds and cases; `version` increases
/// where they change. Call it under the locks of the orders, after the last write that concerns such payments.
///
/// A payment that is not the order's own is `held` until a refund of it is under way, then `returning`, and `returned`
/// once all of it was refunded. A payment that only a case recorded (of another amount, or at the other gateway) is
/// `held` while the case is not resolved. If an order has several such payments, a state that still needs an action
/// comes first.
///
/// # Errors
/// [`DbError`].
pub async fn follow(tx: &mut PgConnection, orders: &[OrderId], now: OffsetDateTime) -> Result<(), DbError> {
    if orders.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        with payment as (
          select t.order_id, t.amount,
            coalesce(sum(r.refund_amount) filter (where r.status = 'succeeded'), 0) as returned,
            coalesce(bool_or(r.status in ('pending', 'processing', 'abnormal')), false) as moves
          from payment_transactions t
          join payment_orders o on o.id = t.order_id
          left join refund_records r on r.transaction_id = t.id
          where t.order_id = any($1::bpchar[]) and t.action_type = 'payment' and t.status = 'succeeded'
            and t.gateway_no is distinct from o.trade_no
          group by t.id
          union all
          select c.order_id,
            case when c.evidence ->> 'amount' ~ '^[0-9]{1,8}[.][0-9]{2}$' then (c.evidence ->> 'amount')::numeric end,
            0, false
          from cases c
          where c.order_id = any($1::bpchar[]) and c.kind in ('amount_mismatch', 'wrong_method') and c.status <> 'resolved'
            -- A case about a refund names one.
            and c.evidence ? 'trade_no' and not c.evidence ? 'refund_no'
            and not exists (
              select from payment_transactions t
              where t.order_id = c.order_id and t.action_type = 'payment' and t.gateway_no = c.subject_ref
            )
        ), judged as (
          select order_id, amount, returned,
            case when returned >= amount then 'returned' when moves then 'returning' else 'held' end as state
          from payment
        ), worst as (
          select order_id,
            case
              when bool_or(state = 'held') then 'held'
              when bool_or(state = 'returning') then 'returning'
              else 'returned'
            end as state
          from judged group by order_id
        ), shown as (
          select w.order_id, w.state,
            sum(case w.state when 'returned' then j.amount else j.amount - j.returned end) as amount
          from worst w join judged j on j.order_id = w.order_id and j.state = w.state
          group by w.order_id, w.state
        )
        update payment_orders o
        set extra_state = n.state, extra_amount = n.amount, version = o.version + 1, updated_at = $2
        from (
          -- No more than the column holds; of an amount that is not known, none.
          select p.id, s.state, case when s.amount > 99999999.99 then 99999999.99 else s.amount end as amount
          from payment_orders p left join shown s on s.order_id = p.id
          where p.id = any($1::bpchar[])
        ) n
        where o.id = n.id and (o.extra_state, o.extra_amount) is distinct from (n.state, n.amount)
        "#,
        orders as &[OrderId],
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}
