//! `paymentctl`: the operators' tool to inspect and repair. It works on the database, with its own role.
//!
//! Reading order: [`answer`] (the result or error of a command), [`place`] (the database and the operator),
//! [`when`] (times on a command line), then one module for each command.
//!
//! No command moves money, and no command changes anything without `--yes`. Without it a command reads, checks, and
//! shows exactly what it would do (ops/decisions/0011). [`token`] changes nothing and needs no database.

pub mod answer;
pub mod audit;
pub mod cases;
pub mod deploy;
pub mod doctor;
pub mod events;
pub mod explain;
pub mod export;
pub mod keys;
pub mod place;
pub mod token;
pub mod when;
