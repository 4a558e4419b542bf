//! The rules of refunds in `payment_config`, and `refunds_of_a_day`: how much each key or service has returned today.

use domain::{BuyerRefunds, MethodConfig, Money, PaymentMethod, RefundRules};
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor};
use time::{Date, OffsetDateTime};

use crate::error::DbError;
use crate::tables::payment_config::By;

/// The rules of one gateway, and its version. Versions count all changes of the gateway's configuration.
#[derive(Debug, Clone)]
pub struct MethodRefundRules {
    /// The gateway.
    pub payment_method: PaymentMethod,
    /// The rules.
    pub rules: RefundRules,
    /// Increases with each change.
    pub version: i64,
    /// Who made the last change of the gateway's configuration.
    pub updated_by: String,
    /// By our clock.
    pub updated_at: OffsetDateTime,
}

/// The rules of all gateways.
///
/// # Errors
/// [`DbError`].
pub async fn all(db: impl PgExecutor<'_>) -> Result<Vec<MethodRefundRules>, DbError> {
    let rows = sqlx::query!(
        r#"
        select
          payment_method as "payment_method: PaymentMethod", buyer_refunds as "buyer_refunds: BuyerRefunds", window_days,
          auto_max_amount as "auto_max_amount: Money", staff_limit as "staff_limit: Money",
          service_daily_limit as "service_daily_limit: Money", version, updated_by, updated_at
        from payment_config
        order by payment_method
        "#
    );
    let rows = rows.fetch_all(db).await?;
    let read = rows.into_iter().map(|row| MethodRefundRules {
        payment_method: row.payment_method,
        rules: RefundRules {
            buyer_refunds: row.buyer_refunds,
            window_days: row.window_days,
            auto_max_amount: row.auto_max_amount,
            staff_limit: row.staff_limit,
            service_daily_limit: row.service_daily_limit,
        },
        version: row.version,
        updated_by: row.updated_by,
        updated_at: row.updated_at,
    });
    Ok(read.collect())
}

/// The rules of one gateway. A gateway without a row has those of a fresh installation.
///
/// # Errors
/// [`DbError`].
pub async fn of(db: impl PgExecutor<'_>, method: PaymentMethod) -> Result<RefundRules, DbError> {
    let found = all(db).await?.into_iter().find(|of_method| of_method.payment_method == method);
    Ok(found.map(|of_method| of_method.rules).unwrap_or_default())
}

/// A change of the rules of one gateway.
#[derive(Debug, Clone, Copy)]
pub struct RulesChange<'a> {
    /// The gateway's configuration, which is locked.
    pub config: &'a MethodConfig,
    /// The rules before.
    pub before: &'a RefundRules,
    /// The rules after.
    pub after: &'a RefundRules,
    /// Who makes it, and why.
    pub by: &'a By,
}

/// Replaces the rules of one gateway, and records who did it.
///
/// # Errors
/// [`DbError::Moved`] when the version has changed since `config` was read; then the caller must not commit.
pub async fn change(tx: &mut PgConnection, change: RulesChange<'_>, now: OffsetDateTime) -> Result<(), DbError> {
    let RulesChange { config, before, after, by } = change;
    let done = sqlx::query!(
        r#"
        update payment_config
        set buyer_refunds = $3, window_days = $4, auto_max_amount = $5, staff_limit = $6, service_daily_limit = $7,
            version = version + 1, updated_by = $8, updated_at = $9
        where payment_method = $1 and version = $2
        "#,
        config.payment_method.as_str(),
        config.version,
        after.buyer_refunds.as_str(),
        after.window_days,
        after.auto_max_amount as Option<Money>,
        after.staff_limit as Option<Money>,
        after.service_daily_limit as Option<Money>,
        by.who,
        now,
    )
    .execute(&mut *tx)
    .await?;
    DbError::expect_rows(done.rows_affected(), 1)?;
    sqlx::query!(
        r#"
        insert into payment_config_changes (payment_method, version, before, after, note, changed_by, changed_at)
        values ($1, $2, jsonb_build_object('refunds', $3::jsonb), jsonb_build_object('refunds', $4::jsonb), $5, $6, $7)
        "#,
        config.payment_method.as_str(),
        config.version + 1,
        Json(before) as _,
        Json(after) as _,
        by.note,
        by.who,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Adds an amount to what a caller has returned on a day. False: the sum would pass `limit`, and nothing is added.
///
/// # Errors
/// [`DbError`].
pub async fn count(
    tx: &mut PgConnection,
    caller: &str,
    day: Date,
    amount: Money,
    limit: Option<Money>,
) -> Result<bool, DbError> {
    if limit.is_some_and(|limit| amount > limit) {
        return Ok(false);
    }
    let counted = sqlx::query!(
        r#"
        insert into refunds_of_a_day (caller, day, amount) values ($1, $2, $3)
        on conflict (caller, day) do update set amount = refunds_of_a_day.amount + excluded.amount
        where $4::numeric is null or refunds_of_a_day.amount + excluded.amount <= $4
        "#,
        caller,
        day,
        amount as Money,
        limit as Option<Money>,
    )
    .execute(tx)
    .await?;
    Ok(counted.rows_affected() == 1)
}
