//! Broker errors.

use runtime::env::{ConfigFaults, Fault};
use runtime::error_chain::chain;

use crate::config::AMQP_HINT;
use crate::topology::TopologyFaults;

/// An error between this process and the broker. No variant ever holds credentials.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The address itself is wrong; no connection was tried.
    #[error("the AMQP address cannot be used: {0}")]
    Address(String),
    /// No address led to a session; each is listed with its error.
    #[error("no broker could be reached: {}", .0.join("; "))]
    Unreachable(Vec<String>),
    /// The broker refused a step, or the session broke during it.
    #[error("{doing} failed")]
    Amqp {
        /// The step.
        doing: &'static str,
        /// The client library's error.
        #[source]
        source: lapin::Error,
    },
    /// The broker did not answer a step in time.
    #[error("{0} was not answered in time")]
    TimedOut(&'static str),
    /// The broker refuses messages on this session; a new session may work.
    #[error("the broker refuses messages")]
    Refused,
    /// The session is gone.
    #[error("the session with the broker was lost")]
    Lost,
    /// The broker cancelled the consumer: its queue was deleted, or it held deliveries for too long.
    #[error("the broker cancelled the consumer of {0}")]
    Cancelled(String),
    /// The queue does not know our consumer: the node that we are connected to is cut off from the other nodes.
    #[error("{0} does not know its consumer: this node of the broker is out of its reach")]
    ConsumerUnknown(String),
    /// Objects are missing, conflicting or unreachable.
    #[error("{0}")]
    Topology(TopologyFaults),
    /// A delivery whose content does not fit its queue.
    #[error("the message is malformed: {0}")]
    Malformed(String),
}

impl BrokerError {
    /// The AMQP reply code, if the broker gave one (404, 403, 406 …).
    pub fn reply_code(&self) -> Option<u16> {
        match self {
            BrokerError::Amqp { source, .. } => match source.kind() {
                lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The broker's errors as configuration faults, one for each object of the topology.
impl From<BrokerError> for ConfigFaults {
    fn from(error: BrokerError) -> ConfigFaults {
        match error {
            BrokerError::Topology(faults) => {
                ConfigFaults(faults.0.into_iter().map(|f| Fault::new(f.object, f.wrong, f.remedy)).collect())
            }
            BrokerError::Address(wrong) => Fault::new("AMQP_URL", wrong, AMQP_HINT).into(),
            error => Fault::new("broker", chain(&error), "check AMQP_URL, the user's rights, and that it runs").into(),
        }
    }
}
