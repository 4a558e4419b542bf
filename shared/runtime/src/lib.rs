//! The life of a process, independent of its work: it reads its settings, logs, shows its health, starts and stops.
//! Nothing here knows a particular server.
//!
//! In reading order: [`mod@env`] reads settings and reports every fault, [`start`] runs the checks of a start in
//! parallel, [`health`] and [`telemetry`] serve operations, and [`shutdown`] ends the process. [`http_server`] is the
//! accept loop of every port. [`panics`] confines a panic to the piece of work that it concerns. [`crash`] names the
//! points at which tests let a process die.

pub mod beijing;
pub mod clock;
pub mod crash;
pub mod env;
pub mod error_chain;
pub mod file_mode;
pub mod health;
pub mod http_server;
pub mod panics;
pub mod random;
pub mod seal;
pub mod service;
pub mod shutdown;
pub mod start;
pub mod telemetry;
pub mod tls_files;
