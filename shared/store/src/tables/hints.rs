//! Hints that an order may have been paid: its buyer is back from the gateway, or waits for the payment to show.
//!
//! A hint makes the next check of a pending order due sooner; the check worker then queries the gateway. One statement
//! decides by the row and the database's clock, so the limits hold across all visits, routes and processes.

use domain::OrderId;
use domain::message::schedule::{AT_LEAST_APART, HINTS};
use sqlx::PgExecutor;
use time::Duration;

use crate::error::DbError;
use crate::tables::jobs::millis;

/// How strong a hint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// A client keeps waiting: the gaps between two queries grow.
    Watched,
    /// The buyer has opened the page or has come back to it: the gaps start again from the shortest, a limited number
    /// of times.
    Back,
}

impl Hint {
    /// A name for metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Hint::Watched => "watched",
            Hint::Back => "back",
        }
    }
}

/// How often the gaps of an order can start again.
const BACKS: i16 = 20;
/// How many queries the growing gaps allow, from one return of the buyer to the next.
const STEPS: i16 = 40;

/// Makes the checks of these orders due now. Returns the orders whose check became due.
///
/// Nothing happens to an order that is not pending, that was created less than [`AT_LEAST_APART`] ago, whose query is
/// due or under way, or whose last query began less than [`AT_LEAST_APART`] ago.
///
/// # Errors
/// [`DbError`].
pub async fn hint(db: impl PgExecutor<'_>, orders: &[OrderId], hint: Hint) -> Result<Vec<OrderId>, DbError> {
    let gaps: Vec<i64> = HINTS.iter().map(|gap| millis(*gap)).collect();
    Ok(sqlx::query_scalar!(
        r#"
        update jobs j
        set due_at = now(), lease_until = null, publishes = 0, fence = j.fence + 1, hinted_at = now(),
            hint_step = case when n.back then 1 else j.hint_step + 1 end,
            hint_backs = j.hint_backs + n.back::int
        from (
          select id,
            $3 and hint_backs < $4 as back,
            case when hint_step = 0 then 0 else ($2::bigint[])[least(hint_step, cardinality($2::bigint[]))] end as gap
          from jobs
          where kind = 'check' and ref_id = any($1::bpchar[])
          -- A job that somebody holds is being settled or published just now. No wait, so no deadlock.
          for update skip locked
        ) n, payment_orders o
        where j.id = n.id and o.id = j.ref_id and o.status = 'pending'
          and j.created_at <= now() - $6::bigint * interval '1 millisecond'
          and j.due_at > now()
          and (j.taken_at is null or j.taken_at <= now() - $6::bigint * interval '1 millisecond')
          and (j.hinted_at is null
            or j.hinted_at <= now() - greatest(case when n.back then 0 else n.gap end, $6) * interval '1 millisecond')
          and (n.back or j.hint_step < $5)
        returning j.ref_id as "order!: OrderId"
        "#,
        orders as &[OrderId],
        &gaps,
        hint == Hint::Back,
        BACKS,
        STEPS,
        millis(AT_LEAST_APART),
    )
    .fetch_all(db)
    .await?)
}

/// How long a watcher waits before hint number `given` is worth a statement. These are the same gaps that the row uses.
pub fn gap(given: usize) -> Duration {
    match given.checked_sub(1) {
        None => Duration::ZERO,
        Some(index) => HINTS[index.min(HINTS.len() - 1)],
    }
}
