//! Settles a batch, and splits one that the database refuses or delays until the callback at fault is alone.

use std::ops::Range;
use std::time::Duration;

use runtime::error_chain::chain;
use runtime::panics::{Panicked, caught};
use store::DbError;
use store::retry::retry;
use tokio::time::Instant;
use tracing::{error, warn};

use crate::callbacks::commit::{Committed, LockWait};
use crate::callbacks::examined::Examined;
use crate::callbacks::put_off::{LONG_WAIT, SHORT_WAIT};
use crate::callbacks::worker::CallbackWorker;
use crate::consumer::Ack;
use crate::deferred::{self, WORKER};

/// The number of parts into which a batch is split. Among 1000 callbacks the fourth split isolates the one at fault.
const PARTS: usize = 8;
/// How long parts are tried after a batch was delayed. After that, the remaining callbacks become jobs.
///
/// An attempt ends with the first statement that takes too long: 2 s for a lock, 250 ms in a part, 5 s for anything
/// else. So every attempt begins within 5 + 12 s. The last attempt and the storing as jobs may add 5 s each: less than
/// the 28 s that a stop allows. A single lock among 400 callbacks is found in under 3 s. Even if every statement takes
/// 5 s, a batch of 400 has been tried in single callbacks by then.
const SEARCH: Duration = Duration::from_secs(12);

/// The next action for a part of a batch.
#[derive(Debug, Clone)]
enum Plan {
    Settle,
    /// Store it as jobs that are due after this wait, for this reason.
    PutOff(time::Duration, String),
    /// It panicked alone: store it as a job for another try, or reject it if it has no try left.
    Defer(Panicked),
}

/// The error that stopped a part of a batch.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl CallbackWorker {
    /// Settles what can be settled, stores delayed callbacks as jobs, and returns what to do with each message.
    pub(super) async fn settle_or_split(&self, examined: &[Examined]) -> Result<Vec<Ack>, DbError> {
        let mut acks: Vec<Ack> = examined.iter().map(Examined::ack).collect();
        let mut waiting = Vec::new();
        if !examined.is_empty() {
            waiting.push((0..examined.len(), Plan::Settle));
        }
        // Set as soon as a part was delayed.
        let mut give_up = None;
        while let Some((part, mut plan)) = waiting.pop() {
            if matches!(plan, Plan::Settle) && give_up.is_some_and(|give_up| Instant::now() >= give_up) {
                plan = Plan::PutOff(SHORT_WAIT, "others of its batch took too long".to_owned());
            }
            let these = &examined[part.clone()];
            let outcome = match caught(Box::pin(self.attempt(these, &plan, give_up.is_some()))).await {
                Ok(outcome) => outcome.map_err(Fault::Db),
                Err(panic) => Err(panic.noted(WORKER, plan.stage(), &these[0].subject()).into()),
            };
            if matches!(outcome, Err(Fault::Db(DbError::Again(_)))) {
                give_up.get_or_insert_with(|| Instant::now() + SEARCH);
            }
            match (outcome, plan) {
                (Ok(judged), _) => judged.into_iter().for_each(|(place, ack)| acks[part.start + place] = ack),
                (Err(Fault::Db(unavailable @ DbError::Unavailable(_))), _) => return Err(unavailable),
                // The callbacks cannot be stored either.
                (Err(Fault::Db(again @ DbError::Again(_))), Plan::PutOff(..) | Plan::Defer(_)) => return Err(again),
                (Err(error), plan) if part.len() > 1 => {
                    warn!(error = chain(&error), callbacks = part.len(), "A batch was not settled; it is split");
                    metrics::counter!("callback_batches_split_total").increment(1);
                    waiting.extend(slices(part).rev().map(|slice| (slice, plan.clone())));
                }
                (Err(Fault::Db(error)), _) if error.blames_the_rows() => {
                    error!(error = chain(&error), "The database refuses a callback permanently");
                    acks[part].fill(Ack::Dead);
                }
                (Err(Fault::Db(error)), Plan::Settle) => {
                    let wait = if matches!(error, DbError::Again(_)) { SHORT_WAIT } else { LONG_WAIT };
                    waiting.push((part, Plan::PutOff(wait, chain(&error))));
                }
                (Err(Fault::Db(error)), Plan::PutOff(..) | Plan::Defer(_)) => return Err(error),
                (Err(Fault::Panicked(panic)), Plan::Settle) => waiting.push((part, Plan::Defer(panic))),
                (Err(Fault::Panicked(_)), Plan::PutOff(..) | Plan::Defer(_)) => {
                    error!("A callback can be neither settled nor stored; its dead letter holds it");
                    acks[part].fill(Ack::Dead);
                }
            }
        }
        Ok(acks)
    }

    /// Carries out the plan for a part of a batch. Returns the acks that differ from those that its verdicts require,
    /// with their positions.
    async fn attempt(&self, these: &[Examined], plan: &Plan, others_wait: bool) -> Result<Vec<(usize, Ack)>, DbError> {
        let all = |ack: Ack| (0..these.len()).map(move |place| (place, ack)).collect();
        match plan {
            Plan::Settle => {
                let Committed { verdicts, stranded } = if others_wait {
                    store::connect::in_time(self.commit(these, LockWait::Hurried)).await?
                } else {
                    retry(|| self.commit(these, LockWait::Patient)).await?
                };
                self.report(these, &verdicts).await;
                if !stranded.is_empty() {
                    error!(
                        callbacks = stranded.len(),
                        "Keys or accounts are unknown for more than a day; their callbacks become cases"
                    );
                }
                Ok(stranded.into_iter().map(|place| (place, Ack::Dead)).collect())
            }
            Plan::PutOff(wait, reason) => self.put_off(these, *wait, reason).await.map(|()| all(Ack::Done)),
            Plan::Defer(panic) => {
                let those: Vec<_> = these.iter().map(|item| (&item.callback, panic)).collect();
                Ok(deferred::defer(&self.db, &those).await?.into_iter().enumerate().collect())
            }
        }
    }
}

/// Splits the range into [`PARTS`] slices, or into single positions if there are fewer.
fn slices(part: Range<usize>) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let len = part.len().div_ceil(PARTS).max(1);
    part.clone().step_by(len).map(move |start| start..part.end.min(start + len)).collect::<Vec<_>>().into_iter()
}

impl Plan {
    /// Its name in metrics.
    fn stage(&self) -> &'static str {
        match self {
            Plan::Settle => "settle",
            Plan::PutOff(..) => "put_off",
            Plan::Defer(_) => "defer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_a_part_in_order_and_shrink_to_single_places() {
        for len in [2, 3, 8, 9, 400, 1000] {
            let slices: Vec<_> = slices(7..7 + len).collect();
            assert!(slices.len() <= PARTS && slices.len() > 1, "{len}: {slices:?}");
            assert_eq!(slices.iter().cloned().flatten().collect::<Vec<_>>(), (7..7 + len).collect::<Vec<_>>());
        }
        let mut longest = vec![1000];
        while *longest.last().unwrap() > 1 {
            longest.push(slices(0..*longest.last().unwrap()).map(|slice| slice.len()).max().unwrap());
        }
        assert_eq!(longest, [1000, 125, 16, 2, 1]);
    }
}
