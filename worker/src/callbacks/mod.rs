//! Turns callbacks into facts, and facts into state: the worker verifies each callback again, decrypts it, and settles
//! a batch in one transaction.
//!
//! We do not trust the queue, so the signature is checked here once more. Unlike the ingress, the worker does not check
//! the clock window. It queries the gateway only for a key that is unknown here; the ingress does so also for one that
//! is not valid yet or has expired.
//!
//! The worker splits a batch that the database refuses, or that another transaction delays, until the callback at fault
//! is alone. A refused callback becomes a dead letter; a delayed one becomes a job and is tried again. So neither
//! delays the other callbacks. A panic splits a batch in the same way, and the callback at fault becomes a job that
//! counts its panics (`deferred.rs`).

use domain::message::callback::{Callback, LONGEST_BODY, digest};
use runtime::panics::caught;
use store::DbError;
use tracing::error;

mod commit;
mod examine;
mod examined;
mod put_off;
mod report;
mod split;
mod worker;

pub use worker::CallbackWorker;

use examined::Examined;

use crate::consumer::Ack;
use crate::deferred::{self, WORKER};

impl CallbackWorker {
    /// Settles a batch and returns what to do with each message, in the same order. `Err` in `batch` is a message that
    /// is no callback.
    ///
    /// # Errors
    /// [`DbError`] when the database cannot do it now; every message then returns to the queue.
    pub async fn settle<E: std::fmt::Display>(&self, batch: Vec<Result<Callback, E>>) -> Result<Vec<Ack>, DbError> {
        let mut acks = vec![Ack::Done; batch.len()];
        let (mut examined, mut panicked) = (Vec::with_capacity(batch.len()), Vec::new());
        let mut places = Vec::with_capacity(batch.len());
        for (place, callback) in batch.into_iter().enumerate() {
            match callback {
                Ok(callback) if callback.body.len() > LONGEST_BODY => {
                    error!(bytes = callback.body.len(), "A callback in the queue is longer than the ingress accepts");
                    acks[place] = Ack::Dead;
                }
                Ok(callback) => match caught(self.examine(&callback)).await {
                    Ok(content) => {
                        examined.push(Examined { callback, content });
                        places.push(place);
                    }
                    Err(panic) => {
                        let panic = panic.noted(WORKER, "examine", &digest(&callback.body));
                        panicked.push((place, callback, panic));
                    }
                },
                Err(error) => {
                    error!(%error, "A message in the callback queue cannot be read as a callback");
                    acks[place] = Ack::Dead;
                }
            }
        }
        for (place, ack) in places.into_iter().zip(self.settle_or_split(&examined).await?) {
            acks[place] = ack;
        }
        let those: Vec<_> = panicked.iter().map(|(_, callback, panic)| (callback, panic)).collect();
        for ((place, ..), ack) in panicked.iter().zip(deferred::defer(&self.db, &those).await?) {
            acks[*place] = ack;
        }
        Ok(acks)
    }
}
