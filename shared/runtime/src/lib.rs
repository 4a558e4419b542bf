//! How a process lives, whatever its work is: it reads its settings, says what it does, shows how it is, starts and stops.
//! Nothing here knows a server.
//!
//! In reading order: [`mod@env`] reads settings and names every fault, [`start`] runs the checks of a start side by side, [`health`] and
//! [`telemetry`] let operations look in, [`shutdown`] ends. [`http_server`] is the accept loop of every port. [`panics`] keeps a panic
//! to the piece of work that it concerns; [`crash`] names the moments at which tests let a process die.

pub mod clock;
pub mod crash;
pub mod env;
pub mod error_chain;
pub mod file_mode;
pub mod health;
pub mod http_server;
pub mod panics;
pub mod seal;
pub mod service;
pub mod shutdown;
pub mod start;
pub mod telemetry;
pub mod tls_files;
