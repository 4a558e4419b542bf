//! `callbacks` for the people who look for one: by any mix of filters, without the bytes, which name the payer.

use domain::{OrderNo, PaymentMethod, Verdict};
use sqlx::PgExecutor;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::page::{Created, Mark};

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

/// Reads one page by a condition that names an index, and the filters. $1 to $3 bound the times of the index.
macro_rules! read_listed {
    ($driver:tt, $filter:expr, $past:expr, $limit:expr) => {
        sqlx::query_as!(
            ListedCallback,
            r#"
            select id, payment_method as "payment_method: PaymentMethod", account, notice_id, order_no,
              verdict as "verdict: Verdict", note, times_seen, received_at,
              case when last_seen_at <= timestamptz '9999-12-31 00:00Z' then last_seen_at else received_at end as "last_seen_at!"
            from callbacks
            where (received_at, id) < ($1, $2) and received_at >= $3
              and ($4::text is null or payment_method = $4)
              and ($5::text is null or verdict = $5)
              and ($6::text is null or order_no = $6)
              and
            "# + $driver
                + " order by received_at desc, id desc limit $7",
            $past.at,
            $past.id,
            $filter.received.first(),
            $filter.payment_method.map(PaymentMethod::as_str),
            $filter.verdict.map(Verdict::as_str),
            $filter.order_no.as_ref().map(OrderNo::as_str),
            $limit,
        )
    };
}

/// One page, the newest first; only callbacks before `before`.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: impl PgExecutor<'_>,
    filter: &CallbackFilter,
    before: Option<Mark<i64>>,
    limit: i64,
) -> Result<Vec<ListedCallback>, DbError> {
    let past = filter.received.past(before);
    Ok(match filter.order_no {
        Some(_) => read_listed!("order_no = $6::text", filter, past, limit).fetch_all(db).await?,
        None => read_listed!("true", filter, past, limit).fetch_all(db).await?,
    })
}
