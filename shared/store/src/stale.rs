//! Connections that were opened before a migration changed the type of a column.
//!
//! PostgreSQL refuses a prepared statement whose result has another type than before (0A000, `cached plan must not change
//! result type`), and sqlx keeps the statement as long as its connection. So a connection that may hold such a statement
//! is not used again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When a statement of this process was last refused for this reason.
static MET: Mutex<Option<Instant>> = Mutex::new(None);

/// A statement was refused. Every connection that is open now may hold one like it.
pub(crate) fn met() {
    *MET.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

/// Whether a connection of this age was open when a statement was last refused.
pub(crate) fn is_stale(age: Duration) -> bool {
    let met = *MET.lock().unwrap_or_else(PoisonError::into_inner);
    met.is_some_and(|met| age >= met.elapsed())
}
