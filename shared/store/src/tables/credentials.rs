//! `order_credentials`: the last credential that a gateway gave for an order, encrypted (see [`runtime::seal`]).

use domain::OrderId;
use runtime::seal::Place;
use sqlx::PgExecutor;
use time::OffsetDateTime;

use crate::error::DbError;

/// A credential as it is stored.
pub struct StoredCredential {
    /// See [`runtime::seal`].
    pub sealed: Vec<u8>,
    /// When the gateway gave it.
    pub obtained_at: OffsetDateTime,
    /// The buyer can pay with it until this time.
    pub valid_until: OffsetDateTime,
}

/// The place that a credential of this order is sealed for; `id` is the order's.
pub const fn place(id: &str) -> Place<'_> {
    Place { table: "order_credentials", column: "sealed", id }
}

/// Stores a credential and replaces an older one.
///
/// # Errors
/// [`DbError`].
pub async fn store(db: impl PgExecutor<'_>, order: OrderId, credential: &StoredCredential) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        insert into order_credentials as known (order_id, sealed, obtained_at, valid_until) values ($1, $2, $3, $4)
        on conflict on constraint order_credentials_pkey do update
        set sealed = excluded.sealed, obtained_at = excluded.obtained_at, valid_until = excluded.valid_until
        where known.obtained_at <= excluded.obtained_at
        "#,
        order as OrderId,
        credential.sealed,
        credential.obtained_at,
        credential.valid_until,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The credential of an order, if it is still valid at `now`.
///
/// # Errors
/// [`DbError`].
pub async fn last(
    db: impl PgExecutor<'_>,
    order: OrderId,
    now: OffsetDateTime,
) -> Result<Option<StoredCredential>, DbError> {
    Ok(sqlx::query_as!(
        StoredCredential,
        "select sealed, obtained_at, valid_until from order_credentials where order_id = $1 and valid_until > $2",
        order as OrderId,
        now,
    )
    .fetch_optional(db)
    .await?)
}
