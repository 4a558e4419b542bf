//! The workers on a real database: what they make of each callback, and what they publish.

mod batches;
mod checks;
mod consumer;
mod refunds;
mod relay;
mod support;
mod verdicts;
