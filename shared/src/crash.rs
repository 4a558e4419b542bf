//! The moments at which it matters that a process may die: every step between two effects that outlive it.
//!
//! A program built with debug assertions dies at the one that `CRASH_AT` names, so that a test can see what becomes of a
//! death there. A program built for use contains none of this: [`at`] is nothing, and the variable is not read.

use crate::domain::named_enum;

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

#[cfg(debug_assertions)]
pub use armed::arm;

#[cfg(debug_assertions)]
mod armed {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Point;
    use crate::config::Env;

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
            None => env.fault("CRASH_AT", format!("{text:?} names no point"), "see shared/src/crash.rs"),
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
