//! `payment_config` and `payment_config_changes`: what buyers can choose at present, and who changed it.

use domain::{MethodConfig, MethodRules, Money, PaymentConfig, PaymentMethod, Scene};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::error::DbError;

struct Row {
    payment_method: PaymentMethod,
    enabled: bool,
    disabled_scenes: Vec<Scene>,
    min_amount: Money,
    max_amount: Money,
    version: i64,
    updated_by: String,
    updated_at: OffsetDateTime,
}

impl From<Row> for MethodConfig {
    fn from(row: Row) -> MethodConfig {
        let Row { payment_method, enabled, disabled_scenes, min_amount, max_amount, version, .. } = row;
        let rules = MethodRules { enabled, disabled_scenes, min_amount, max_amount };
        MethodConfig { payment_method, rules, version, updated_by: row.updated_by, updated_at: row.updated_at }
    }
}

/// Reads whole rows: one list of columns for every query.
macro_rules! select_config {
    ($tail:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"
            select
              payment_method as "payment_method: PaymentMethod", enabled, disabled_scenes as "disabled_scenes: Vec<Scene>",
              min_amount as "min_amount: Money", max_amount as "max_amount: Money", version, updated_by, updated_at
            from payment_config
            "# + $tail
            $(, $argument)*
        )
    };
}

/// The rules of all gateways.
///
/// # Errors
/// [`DbError`].
pub async fn all(db: impl PgExecutor<'_>) -> Result<PaymentConfig, DbError> {
    let rows = select_config!("order by payment_method").fetch_all(db).await?;
    Ok(PaymentConfig { methods: rows.into_iter().map(MethodConfig::from).collect() })
}

/// The rules of one gateway, locked.
///
/// # Errors
/// [`DbError`].
pub async fn lock(tx: &mut PgConnection, method: PaymentMethod) -> Result<Option<MethodConfig>, DbError> {
    let row = select_config!("where payment_method = $1 for update", method.as_str()).fetch_optional(tx).await?;
    Ok(row.map(MethodConfig::from))
}

/// Who changes the rules, and the reason.
#[derive(Debug, Clone)]
pub struct By {
    /// A person.
    pub who: String,
    /// The reason in their words, 2000 characters at most.
    pub note: Option<String>,
}

/// Replaces the rules of one gateway and records who did it.
///
/// # Errors
/// [`DbError::Moved`] when the version has changed since `before` was read; then the caller must not commit.
pub async fn change(
    tx: &mut PgConnection,
    before: &MethodConfig,
    after: &MethodRules,
    by: &By,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    let done = sqlx::query!(
        r#"
        update payment_config
        set enabled = $3, disabled_scenes = $4, min_amount = $5, max_amount = $6, version = version + 1, updated_by = $7,
            updated_at = $8
        where payment_method = $1 and version = $2
        "#,
        before.payment_method.as_str(),
        before.version,
        after.enabled,
        &after.disabled_scenes as &[Scene],
        after.min_amount as Money,
        after.max_amount as Money,
        by.who,
        now,
    )
    .execute(&mut *tx)
    .await?;
    DbError::expect_rows(done.rows_affected(), 1)?;
    sqlx::query!(
        r#"
        insert into payment_config_changes (payment_method, version, before, after, note, changed_by, changed_at)
        values ($1, $2, $3, $4, $5, $6, $7)
        "#,
        before.payment_method.as_str(),
        before.version + 1,
        Json(&before.rules) as _,
        Json(after) as _,
        by.note,
        by.who,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// One change of the rules of one gateway.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its number among all changes.
    pub id: i64,
    /// The gateway.
    pub payment_method: PaymentMethod,
    /// The version after the change.
    pub version: i64,
    /// The rules before.
    pub before: Value,
    /// The rules after.
    pub after: Value,
    /// The reason.
    pub note: Option<String>,
    /// Who made the change.
    pub changed_by: String,
    /// By our clock.
    pub changed_at: OffsetDateTime,
}

/// Changes, newest first; only those older than `before`.
///
/// # Errors
/// [`DbError`].
pub async fn changes(
    db: impl PgExecutor<'_>,
    method: Option<PaymentMethod>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Change>, DbError> {
    Ok(sqlx::query_as!(
        Change,
        r#"
        select
          id, payment_method as "payment_method: PaymentMethod", version, before, after, note, changed_by, changed_at
        from payment_config_changes
        where id < $1 and ($2::text is null or payment_method = $2)
        order by id desc
        limit $3
        "#,
        before.unwrap_or(i64::MAX),
        method.map(PaymentMethod::as_str),
        limit,
    )
    .fetch_all(db)
    .await?)
}
