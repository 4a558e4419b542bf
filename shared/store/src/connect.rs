//! The pool, and how we handle a connection whose other end has vanished.
//!
//! Timeouts are set on the server, because a dropped future does not cancel its statement there. If the server's
//! machine vanishes, its timeouts vanish with it, and no error reaches us. sqlx 0.9 sets no keepalive on its sockets,
//! so a client that waits for an answer would wait forever. Therefore each wait on our side has its own limit, above
//! those of the server. On a live server, only the wait for an unreachable standby can reach that limit.

use std::io;
use std::str::FromStr;
use std::time::Duration;

use runtime::crash;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{Connection, Executor, PgConnection, PgExecutor, Postgres, Row};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::error::DbError;
use crate::stale;

/// How long any work in the database may take in total. The server aborts a statement after 5 s.
const LONGEST: Duration = Duration::from_secs(30);
/// How long a returned connection may take to be ready for its next user: as long as a statement that its last user
/// abandoned, and some more.
const COMES_BACK: Duration = Duration::from_secs(10);
/// How long an idle connection may take to answer, so that another one can still be made within the 2 s of an acquire.
const WAKES: Duration = Duration::from_secs(1);

/// Begins a transaction that only reads, and in which every statement sees the same rows.
pub const SNAPSHOT: &str = "begin isolation level repeatable read read only";

/// The host that this address reaches without TLS, or without verifying its certificate; `None` if there is none. The
/// library's default, `prefer`, falls back to plaintext without a message: an attacker on the network path can remove
/// TLS.
///
/// # Errors
/// [`DbError`] when the address cannot be read.
pub fn clear_host(url: &SecretString) -> Result<Option<String>, DbError> {
    let options = PgConnectOptions::from_str(url.expose_secret())?;
    let is_socket = options.get_socket().is_some() || options.get_host().starts_with('/');
    let is_verified = matches!(options.get_ssl_mode(), PgSslMode::VerifyFull);
    Ok((!is_socket && !is_verified).then(|| options.get_host().to_owned()))
}

/// A pool of one connection beside this one, for work that must not wait for a free connection. It connects when it is
/// first used.
pub fn one_more(db: &PgPool) -> PgPool {
    let options = PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(1));
    options.connect_lazy_with(db.connect_options().as_ref().clone())
}

/// How long one statement of a long read may take.
const LONG_STATEMENT: &str = "10min";
/// How long the reader of a long read may pause between two statements.
const LONG_PAUSE: &str = "60s";
/// How long a new connection may take.
const CONNECTS: Duration = Duration::from_secs(5);

/// A connection beside this pool, for a read that takes minutes: its statements may take longer than those of the pool,
/// and it takes no connection from requests. When it is dropped, its session ends: the server looks for a vanished client
/// every 5 s, also within a statement.
///
/// # Errors
/// [`DbError`] when no connection can be made.
pub async fn for_a_long_read(db: &PgPool) -> Result<PgConnection, DbError> {
    let options = db.connect_options().as_ref().clone().options([
        ("statement_timeout", LONG_STATEMENT),
        ("idle_in_transaction_session_timeout", LONG_PAUSE),
        ("client_connection_check_interval", "5s"),
    ]);
    Ok(answers(CONNECTS, PgConnection::connect_with(&options)).await?)
}

