//! Simulates Alipay and WeChat Pay over HTTP, for development and tests.
//!
//! All code that builds or checks a protocol's text is written here from the protocol documents, and shares no code
//! with the service under test. Otherwise the same mistake on both sides would go unnoticed. Modules in reading
//! order: [`keys`], [`ledger`], `alipay`, `wechat`, [`notify`], [`deliver`], [`faults`], [`odd`], `calls`,
//! `state`, `refunds`, `control`, `pages`, and the server that joins them.

mod alipay;
mod callback;
mod calls;
mod clock;
mod control;
pub mod crypto;
pub mod deliver;
mod deliveries;
pub mod faults;
mod json;
pub mod keys;
pub mod ledger;
mod links;
pub mod notify;
pub mod odd;
mod pages;
mod refunds;
mod server;
mod state;
#[cfg(test)]
mod vectors;
mod wechat;
pub mod x509;

pub use calls::CallKind;
pub use server::Simulator;
pub use state::Options;
