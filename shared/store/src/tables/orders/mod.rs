//! `payment_orders`: creating and reading orders. The moves are in `moves`.

use std::collections::HashMap;
use std::net::IpAddr;

use domain::{
    AccountName, ExtraState, MerchantOrderNo, Money, OfferId, OrderId, OrderNo, OrderStatus, PaymentMethod,
    ProductType, Purchase, Scene, Subject, TradeNo, UserId, VouchedBy,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::{Duration, OffsetDateTime};

use crate::error::DbError;
use crate::page::Wanted;
use crate::tables::idempotency_keys::{NewKey, SavedAnswer};
use crate::tables::jobs::millis;
use crate::tables::reading::{Reading, keys, text};

mod moves;
mod purchases;

pub use moves::{Paid, mark_by_refunds, mark_closed, mark_honoured, mark_paid};
pub use purchases::{pending_of, with_another};

/// One row, whole. What the owner sees and what is copied derive from it: a new column is a field here and a name in the
/// list of columns below.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
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
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When it was paid, by the gateway's clock. `None` also for an impossible time.
    #[serde(with = "time::serde::rfc3339::option")]
    pub paid_at: Option<OffsetDateTime>,
    /// When it was closed, by our clock.
    #[serde(with = "time::serde::rfc3339::option")]
    pub closed_at: Option<OffsetDateTime>,
    /// When a close was first requested, by our clock.
    #[serde(with = "time::serde::rfc3339::option")]
    pub close_requested_at: Option<OffsetDateTime>,
    /// What happened to payments that the order was not owed; `None`: there were none. See [`crate::tables::extra`].
    pub extra_state: Option<ExtraState>,
    /// How much of that money is in that state, if the gateway has stated it.
    pub extra_amount: Option<Money>,
    /// The merchant's own number of the purchase.
    pub merchant_order_no: Option<MerchantOrderNo>,
    /// Who vouches for the terms. `None`: an order of an earlier release.
    pub vouched_by: Option<VouchedBy>,
    /// Which backend or issuer that is, see [`Purchase`].
    pub voucher: Option<String>,
    /// The offer by which it was placed.
    pub offer_id: Option<OfferId>,
    /// What the merchant's backend attached; events include it.
    pub metadata: Value,
    /// See [`gateway::PrepayRequest`]. Never logged, and in no copy.
    #[serde(skip)]
    pub prepay: Value,
    /// Increases with each change.
    pub version: i64,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// Shows which order it is; never what may name the payer.
impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Order({}, {}, version {})", self.order_no, self.status, self.version)
    }
}

/// The content of a new order.
#[derive(Clone)]
pub struct NewOrder {
    /// A new UUIDv7.
    pub id: OrderId,
    /// The buyer.
    pub user_id: UserId,
    /// A new number.
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
    /// The last moment to pay.
    pub expires_at: OffsetDateTime,
    /// Who vouches for the terms, and what names the purchase.
    pub purchase: Purchase,
    /// The buyer's address.
    pub client_ip: Option<IpAddr>,
    /// What the merchant's backend attached.
    pub metadata: Value,
    /// What we will send to the gateway.
    pub prepay: Value,
    /// How long after now the order's first check is due.
    pub check_in: Duration,
    /// The present time.
    pub created_at: OffsetDateTime,
    /// The idempotency key of the request that creates it.
    pub key: NewKey,
    /// The answer to that request, if everything in it is known already.
    pub answer: Option<Value>,
}

/// The result for a new order.
pub enum Created {
    /// It was created, and its key has no answer yet.
    Unanswered,
    /// It was created and answered.
    Answered(SavedAnswer),
    /// It was not created: the key is in use.
    Taken,
}

