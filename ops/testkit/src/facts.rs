//! Lets tests write rows without a real fact behind them.

use sqlx::PgPool;

/// Lets a test write states and events that did not happen: it disables the triggers that refuse them in this database.
///
/// # Panics
/// When the database refuses.
pub async fn make_up_facts(db: &PgPool) {
    for table in ["payment_orders", "refund_records", "events"] {
        let sql = sqlx::AssertSqlSafe(format!("alter table {table} disable trigger user"));
        sqlx::query(sql).execute(db).await.expect("triggers are off");
    }
}

/// Lets buyers make refunds without a person, as a shop that was there before the rules does. A fresh installation lets
/// them make requests alone.
///
/// # Panics
/// When the database refuses.
pub async fn buyers_refund_at_once(db: &PgPool) {
    sqlx::query("update payment_config set buyer_refunds = 'auto'").execute(db).await.expect("the rules are there");
}
