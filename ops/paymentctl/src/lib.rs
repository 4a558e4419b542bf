//! `paymentctl`: what operators look with and mend with, over the database and with a role of its own.
//!
//! Reading order: [`answer`] (what a command says, and what it says when it cannot), [`place`] (which database, and who
//! asks), [`when`] (times on a command line), then a module for each command.
//!
//! Nothing here moves money, and nothing that changes anything happens without `--yes`: without it a command reads, checks,
//! and says exactly what it would do (ops/decisions/0011).

pub mod answer;
pub mod audit;
pub mod cases;
pub mod doctor;
pub mod events;
pub mod explain;
pub mod place;
pub mod when;