/// Writes the key, order, payment transaction and check job of each new order in one statement: all four, or none if
/// its key is in use. An expired key is taken over. If another statement with the same key is still running, this one
/// waits for it.
///
/// Returns one result for each new order, in the same order. No two may have the same caller and key.
///
/// # Errors
/// [`DbError`]; then none was created. [`DbError::PurchaseTaken`]: a purchase of one of them has an order that is not
/// closed.
pub async fn create(db: impl PgExecutor<'_>, new: &[NewOrder]) -> Result<Vec<Created>, DbError> {
    let made = sqlx::query!(
        r#"
        with new as (
          select * from unnest($1::bpchar[], $2::text[], $3::text[], $4::text[], $5::text[], $6::numeric[], $7::text[], $8::text[],
                      $9::text[], $10::timestamptz[], $11::text[], $12::jsonb[], $13::jsonb[], $14::timestamptz[],
                      $15::bigint[], $16::text[], $17::text[], $18::bytea[], $19::timestamptz[], $20::timestamptz[],
                      $21::jsonb[], $22::text[], $23::text[], $24::text[], $25::text[], $26::text[])
            as new (id, user_id, order_no, product_type, subject, amount, payment_method, scene, account, expires_at,
                    client_ip, metadata, prepay, created_at, check_in, key, route, request_hash, forgotten_at, held_until,
                    answer, caller, merchant_order_no, vouched_by, voucher, offer_id)
        ), key as (
          insert into idempotency_keys as old (user_id, key, route, request_hash, ref_id, created_at, expires_at, held_until, answer)
          -- Everybody writes keys in this order, so that two statements never wait for each other.
          select caller, key, route, request_hash, id, created_at, forgotten_at, held_until, answer
          from new order by caller, key
          on conflict on constraint idempotency_keys_pkey do update
            set route = excluded.route, request_hash = excluded.request_hash, ref_id = excluded.ref_id,
              created_at = excluded.created_at, expires_at = excluded.expires_at, held_until = excluded.held_until,
              answer = excluded.answer, refused_with = null
            where old.expires_at <= excluded.created_at and (old.held_until is null or old.held_until <= excluded.created_at)
          returning ref_id, answer, expires_at
        ), made as (
          select new.* from new join key on key.ref_id = new.id
        ), placed as (
          insert into payment_orders
            (id, user_id, order_no, product_type, subject, amount, payment_method, scene, account, expires_at,
             client_ip, metadata, prepay, created_at, updated_at, merchant_order_no, vouched_by, voucher, offer_id)
          select id, user_id, order_no, product_type, subject, amount, payment_method, scene, account, expires_at,
            client_ip::inet, metadata, prepay, created_at, created_at, merchant_order_no, vouched_by, voucher, offer_id from made
        ), movement as (
          insert into payment_transactions (id, order_id, transaction_no, payment_method, action_type, amount, created_at, updated_at)
          select id, id, 'P' || id, payment_method, 'payment', amount, created_at, created_at from made
        ), check_job as (
          insert into jobs (kind, ref_id, due_at, created_at) select 'check', id, now() + check_in * interval '1 millisecond', now() from made
        )
        select ref_id as "id: OrderId", answer, expires_at from key
        "#,
        &column(new, |new| new.id) as &[OrderId],
        &column(new, |new| new.user_id.as_str()) as &[&str],
        &column(new, |new| new.order_no.as_str()) as &[&str],
        &column(new, |new| new.product_type.as_str()) as &[&str],
        &column(new, |new| new.subject.as_str()) as &[&str],
        &column(new, |new| new.amount) as &[Money],
        &column(new, |new| new.payment_method) as &[PaymentMethod],
        &column(new, |new| new.scene.as_str()) as &[&str],
        &column(new, |new| new.account.as_str()) as &[&str],
        &column(new, |new| new.expires_at),
        &column(new, |new| new.client_ip.map(|ip| ip.to_string())) as &[Option<String>],
        &column(new, |new| &new.metadata) as &[&Value],
        &column(new, |new| &new.prepay) as &[&Value],
        &column(new, |new| new.created_at),
        &column(new, |new| millis(new.check_in)),
        &column(new, |new| new.key.key.as_str()) as &[&str],
        &column(new, |new| new.key.route) as &[&str],
        &column(new, |new| &new.key.request_hash[..]) as &[&[u8]],
        &column(new, |new| new.key.expires_at),
        &column(new, |new| new.key.held_until) as &[Option<OffsetDateTime>],
        &column(new, |new| new.answer.as_ref()) as &[Option<&Value>],
        &column(new, |new| new.key.caller.as_str()) as &[&str],
        &column(new, |new| new.purchase.merchant_order_no.as_ref().map(MerchantOrderNo::as_str)) as &[Option<&str>],
        &column(new, |new| new.purchase.vouched_by.as_str()) as &[&str],
        &column(new, |new| new.purchase.voucher.as_deref()) as &[Option<&str>],
        &column(new, |new| new.purchase.offer_id.as_ref().map(OfferId::as_str)) as &[Option<&str>],
    );
    let made = made.fetch_all(db).await?;
    let mut made: HashMap<_, _> = made.into_iter().map(|key| (key.id, (key.answer, key.expires_at))).collect();
    let created = |(answer, expires_at)| Created::of(answer, expires_at);
    Ok(new.iter().map(|new| made.remove(&new.id).map_or(Created::Taken, created)).collect())
}

