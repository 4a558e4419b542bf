//! Shared code of tests on real servers. Only for dev-dependencies.

mod broker;
mod facts;
pub mod jobs;
mod order;
mod relay;
mod rsa;
mod tls;

pub use broker::TestBroker;
pub use facts::{buyers_refund_at_once, make_up_facts};
pub use order::new_order;
pub use relay::Relay;
pub use rsa::RsaPair;
pub use tls::{Clients, Speaks, TlsFront};

use runtime::service::Service;
use url::Url;

/// The variable that contains a process's own address of a server: `RELAY_AMQP_URL`, `PAYMENT_API_DATABASE_URL` and
/// so on.
pub fn variable(service: Service, address: &str) -> String {
    format!("{}_{address}", service.as_str().to_uppercase().replace('-', "_"))
}

/// The value of an environment variable that only `cargo xtask test` sets.
///
/// # Panics
/// When the variable is not set: a test that needs a server fails and is never skipped.
pub fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests with `cargo xtask test`"))
}

/// The host and port of an address.
///
/// # Panics
/// When the address has no host or no port.
pub fn place(url: &str) -> String {
    let url = Url::parse(url).expect("an address");
    format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"))
}
