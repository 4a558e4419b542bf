//! `callbacks` for the people who look for one: by any mix of filters, without the bytes, which name the payer.

use domain::{OrderNo, PaymentMethod, Verdict};
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::page::{Created, LOOKED_THROUGH, LOOKED_THROUGH_FIRST, Mark, Part};

/// Which callbacks to list. A filter that is `None` does not restrict the list.
#[derive(Debug, Clone, Default)]
pub struct CallbackFilter {
    /// Only callbacks of this gateway.
    pub payment_method: Option<PaymentMethod>,
    /// Only callbacks with this verdict.
    pub verdict: Option<Verdict>,
    /// Only callbacks that name this order.
    pub order_no: Option<OrderNo>,
    /// Only callbacks that first arrived then.
    pub received: Created,
}

impl CallbackFilter {
    /// Whether a filter is set that has no index, and none that has one.
    pub fn reads_on(&self) -> bool {
        self.order_no.is_none() && (self.payment_method.is_some() || self.verdict.is_some())
    }
}

/// A callback of the list.
#[derive(Debug, Clone)]
pub struct ListedCallback {
    /// The number of the row.
    pub id: i64,
    /// The gateway.
    pub payment_method: PaymentMethod,
    /// The account whose address was called.
    pub account: String,
    /// The gateway's id of the message.
    pub notice_id: String,
    /// The order that it names. A forged message may name anything.
    pub order_no: Option<String>,
    /// The verdict.
    pub verdict: Verdict,
    /// The fields in it that we did not trust.
    pub note: Option<String>,
    /// How often it arrived.
    pub times_seen: i32,
    /// When it first arrived.
    pub received_at: OffsetDateTime,
    /// When it last arrived.
    pub last_seen_at: OffsetDateTime,
}

/// Reads one page by a condition that names an index, and the filters. $1 to $3 and $8 bound the rows of the index.
macro_rules! read_listed {
    ($driver:tt, $filter:expr, $past:expr, $first:expr, $limit:expr) => {
        sqlx::query_as!(
            ListedCallback,
            r#"
            select id, payment_method as "payment_method: PaymentMethod", account, notice_id, order_no,
              verdict as "verdict: Verdict", note, times_seen, received_at,
              case when last_seen_at <= timestamptz '9999-12-31 00:00Z' then last_seen_at else received_at end as "last_seen_at!"
            from callbacks
            where (received_at, id) < ($1, $2) and (received_at, id) >= ($3, $8)
              and ($4::text is null or payment_method = $4)
              and ($5::text is null or verdict = $5)
              and ($6::text is null or order_no = $6)
              and
            "# + $driver
                + " order by received_at desc, id desc limit $7",
            $past.at,
            $past.id,
            $first.at,
            $filter.payment_method.map(PaymentMethod::as_str),
            $filter.verdict.map(Verdict::as_str),
            $filter.order_no.as_ref().map(OrderNo::as_str),
            $limit,
            $first.id,
        )
    };
}

/// One page, the newest first; only callbacks before `before`. A page whose filters have no index looks through a part of the
/// list only.
///
/// # Errors
/// [`DbError`].
pub async fn part(
    db: &PgPool,
    filter: &CallbackFilter,
    before: Option<Mark<i64>>,
    limit: i64,
) -> Result<Part<ListedCallback, Mark<i64>>, DbError> {
    let first = look_through(db, filter, before, limit, LOOKED_THROUGH_FIRST).await?;
    match first.looked_to {
        None => Ok(first),
        Some(_) => look_through(db, filter, before, limit, LOOKED_THROUGH).await,
    }
}

/// A page that looks through so many rows at most, if its filters have no index.
async fn look_through(
    db: &PgPool,
    filter: &CallbackFilter,
    before: Option<Mark<i64>>,
    limit: i64,
    rows: i64,
) -> Result<Part<ListedCallback, Mark<i64>>, DbError> {
    let past = filter.received.past(before);
    let first = Mark { at: filter.received.first(), id: i64::MIN };
    let edge = if filter.reads_on() { edge(db, past, first, rows).await? } else { None };
    let first = edge.unwrap_or(first);
    let found = match filter.order_no {
        Some(_) => read_listed!("order_no = $6::text", filter, past, first, limit).fetch_all(db).await?,
        None => read_listed!("true", filter, past, first, limit).fetch_all(db).await?,
    };
    Ok(Part::new(found, edge, limit))
}

/// The last of so many rows, if there are so many.
async fn edge(db: &PgPool, past: Mark<i64>, first: Mark<i64>, rows: i64) -> Result<Option<Mark<i64>>, DbError> {
    let edge = sqlx::query_as!(
        Mark,
        "select received_at as at, id from callbacks
         where (received_at, id) < ($1, $2) and (received_at, id) >= ($3, $4)
         order by received_at desc, id desc
         offset $5 limit 1",
        past.at,
        past.id,
        first.at,
        first.id,
        rows - 1,
    );
    Ok(edge.fetch_optional(db).await?)
}
