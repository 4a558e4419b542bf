//! Crash points: every step between two effects that outlive the process, where the death of a process matters.
//!
//! A program built with debug assertions dies at the point that `CRASH_AT` names, so that a test can see the
//! consequences of a death there. A test can also plant a fault at a point for one piece of work: [`plant`]. A release
//! build contains none of this: [`at`] and [`met`] do nothing, and the variable is not read.

use domain::named_enum;

named_enum! {
    /// A moment between two effects that outlive the process. Its name consists of the work in progress and the step
    /// that has just been done.
    Point {
        /// A callback has been read, and nothing has been checked.
        IntakeRead = "intake.read",
        /// A callback is authentic, and exists only in memory.
        IntakeVerified = "intake.verified",
        /// Messages have been sent to the broker; it is not yet known whether the broker stored them.
        PublishSent = "publish.sent",
        /// The broker has stored a callback; the gateway has not been answered.
        IntakeConfirmed = "intake.confirmed",
        /// The broker did not accept a callback; it has not been written to the database yet.
        IntakeUnpublished = "intake.unpublished",
        /// The database has stored a callback as a job; the gateway has not been answered.
        IntakeStored = "intake.stored",

        /// An order is drafted, and exists only in memory.
        OrderDrafted = "order.drafted",
        /// An order is committed; the gateway does not know it.
        OrderPlaced = "order.placed",
        /// The gateway offers an order; the answer to the buyer has not been saved.
        OrderOffered = "order.offered",
        /// The answer about an order has been saved; the buyer has not received it.
        OrderAnswered = "order.answered",
        /// The request to close an order is committed; the buyer has not been answered.
        CloseRequested = "close.asked",

        /// A batch of messages has been received; nothing has been done with it.
        BatchTaken = "batch.taken",
        /// Every effect of a batch is committed; nothing has been acknowledged.
        BatchSettled = "batch.settled",
        /// One message of a batch has been rejected as dead; the others have not been acknowledged.
        BatchRejected = "batch.rejected",
        /// A batch has been acknowledged.
        BatchAcked = "batch.acked",

        /// Callbacks have been verified again and decrypted; no transaction has begun.
        CallbackExamined = "callback.examined",
        /// Within the transaction: orders and refunds have changed, and the evidence has not been written.
        CallbackMoved = "callback.moved",
        /// Within the transaction: everything is written.
        CallbackRecorded = "callback.recorded",
        /// Callbacks are settled and committed; neither the cached copies nor the relay have been notified.
        CallbackCommitted = "callback.committed",
        /// Delayed callbacks are committed as jobs; their messages are still in the queue.
        CallbackStored = "callback.kept",

        /// A job is leased to this worker; nothing has been done with it.
        JobTaken = "job.taken",

        /// The gateway has answered a query about an order.
        CheckQueried = "check.asked",
        /// The gateway has closed an order that is still open here.
        CheckClosed = "check.closed",
        /// Within the transaction: the order has changed, and its job has not.
        CheckSettled = "check.settled",
        /// Within the transaction: everything is written.
        CheckRecorded = "check.recorded",
        /// A check is committed; neither the cached copies nor the relay have been notified.
        CheckCommitted = "check.committed",

        /// Within the transaction: a refund is written, with its job and its answer.
        RefundRequested = "refund.asked",
        /// A refund is committed; the caller has not been answered.
        RefundAccepted = "refund.accepted",
        /// The mark that a refund is about to be sent is committed; the refund has not been sent.
        RefundMarked = "refund.marked",
        /// The gateway has answered a refund request; nothing of the answer is written.
        RefundAnswered = "refund.answered",
        /// The gateway has answered a refund query; nothing of the answer is written.
        RefundQueried = "refund.queried",
        /// Within the transaction: refund and order have changed, and the job has not.
        RefundSettled = "refund.settled",
        /// Within the transaction: everything is written.
        RefundRecorded = "refund.recorded",
        /// A step of a refund is committed; the cached copies have not been notified.
        RefundCommitted = "refund.committed",

        /// Jobs are leased to the relay; none has been published.
        RelayLeased = "relay.leased",
        /// The broker has stored the due jobs.
        RelayCarried = "relay.carried",
        /// Events are about to be published.
        OutboxTaken = "outbox.taken",
        /// The broker has stored events that are not marked as published.
        OutboxConfirmed = "outbox.confirmed",
        /// Events are marked as published.
        OutboxMarked = "outbox.marked",
        /// Within the transaction: a dead letter has become a case.
        LetterOpened = "letter.opened",
        /// The case of a dead letter is committed; the dead letter is still in its queue.
        LetterFiled = "letter.filed",
        /// A broken route is declared again at the broker; the jobs lost with it are not yet due again.
        TopologyDeclared = "topology.declared",
        /// The jobs lost with the route are due again; the route is not yet marked as whole.
        TopologyRebuilt = "topology.rebuilt",
    }
}

