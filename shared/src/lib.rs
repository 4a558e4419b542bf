//! What the processes of the payment service agree on.
//!
//! The modules in reading order: [`domain`] holds the words and rules, pure of all I/O. [`gateway`] speaks to Alipay and
//! WeChat Pay, [`db`] to PostgreSQL, [`mq`] to RabbitMQ; these three do not know each other. [`job`] and [`event`] are
//! the messages between the processes and to the outside. [`settle`] is where facts about money become state and events;
//! [`cache`] holds copies of what is shown.
//! [`seal`] keeps what is secret; [`config`], [`telemetry`], [`ops`] and [`shutdown`] are what every binary needs to start, be seen and stop; [`service`]
//! names the binaries, and with them who may do what, [`tls_files`] how an address names certificates. [`crash`] names the
//! moments at which tests let a process die, and [`panics`] keeps a panic to the piece of work that it concerns.

pub mod cache;
pub mod clock;
pub mod config;
pub mod crash;
pub mod db;
pub mod domain;
pub mod event;
pub mod file_mode;
pub mod gateway;
pub mod job;
pub mod mq;
pub mod ops;
pub mod panics;
pub mod seal;
pub mod service;
pub mod settle;
pub mod shutdown;
pub mod stats;
pub mod telemetry;
pub mod tls_files;
