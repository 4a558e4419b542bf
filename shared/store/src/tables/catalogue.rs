//! `catalogue`: products with a fixed price.

use domain::{Money, ProductType, Subject};
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::error::DbError;

/// A product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Its name, by which orders and events name it.
    pub product_type: ProductType,
    /// What the buyer reads.
    pub subject: Subject,
    /// The price.
    pub amount: Money,
    /// Whether it is sold.
    pub active: bool,
    /// Increases with each change.
    pub version: i64,
    /// Who made the last change.
    pub updated_by: String,
    /// By our clock.
    pub updated_at: OffsetDateTime,
}

/// Reads products by a clause: one list of columns for every query.
macro_rules! select_products {
    ($tail:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Product,
            r#"
            select
              product_type as "product_type: ProductType", subject as "subject: Subject", amount as "amount: Money", active,
              version, updated_by, updated_at
            from catalogue
            "# + $tail
            $(, $argument)*
        )
    };
}

/// One product, also one that is not active.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: impl PgExecutor<'_>, product_type: &ProductType) -> Result<Option<Product>, DbError> {
    Ok(select_products!("where product_type = $1", product_type.as_str()).fetch_optional(db).await?)
}

/// Products by name, those after `after` only.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: impl PgExecutor<'_>, after: Option<&ProductType>, limit: i64) -> Result<Vec<Product>, DbError> {
    let after = after.map_or("", ProductType::as_str);
    Ok(select_products!("where product_type > $1 order by product_type limit $2", after, limit).fetch_all(db).await?)
}

/// Adds a product whose `version` is 1, or replaces the one with the version before.
///
/// # Errors
/// [`DbError::Moved`] when there is another version, or none to replace; then the caller must not commit.
pub async fn put(tx: &mut PgConnection, product: &Product) -> Result<(), DbError> {
    let done = if product.version == 1 {
        sqlx::query!(
            r#"
            insert into catalogue (product_type, subject, amount, active, updated_by, updated_at)
            values ($1, $2, $3, $4, $5, $6)
            on conflict on constraint catalogue_pkey do nothing
            "#,
            product.product_type.as_str(),
            product.subject.as_str(),
            product.amount as Money,
            product.active,
            product.updated_by,
            product.updated_at,
        )
        .execute(tx)
        .await?
    } else {
        sqlx::query!(
            r#"
            update catalogue
            set subject = $2, amount = $3, active = $4, updated_by = $5, updated_at = $6, version = $7::bigint
            where product_type = $1 and version = $7::bigint - 1
            "#,
            product.product_type.as_str(),
            product.subject.as_str(),
            product.amount as Money,
            product.active,
            product.updated_by,
            product.updated_at,
            product.version,
        )
        .execute(tx)
        .await?
    };
    DbError::expect_rows(done.rows_affected(), 1)
}