/// Kills the process if `CRASH_AT` names this point: nothing is closed, flushed or rolled back.
#[inline]
pub fn at(point: Point) {
    #[cfg(debug_assertions)]
    armed::pass(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

/// The kind of fault that a test plants at a point for one piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A panic.
    Panic,
    /// An error without a real failure behind it.
    Error,
    /// A statement that exceeds the statement timeout. Outside a transaction it is an error.
    Slow,
}

/// A planted fault that is not a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a planted fault")]
pub struct Planted(pub Fault);

/// Triggers the fault that was planted at this point for this piece of work, if there is one. Panics if it is a panic.
///
/// # Errors
/// [`Planted`] if it is another fault.
#[inline]
pub fn met(point: Point, subject: &str) -> Result<(), Planted> {
    #[cfg(debug_assertions)]
    return sown::met(point, subject);
    #[cfg(not(debug_assertions))]
    {
        let _ = (point, subject);
        Ok(())
    }
}

#[cfg(debug_assertions)]
pub use armed::arm;
#[cfg(debug_assertions)]
pub use sown::{Sown, plant};

/// Faults for single pieces of work, identified by their subject, so that parallel tests do not affect each other.
#[cfg(debug_assertions)]
mod sown {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, PoisonError};

    use super::{Fault, Planted, Point};

    struct Seed {
        point: Point,
        subject: String,
        fault: Fault,
        met: Arc<AtomicUsize>,
    }

    static SEEDS: Mutex<Vec<Seed>> = Mutex::new(Vec::new());
    /// The number of planted faults. Most processes have none, and this counter saves them the lock.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);

    /// A planted fault. Dropping this removes it.
    pub struct Sown(Arc<AtomicUsize>);

    impl Sown {
        /// How often the fault was triggered.
        pub fn met(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl Drop for Sown {
        fn drop(&mut self) {
            let mut seeds = SEEDS.lock().unwrap_or_else(PoisonError::into_inner);
            seeds.retain(|seed| !Arc::ptr_eq(&seed.met, &self.0));
            NUMBER.store(seeds.len(), Ordering::Relaxed);
        }
    }

    /// Plants a fault at a point for the work on `subject`: an order number, a notice id, an event id, or the number of
    /// a job.
    #[must_use]
    pub fn plant(point: Point, subject: &str, fault: Fault) -> Sown {
        let met = Arc::new(AtomicUsize::new(0));
        let mut seeds = SEEDS.lock().unwrap_or_else(PoisonError::into_inner);
        seeds.push(Seed { point, subject: subject.to_owned(), fault, met: met.clone() });
        NUMBER.store(seeds.len(), Ordering::Relaxed);
        Sown(met)
    }

    pub fn met(point: Point, subject: &str) -> Result<(), Planted> {
        if NUMBER.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let fault = {
            let seeds = SEEDS.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(seed) = seeds.iter().find(|seed| seed.point == point && seed.subject == subject) else {
                return Ok(());
            };
            seed.met.fetch_add(1, Ordering::Relaxed);
            seed.fault
        };
        assert!(fault != Fault::Panic, "planted at {point}");
        Err(Planted(fault))
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::panics::caught_now;

        #[test]
        fn a_fault_is_met_at_its_point_by_its_subject_for_as_long_as_it_is_planted() {
            let meet = |point, subject: &'static str| caught_now(move || met(point, subject));
            let slow = plant(Point::CallbackMoved, "crash-a", Fault::Slow);
            let panics = plant(Point::CallbackMoved, "crash-b", Fault::Panic);
            assert_eq!(meet(Point::CallbackMoved, "crash-a"), Ok(Err(Planted(Fault::Slow))));
            assert!(meet(Point::CallbackMoved, "crash-b").is_err());
            assert_eq!(meet(Point::CallbackMoved, "crash-c"), Ok(Ok(())));
            assert_eq!(meet(Point::CallbackRecorded, "crash-a"), Ok(Ok(())));
            assert_eq!((slow.met(), panics.met()), (1, 1));
            drop(panics);
            assert_eq!(meet(Point::CallbackMoved, "crash-b"), Ok(Ok(())));
        }
    }
}

#[cfg(debug_assertions)]
mod armed {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Point;
    use crate::env::Env;

    /// The point at which to die, and at which pass.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Order {
        point: Point,
        nth: usize,
    }

    static ORDER: OnceLock<Order> = OnceLock::new();
    static PASSED: AtomicUsize = AtomicUsize::new(0);

    /// Reads `CRASH_AT`: the name of a point, or `name:3` for the third time that the process reaches it.
    pub fn arm(env: &mut Env) {
        let Some(text) = env.optional("CRASH_AT") else { return };
        match parse(&text) {
            Some(order) => drop(ORDER.set(order)),
            None => env.fault("CRASH_AT", format!("{text:?} names no point"), "see shared/runtime/src/crash.rs"),
        }
    }

    fn parse(text: &str) -> Option<Order> {
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        Some(Order { point: name.parse().ok()?, nth: nth.parse().ok().filter(|nth| *nth > 0)? })
    }

    pub fn pass(point: Point) {
        let Some(order) = ORDER.get().filter(|order| order.point == point) else { return };
        if PASSED.fetch_add(1, Ordering::Relaxed) + 1 == order.nth {
            // Written in one piece, because other threads still write to the log. The process dies even if this fails.
            let _ = std::io::stderr().write_all(format!("crash point {point}\n").as_bytes());
            std::process::abort();
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_is_named_with_or_without_how_often_it_is_passed() {
            let order = |point, nth| Some(Order { point, nth });
            assert_eq!(parse("callback.moved"), order(Point::CallbackMoved, 1));
            assert_eq!(parse("outbox.marked:3"), order(Point::OutboxMarked, 3));
            for wrong in ["", "callback", "callback.moved:", "callback.moved:0", "callback.moved:-1", ":1", "a.b:1"] {
                assert_eq!(parse(wrong), None, "{wrong}");
            }
        }

        #[test]
        fn a_process_that_was_given_a_place_that_does_not_exist_does_not_start() {
            let mut env = Env::of([("CRASH_AT", "callback.moveed")]);
            arm(&mut env);
            let text = env.finish().unwrap_err().to_string();
            assert!(text.contains(r#"CRASH_AT: "callback.moveed" names no point"#), "{text}");
        }
    }
}
