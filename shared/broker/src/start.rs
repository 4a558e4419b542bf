//! What a start asks of the broker.

use runtime::env::ConfigFaults;
use runtime::service::Service;

use crate::config::AmqpConfig;
use crate::error::BrokerError;
use crate::session::{close, open};
use crate::topology::{self, Difference, Needs};

/// Checks that the broker answers and has what this process needs. A broker that goes away later stops no process. What is
/// missing does not stop the relay, which declares it again.
///
/// # Errors
/// A fault for each object that is missing, conflicting or out of reach.
pub async fn reach(config: &AmqpConfig, service: Service) -> Result<(), ConfigFaults> {
    let connection = open(&config.url, service.as_str()).await?;
    let checked = topology::check(&connection, &Needs::of(service)).await;
    close(&connection).await;
    match checked {
        Err(BrokerError::Topology(mut faults)) if service == Service::Relay => {
            faults.0.retain(|fault| fault.difference != Difference::Missing);
            if faults.0.is_empty() { Ok(()) } else { Err(BrokerError::Topology(faults).into()) }
        }
        checked => Ok(checked?),
    }
}
