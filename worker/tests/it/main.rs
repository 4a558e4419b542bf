//! The workers on a real database: what they make of each callback, and what they publish.

mod amounts;
mod batches;
mod bench;
mod checks;
mod consumer;
mod copies;
mod extra_payments;
mod grid;
mod histories;
mod misconfigured;
mod numbers;
mod odd_notices;
mod odd_values;
mod open_accounts;
mod outside;
mod people;
mod planted;
mod refunding;
mod refunds;
mod relay;
mod reopening;
mod retention;
mod rotation;
mod strays;
mod support;
mod verdicts;
