//! Repeats transactions that collided with another one: a deadlock, or an order of reads and writes that the isolation
//! level of this role does not allow. The database has rolled the whole transaction back, and a repeat may succeed.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use runtime::error_chain::chain;
use tracing::warn;

use crate::connect::in_time;
use crate::error::DbError;

/// Five tries in total. The waits vary in length, so that the transactions that collided do not collide again.
const TRIES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(10))
    .with_max_delay(Duration::from_millis(200))
    .with_max_times(4)
    .with_jitter();

/// An error that may be a collision.
pub trait Collision: std::error::Error + From<DbError> + 'static {
    /// Whether the transaction failed only because of another one. A timeout does not count: an immediate repeat would
    /// wait again.
    fn is_collision(&self) -> bool;
}

impl Collision for DbError {
    fn is_collision(&self) -> bool {
        matches!(self, DbError::Again(_)) && !self.ran_out_of_time()
    }
}

/// Runs a whole transaction, from begin to commit, [`in_time`], and repeats it after a collision.
///
/// # Errors
/// The error of the last try.
pub async fn retry<T, E: Collision, F: Future<Output = Result<T, E>>>(
    mut transaction: impl FnMut() -> F,
) -> Result<T, E> {
    let noted = |error: &E, _| {
        metrics::counter!("db_collisions_total").increment(1);
        warn!(error = chain(error), "Another transaction was in the way; trying again");
    };
    (|| in_time(transaction())).retry(TRIES).when(E::is_collision).notify(noted).await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn collision() -> DbError {
        DbError::Again(sqlx::Error::RowNotFound)
    }

    /// The result, and the number of tries.
    async fn tried(outcome: impl Fn(u32) -> Result<(), DbError>) -> (Result<(), DbError>, u32) {
        let tries = Cell::new(0);
        let transaction = || async {
            tries.set(tries.get() + 1);
            outcome(tries.get())
        };
        (retry(transaction).await, tries.get())
    }

    #[tokio::test]
    async fn a_collision_is_tried_again_a_few_times_and_nothing_else_is() {
        assert!(matches!(tried(|_| Ok(())).await, (Ok(()), 1)));
        assert!(matches!(tried(|nth| if nth < 3 { Err(collision()) } else { Ok(()) }).await, (Ok(()), 3)));
        assert!(matches!(tried(|_| Err(collision())).await, (Err(DbError::Again(_)), 5)));
        assert!(matches!(tried(|_| Err(DbError::Moved)).await, (Err(DbError::Moved), 1)));
        let gone = |_| Err(DbError::Unavailable(sqlx::Error::PoolTimedOut));
        assert!(matches!(tried(gone).await, (Err(DbError::Unavailable(_)), 1)), "a commit may have come through");
    }
}