/// Opens a pool.
///
/// # Errors
/// [`DbError`] when the address cannot be read or no connection can be made.
pub async fn connect(url: &SecretString, service: &str, max_connections: u32) -> Result<PgPool, DbError> {
    let options = PgConnectOptions::from_str(url.expose_secret())?.application_name(service).options([
        ("statement_timeout", "5s"),
        ("lock_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("client_min_messages", "error"),
        ("tcp_user_timeout", "5s"),
        // The server notices a vanished client after 20 s, not after the two hours of most systems. Until then it holds
        // the client's sessions and their locks.
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "2"),
    ]);
    let pool = PgPoolOptions::new()
        .max_connections(max_connections)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(2))
        .max_lifetime(Duration::from_secs(1800))
        .idle_timeout(Duration::from_secs(300))
        .test_before_acquire(false)
        .before_acquire(|connection, known| {
            Box::pin(async move { Ok(!stale::is_stale(known.age) && answers(WAKES, is_usable(connection)).await?) })
        })
        // sqlx also tests a returned connection, but without a limit: one that never answers would occupy its place in
        // the pool.
        .after_release(|connection, _| Box::pin(answers(COMES_BACK, async { connection.ping().await.map(|()| true) })))
        .connect_with(options)
        .await?;
    Ok(pool)
}

/// Whether a connection may be used: its server accepts writes. A read-only server is not, or is no longer, the one
/// that our address names; the next connection may reach the right one.
///
/// sqlx 0.9.0 returns a connection with an open transaction when `begin()` was dropped halfway (transact-rs/sqlx#4393).
/// ROLLBACK ends it. Without an open transaction, ROLLBACK alone would write a warning to the server's log each time.
async fn is_usable(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let answer = sqlx::raw_sql("begin; rollback; show transaction_read_only").fetch_one(connection).await?;
    Ok(answer.try_get::<String, _>(0)? == "off")
}

async fn answers<T>(limit: Duration, query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(limit, query).await.unwrap_or_else(|_| Err(silence()))
}

/// Stops waiting for work in the database that takes longer than 30 s, so that no caller waits for a machine that has
/// vanished. The database may still have done the work, as when a connection is lost.
///
/// # Errors
/// The error of the work, or [`DbError::Unavailable`] after 30 s.
pub async fn in_time<T, E: From<DbError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    within(LONGEST, work).await
}

async fn within<T, E: From<DbError>>(limit: Duration, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(DbError::Unavailable(silence()).into()))
}

fn silence() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database does not answer"))
}

/// Makes this transaction wait at most 250 ms for a lock: about as long as a healthy transaction holds one.
///
/// # Errors
/// [`DbError`].
pub async fn hardly_wait_for_locks(tx: &mut PgConnection) -> Result<(), DbError> {
    tx.execute("set local lock_timeout = '250ms'").await?;
    Ok(())
}

/// Triggers the fault that a test has planted at this point for a piece of work, inside its transaction
/// ([`crash::met`]).
///
/// # Errors
/// The planted error, or the server's error for a planted statement that takes too long.
pub async fn met(tx: &mut PgConnection, point: crash::Point, subject: &str) -> Result<(), DbError> {
    match crash::met(point, subject) {
        Ok(()) => Ok(()),
        Err(crash::Planted(crash::Fault::Slow)) => {
            tx.execute("select pg_sleep(60)").await?;
            Ok(())
        }
        Err(planted) => Err(DbError::Failed(sqlx::Error::Decode(planted.into()))),
    }
}

/// Checks that the database answers.
///
/// # Errors
/// [`DbError`].
pub async fn ping<'c>(connection: impl Executor<'c, Database = Postgres>) -> Result<(), DbError> {
    connection.execute("select 1").await?;
    Ok(())
}

/// The clock of the database.
///
/// # Errors
/// [`DbError`].
pub async fn its_clock(db: impl PgExecutor<'_>) -> Result<OffsetDateTime, DbError> {
    Ok(sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(db).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_never_ends_is_given_up_and_blames_no_row() {
        let never = std::future::pending::<Result<(), DbError>>();
        let given_up = within(Duration::from_millis(10), never).await.unwrap_err();
        assert!(matches!(given_up, DbError::Unavailable(_)), "{given_up:?}");
        assert!(!given_up.blames_the_rows() && !given_up.ran_out_of_time());
        assert!(matches!(in_time(async { Ok::<_, DbError>(7) }).await, Ok(7)));
        assert!(matches!(in_time(async { Err::<(), _>(DbError::Moved) }).await, Err(DbError::Moved)));
    }
}