fn column<'a, T>(new: &'a [NewOrder], of: impl Fn(&'a NewOrder) -> T) -> Vec<T> {
    new.iter().map(of).collect()
}

impl Created {
    fn of(answer: Option<Value>, expires_at: OffsetDateTime) -> Created {
        match answer {
            None => Created::Unanswered,
            Some(answer) => Created::Answered(SavedAnswer { answer, refused_with: None, expires_at }),
        }
    }
}

/// The columns of whole orders, handed to another macro: one list for every query, and for errors. Rows from before
/// impossible payment times were refused may hold such a time. It is left out, because one row must not make a whole
/// list fail.
macro_rules! order_columns {
    ($then:ident $($rest:tt)*) => {
        $then!(
            r#"
            select
              id as "id: OrderId", user_id as "user_id: UserId", order_no as "order_no: OrderNo",
              product_type as "product_type: ProductType", subject as "subject: Subject", amount as "amount: Money",
              payment_method as "payment_method: PaymentMethod", scene as "scene: Scene",
              account as "account: AccountName", status as "status: OrderStatus", trade_no as "trade_no: TradeNo",
              refunded_amount as "refunded_amount: Money", expires_at,
              case when paid_at between timestamptz '2000-01-01 00:00Z' and timestamptz '9999-12-31 00:00Z'
                then paid_at end as paid_at,
              closed_at, close_requested_at, extra_state as "extra_state: ExtraState", extra_amount as "extra_amount: Money",
              merchant_order_no as "merchant_order_no: MerchantOrderNo", vouched_by as "vouched_by: VouchedBy", voucher,
              offer_id as "offer_id: OfferId", metadata, prepay, version, created_at, updated_at
            from payment_orders
            "#,
            $($rest)*
        )
    };
}

/// Reads orders with these columns, and a clause.
macro_rules! read_orders {
    ($columns:tt, $tail:tt $(, $argument:expr)* $(,)?) => { sqlx::query_as!(Order, $columns + $tail $(, $argument)*) };
}

/// Reads whole orders by a clause.
macro_rules! select_orders {
    ($($rest:tt)*) => { order_columns!(read_orders $($rest)*) };
}

const ORDERS: Reading = Reading { tables: &[("", "payment_orders")], query: order_columns!(text) };

/// One order by its id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: impl PgExecutor<'_>, id: OrderId) -> Result<Option<Order>, DbError> {
    select_orders!("where id = $1", id as OrderId).fetch_optional(db).await.map_err(|error| ORDERS.error(id, error))
}

/// One order by its number.
///
/// # Errors
/// [`DbError`].
pub async fn by_order_no(db: impl PgExecutor<'_>, order_no: &OrderNo) -> Result<Option<Order>, DbError> {
    select_orders!("where order_no = $1", order_no.as_str())
        .fetch_optional(db)
        .await
        .map_err(|error| ORDERS.error(order_no, error))
}

/// The order of a purchase that is not closed: one at most. A purchase without a name has none.
///
/// # Errors
/// [`DbError`].
pub async fn of_purchase(db: impl PgExecutor<'_>, purchase: &Purchase) -> Result<Option<Order>, DbError> {
    let number = purchase.merchant_order_no.as_ref().map(MerchantOrderNo::as_str);
    let offer = purchase.offer_id.as_ref().map(OfferId::as_str);
    if !purchase.is_named() {
        return Ok(None);
    }
    // The indexes let each of the two names have one such order. Both names are of one offer.
    select_orders!(
        r#"
        where id in (
          select id from payment_orders where merchant_order_no = $1 and not is_closed
          union all
          select id from payment_orders where voucher = $2 and offer_id = $3 and not is_closed
        )
        order by id
        limit 1
        "#,
        number,
        purchase.voucher.as_deref(),
        offer,
    )
    .fetch_optional(db)
    .await
    .map_err(|error| ORDERS.error("of a purchase", error))
}

/// Orders by their ids. An id without an order is left out.
///
/// # Errors
/// [`DbError`].
pub async fn by_ids(db: impl PgExecutor<'_>, ids: &[OrderId]) -> Result<Vec<Order>, DbError> {
    select_orders!("where id = any($1::bpchar[])", ids as &[OrderId])
        .fetch_all(db)
        .await
        .map_err(|error| ORDERS.error(keys(ids), error))
}

