//! The moments at which it matters that a process may die: every step between two effects that outlive it.
//!
//! A program built with debug assertions dies at the one that `CRASH_AT` names, so that a test can see what becomes of a
//! death there. A test can also plant a fault there for one piece of work: [`plant`]. A program built for use contains none
//! of this: [`at`] and [`met`] are nothing, and the variable is not read.

use domain::named_enum;

named_enum! {
    /// A moment between two effects that outlive the process. Named by what is about to be carried on, and by what has
    /// just been done.
    Point {
        /// A callback was read, and nothing was checked.
        IntakeRead = "intake.read",
        /// A callback is authentic, and is nowhere but in memory.
        IntakeVerified = "intake.verified",
        /// Messages have left for the broker; whether it holds them is not known yet.
        PublishSent = "publish.sent",
        /// The broker holds a callback; the gateway was not answered.
        IntakeConfirmed = "intake.confirmed",
        /// The broker did not take a callback; the database was not asked yet.
        IntakeUnpublished = "intake.unpublished",
        /// The database holds a callback as a job; the gateway was not answered.
        IntakeStored = "intake.stored",

        /// An order is drafted, and is nowhere but in memory.
        OrderDrafted = "order.drafted",
        /// An order is committed; the gateway does not know it.
        OrderPlaced = "order.placed",
        /// The gateway offers an order; the answer to the buyer was not saved.
        OrderOffered = "order.offered",
        /// The answer about an order was saved; the buyer does not have it.
        OrderAnswered = "order.answered",
        /// That an order is to be closed is committed; the buyer was not answered.
        CloseAsked = "close.asked",

        /// A batch of messages is in hand; nothing was done about it.
        BatchTaken = "batch.taken",
        /// Every effect of a batch is committed; nothing was acknowledged.
        BatchSettled = "batch.settled",
        /// One message of a batch was given up as dead; the others were not acknowledged.
        BatchRejected = "batch.rejected",
        /// A batch was acknowledged.
        BatchAcked = "batch.acked",

        /// Callbacks are verified again and decrypted; no transaction has begun.
        CallbackExamined = "callback.examined",
        /// Within the transaction: orders and refunds have moved, and there is no evidence yet.
        CallbackMoved = "callback.moved",
        /// Within the transaction: everything is written.
        CallbackRecorded = "callback.recorded",
        /// Callbacks are settled; neither the copies nor the relay were told.
        CallbackCommitted = "callback.committed",
        /// Callbacks that were held up are committed as jobs; their messages are still in the queue.
        CallbackKept = "callback.kept",

        /// A job is leased to this worker; nothing was done about it.
        JobTaken = "job.taken",

        /// The gateway has said how an order stands.
        CheckAsked = "check.asked",
        /// The gateway has closed an order, which is open here.
        CheckClosed = "check.closed",
        /// Within the transaction: the order has moved, and its job is as it was.
        CheckSettled = "check.settled",
        /// Within the transaction: everything is written.
        CheckRecorded = "check.recorded",
        /// A check is committed; neither the copies nor the relay were told.
        CheckCommitted = "check.committed",

        /// Within the transaction: a refund is written, with its job and its answer.
        RefundAsked = "refund.asked",
        /// A refund is committed; whoever asked was not answered.
        RefundAccepted = "refund.accepted",
        /// That a refund is about to be sent is committed; it was not sent.
        RefundMarked = "refund.marked",
        /// The gateway has answered a refund; nothing of it is written.
        RefundAnswered = "refund.answered",
        /// The gateway has said how a refund stands; nothing of it is written.
        RefundQueried = "refund.queried",
        /// Within the transaction: refund and order have moved, and the job is as it was.
        RefundSettled = "refund.settled",
        /// Within the transaction: everything is written.
        RefundRecorded = "refund.recorded",
        /// A step of a refund is committed; the copies were not told.
        RefundCommitted = "refund.committed",

        /// Jobs are leased to the relay; none was published.
        RelayLeased = "relay.leased",
        /// The broker holds the jobs that are due.
        RelayCarried = "relay.carried",
        /// Events are about to be published.
        OutboxTaken = "outbox.taken",
        /// The broker holds events that are not marked as published.
        OutboxConfirmed = "outbox.confirmed",
        /// Events are marked as published.
        OutboxMarked = "outbox.marked",
        /// Within the transaction: a dead letter is a case.
        LetterOpened = "letter.opened",
        /// The case of a dead letter is committed; the letter is still in its queue.
        LetterFiled = "letter.filed",
        /// A broken road is whole again; what was lost with it is not yet due again.
        RoadDeclared = "road.declared",
        /// What was lost with the road is due again; the road does not count as whole yet.
        RoadRebuilt = "road.rebuilt",
    }
}

/// Ends the process dead, if it was told to die here: nothing is closed, flushed or undone.
#[inline]
pub fn at(point: Point) {
    #[cfg(debug_assertions)]
    armed::pass(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

/// What a test plants at a point for one piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A panic.
    Panic,
    /// An error that blames nothing.
    Error,
    /// A statement that takes longer than a statement may. Outside a transaction it is an error.
    Slow,
}

/// The fault that was planted here and that is no panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a planted fault")]
pub struct Planted(pub Fault);

/// Meets the fault that was planted at this point for this piece of work, if there is one. Panics when it is a panic.
///
/// # Errors
/// [`Planted`] when it is another fault.
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

/// Faults for single pieces of work, by what they are about: tests that run side by side do not meet each other's.
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
    /// How many there are: most processes have none, and do not wait for a lock to learn that.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);

    /// A planted fault. It goes when this is dropped.
    pub struct Sown(Arc<AtomicUsize>);

    impl Sown {
        /// How often it was met.
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

    /// Plants a fault at a point for the work on `subject`: an order number, a notice id, an event id, the number of a job.
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

    /// Where to die, and how often the process gets past it before.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Order {
        point: Point,
        nth: usize,
    }

    static ORDER: OnceLock<Order> = OnceLock::new();
    static PASSED: AtomicUsize = AtomicUsize::new(0);

    /// Reads `CRASH_AT`: the name of a point, or `name:3` for the third time that the process comes there.
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
            // In one piece: other threads are still writing to the log. That it is told is not needed for dying.
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
        fn a_process_that_was_told_a_place_that_does_not_exist_does_not_start() {
            let mut env = Env::of([("CRASH_AT", "callback.moveed")]);
            arm(&mut env);
            let text = env.finish().unwrap_err().to_string();
            assert!(text.contains(r#"CRASH_AT: "callback.moveed" names no point"#), "{text}");
        }
    }
}
