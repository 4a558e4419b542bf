//! The pool, and what becomes of a connection whose other end has vanished.
//!
//! Time-outs live on the server, since a dropped future does not cancel its statement there. A machine that vanishes takes
//! them with it and says nothing, and sqlx 0.9 puts no keepalive on its sockets, so whoever waits for an answer would wait
//! for good. What waits here therefore has a limit of its own, above those of the server. Of all that a server does alive, only
//! the wait for a standby that is away reaches it.

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

/// How long anything in the database may take in all. The server ends a statement after 5 s.
const LONGEST: Duration = Duration::from_secs(30);
/// How long a connection that comes back may take to be ready for the next one: as long as the statement that somebody
/// has given up, and some more.
const COMES_BACK: Duration = Duration::from_secs(10);
/// How long a connection that has rested may take to answer, so that another one can be made in the 2 s of an acquire.
const WAKES: Duration = Duration::from_secs(1);

/// The host that this address reaches without TLS, or without a look at its certificate; `None` where there is none. The
/// library's default, `prefer`, is silent plaintext: an attacker on the way can take TLS out.
///
/// # Errors
/// [`DbError`] when the address cannot be read.
pub fn clear_host(url: &SecretString) -> Result<Option<String>, DbError> {
    let options = PgConnectOptions::from_str(url.expose_secret())?;
    let is_socket = options.get_socket().is_some() || options.get_host().starts_with('/');
    let is_verified = matches!(options.get_ssl_mode(), PgSslMode::VerifyFull);
    Ok((!is_socket && !is_verified).then(|| options.get_host().to_owned()))
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
        // A host that has vanished is noticed after 20 s, not after the two hours of most systems: until then the server
        // keeps its sessions, with their locks.
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
        .before_acquire(|connection, _| Box::pin(answers(WAKES, is_usable(connection))))
        // sqlx tests what comes back as well, but without a limit: one that never answers would keep its place in the pool.
        .after_release(|connection, _| Box::pin(answers(COMES_BACK, async { connection.ping().await.map(|()| true) })))
        .connect_with(options)
        .await?;
    Ok(pool)
}

/// Whether a connection may be used: its server takes writes. One that only reads is not, or no longer, the one that our
/// address stands for, and the next connection may find that one.
///
/// sqlx 0.9.0 gives a connection back with an open transaction when `begin()` was dropped halfway (transact-rs/sqlx#4393).
/// ROLLBACK ends it. Where there is none, ROLLBACK alone would put a warning into the server's log, each time.
async fn is_usable(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let answer = sqlx::raw_sql("begin; rollback; show transaction_read_only").fetch_one(connection).await?;
    Ok(answer.try_get::<String, _>(0)? == "off")
}

async fn answers<T>(limit: Duration, asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(limit, asked).await.unwrap_or_else(|_| Err(silence()))
}

/// Gives up work in the database that takes longer than 30 s, so that nothing waits for a machine that has vanished. What
/// was asked there may have been done all the same, as when a connection is lost.
///
/// # Errors
/// The work's own, or [`DbError::Unavailable`] when it was given up.
pub async fn in_time<T, E: From<DbError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    within(LONGEST, work).await
}

async fn within<T, E: From<DbError>>(limit: Duration, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(DbError::Unavailable(silence()).into()))
}

fn silence() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database does not answer"))
}

/// Has this transaction wait no more than 250 ms for a lock: about as long as a healthy transaction holds one.
///
/// # Errors
/// [`DbError`].
pub async fn hardly_wait_for_locks(tx: &mut PgConnection) -> Result<(), DbError> {
    tx.execute("set local lock_timeout = '250ms'").await?;
    Ok(())
}

/// Meets what a test has planted at this point for a piece of work, inside its transaction ([`crash::met`]).
///
/// # Errors
/// The planted one, or the server's word on a planted statement that takes too long.
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

/// Asks the database for a sign of life.
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
