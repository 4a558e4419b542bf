//! Only one relay is active. It holds a session-level advisory lock on the connection that it works on. When the
//! connection is lost, the lock is lost too, and the relay cannot go on.

use sqlx::{Executor, PgConnection};

use crate::error::DbError;

/// The number of the lock: "payment" and "relay" as text, cut to 64 bits. Nothing else in this database may use it.
const RELAY: i64 = 0x7061_7972_656c_6179;

/// Makes the server close this connection, and so end the leadership, after 15 s without a statement: its host has
/// vanished or hangs. A healthy leader sends a statement at least every 10 s.
///
/// # Errors
/// [`DbError`].
pub async fn end_when_silent(connection: &mut PgConnection) -> Result<(), DbError> {
    connection.execute("set idle_session_timeout = '15s'").await?;
    Ok(())
}

/// Takes the lock until this connection closes, if no other session holds it.
///
/// # Errors
/// [`DbError`].
pub async fn try_lead(connection: &mut PgConnection) -> Result<bool, DbError> {
    let row = sqlx::query!(r#"select pg_try_advisory_lock($1) as "taken!""#, RELAY).fetch_one(connection).await?;
    Ok(row.taken)
}
