//! One active relay: a session-level advisory lock, held by the connection that the relay works on. When the connection
//! is gone, so is the lock, and so is the relay's way to go on.

use sqlx::{Executor, PgConnection};

use crate::error::DbError;

/// The lock's number: "payment" and "relay", as text, cut to 64 bits; nothing else in this database may use it.
const RELAY: i64 = 0x7061_7972_656c_6179;

/// Has the server end this connection, and with it the lead, when nothing was asked on it for 15 s: its host has vanished
/// or hangs. Whoever leads asks something at least every 10 s.
///
/// # Errors
/// [`DbError`].
pub async fn end_when_silent(connection: &mut PgConnection) -> Result<(), DbError> {
    connection.execute("set idle_session_timeout = '15s'").await?;
    Ok(())
}

/// Takes the lock for this connection's life, if nobody has it.
///
/// # Errors
/// [`DbError`].
pub async fn try_lead(connection: &mut PgConnection) -> Result<bool, DbError> {
    let row = sqlx::query!(r#"select pg_try_advisory_lock($1) as "taken!""#, RELAY).fetch_one(connection).await?;
    Ok(row.taken)
}