/// Orders by their numbers. A number without an order is left out.
///
/// # Errors
/// [`DbError`].
pub async fn by_order_nos(db: impl PgExecutor<'_>, order_nos: &[String]) -> Result<Vec<Order>, DbError> {
    select_orders!("where order_no = any($1)", order_nos)
        .fetch_all(db)
        .await
        .map_err(|error| ORDERS.error(keys(order_nos), error))
}

/// The newest orders of all users.
///
/// # Errors
/// [`DbError`].
pub async fn newest(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Order>, DbError> {
    select_orders!("order by id desc limit $1", limit)
        .fetch_all(db)
        .await
        .map_err(|error| ORDERS.error("of a list", error))
}

/// One page of a user's orders, newest first.
///
/// # Errors
/// [`DbError`].
pub async fn of_user(
    db: impl PgExecutor<'_>,
    user_id: &UserId,
    wanted: &Wanted<OrderId, OrderStatus>,
) -> Result<Vec<Order>, DbError> {
    // Pass bounds even if the caller sets none: then one plan serves every query, and it walks only the user's own
    // rows.
    let (first, past) = wanted.id_range();
    let past = OrderId::from_u128(past).min(wanted.before.unwrap_or(OrderId::from_u128(u128::MAX)));
    select_orders!(
        r#"
        where user_id = $1 and id < $2 and id >= $3
          and ($4::text is null or status = $4)
          and ($5::text is null or payment_method = $5)
          and ($6::timestamptz is null or created_at >= $6)
          and ($7::timestamptz is null or created_at < $7)
        order by id desc
        limit $8
        "#,
        user_id.as_str(),
        past as OrderId,
        OrderId::from_u128(first) as OrderId,
        wanted.status.map(OrderStatus::as_str),
        wanted.method.map(PaymentMethod::as_str),
        wanted.from,
        wanted.to,
        wanted.limit,
    )
    .fetch_all(db)
    .await
    .map_err(|error| ORDERS.error(format_args!("of user {user_id}"), error))
}

/// Orders by their numbers, locked in the order of their ids, as every transaction must do.
///
/// # Errors
/// [`DbError`].
pub async fn lock(tx: &mut PgConnection, order_nos: &[&str]) -> Result<Vec<Order>, DbError> {
    select_orders!("where order_no = any($1) order by id for update", order_nos as &[&str])
        .fetch_all(tx)
        .await
        .map_err(|error| ORDERS.error(keys(order_nos), error))
}

/// One order by its id, locked.
///
/// # Errors
/// [`DbError`].
pub async fn lock_one(tx: &mut PgConnection, id: OrderId) -> Result<Option<Order>, DbError> {
    select_orders!("where id = $1 for update", id as OrderId)
        .fetch_optional(tx)
        .await
        .map_err(|error| ORDERS.error(id, error))
}

/// Records the first request to close a pending order. Returns whether this was the first, and the order was pending.
///
/// # Errors
/// [`DbError`].
pub async fn request_close(tx: &mut PgConnection, id: OrderId, now: OffsetDateTime) -> Result<bool, DbError> {
    let noted = sqlx::query!(
        r#"
        update payment_orders
        set close_requested_at = $2, updated_at = $2, version = version + 1
        where id = $1 and status = 'pending' and close_requested_at is null
        "#,
        id as OrderId,
        now,
    )
    .execute(tx)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// Records the gateway's latest answer about an order, for a person to read.
///
/// # Errors
/// [`DbError`].
pub async fn note_check(
    tx: &mut PgConnection,
    id: OrderId,
    gateway_state: &str,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    sqlx::query!(
        "update payment_orders set checked_at = $2, gateway_state = left($3, 64) where id = $1",
        id as OrderId,
        now,
        gateway_state,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The gateway's latest answer about an order, and when it came.
///
/// # Errors
/// [`DbError`].
pub async fn last_check(db: impl PgExecutor<'_>, id: OrderId) -> Result<Option<(OffsetDateTime, String)>, DbError> {
    let row = sqlx::query!("select checked_at, gateway_state from payment_orders where id = $1", id as OrderId)
        .fetch_optional(db)
        .await?;
    Ok(row.and_then(|row| Some((row.checked_at?, row.gateway_state?))))
}

/// The id and version of many orders, for processes that watch them.
///
/// # Errors
/// [`DbError`].
pub async fn versions(db: impl PgExecutor<'_>, ids: &[OrderId]) -> Result<Vec<(OrderId, i64)>, DbError> {
    let rows = sqlx::query!(
        r#"select id as "id: OrderId", version from payment_orders where id = any($1::bpchar[])"#,
        ids as &[OrderId],
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.version)).collect())
}
