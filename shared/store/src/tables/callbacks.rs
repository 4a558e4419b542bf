//! `callbacks`: the evidence. It counts repeats and never decides how a callback is settled.

use std::collections::HashMap;

use domain::message::callback::Callback;
use domain::{OrderNo, PaymentMethod, Verdict};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::error::DbError;

/// One callback and its verdict.
pub struct Evidence<'a> {
    /// The bytes.
    pub callback: &'a Callback,
    /// The gateway's id of the message. If it has none, the digest of the signed text.
    pub notice_id: String,
    /// The order that it names.
    pub order_no: Option<&'a str>,
    /// The verdict.
    pub verdict: Verdict,
    /// The fields in it that we did not trust.
    pub note: Option<&'a str>,
}

/// Records evidence. If a message was seen before, it is counted and its first bytes stay. Its verdict also stays if
/// the new one is only "duplicate".
///
/// # Errors
/// [`DbError`].
pub async fn record(tx: &mut PgConnection, evidence: &[Evidence<'_>], now: OffsetDateTime) -> Result<(), DbError> {
    let seen = collapse(evidence);
    let methods: Vec<PaymentMethod> = seen.iter().map(|(e, _)| e.callback.method).collect();
    let accounts: Vec<&str> = seen.iter().map(|(e, _)| e.callback.account.as_str()).collect();
    let notice_ids: Vec<&str> = seen.iter().map(|(e, _)| e.notice_id.as_str()).collect();
    let order_nos: Vec<Option<&str>> = seen.iter().map(|(e, _)| e.order_no).collect();
    let verdicts: Vec<Verdict> = seen.iter().map(|(e, _)| e.verdict).collect();
    let headers: Vec<Value> = seen.iter().map(|(e, _)| headers_of(e.callback)).collect();
    let bodies: Vec<&[u8]> = seen.iter().map(|(e, _)| e.callback.body.as_ref()).collect();
    let times: Vec<i32> = seen.iter().map(|(_, times)| *times).collect();
    let notes: Vec<Option<&str>> = seen.iter().map(|(e, _)| e.note).collect();
    let received: Vec<OffsetDateTime> = seen.iter().map(|(e, _)| e.callback.received_at).collect();
    sqlx::query!(
        r#"
        insert into callbacks
          (payment_method, account, notice_id, order_no, verdict, headers, body, times_seen, received_at, note,
           last_seen_at)
        select *, $11
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::jsonb[], $7::bytea[], $8::int[],
                    $9::timestamptz[], $10::text[])
        on conflict on constraint callbacks_notice_key do update
        set times_seen = callbacks.times_seen + excluded.times_seen,
            last_seen_at = excluded.last_seen_at,
            verdict = case excluded.verdict when 'duplicate' then callbacks.verdict else excluded.verdict end
        "#,
        &methods as &[PaymentMethod],
        &accounts as &[&str],
        &notice_ids as &[&str],
        &order_nos as &[Option<&str>],
        &verdicts as &[Verdict],
        &headers,
        &bodies as &[&[u8]],
        &times,
        &received,
        &notes as &[Option<&str>],
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Evidence without the bytes, which name the payer.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The gateway's id of the message.
    pub notice_id: String,
    /// The account whose address was called.
    pub account: String,
    /// The verdict.
    pub verdict: Verdict,
    /// How often it arrived.
    pub times_seen: i32,
    /// When it first arrived.
    pub received_at: OffsetDateTime,
    /// When it last arrived.
    pub last_seen_at: OffsetDateTime,
    /// The fields in it that we did not trust.
    pub note: Option<String>,
}

/// Every callback that named an order, oldest first.
///
/// # Errors
/// [`DbError`].
pub async fn of_order(db: impl PgExecutor<'_>, order_no: &OrderNo) -> Result<Vec<Seen>, DbError> {
    Ok(sqlx::query_as!(
        Seen,
        r#"
        select notice_id, account, verdict as "verdict: Verdict", times_seen, received_at, last_seen_at, note
        from callbacks
        where order_no = $1
        order by received_at
        "#,
        order_no.as_str(),
    )
    .fetch_all(db)
    .await?)
}

/// One entry for each message, in key order, with the number of times it is in the batch. One statement may change a
/// row only once.
fn collapse<'e, 'a>(evidence: &'e [Evidence<'a>]) -> Vec<(&'e Evidence<'a>, i32)> {
    let mut seen: HashMap<(PaymentMethod, &str, &str), (&Evidence<'_>, i32)> = HashMap::with_capacity(evidence.len());
    for item in evidence {
        let key = (item.callback.method, item.callback.account.as_str(), item.notice_id.as_str());
        let (kept, times) = seen.entry(key).or_insert((item, 0));
        *times += 1;
        if kept.verdict == Verdict::Duplicate {
            *kept = item;
        }
    }
    let mut seen: Vec<_> = seen.into_iter().collect();
    seen.sort_unstable_by_key(|(key, _)| *key);
    seen.into_iter().map(|(_, entry)| entry).collect()
}

fn headers_of(callback: &Callback) -> Value {
    callback.headers.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
}
