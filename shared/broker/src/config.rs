//! The address of the broker.

use runtime::env::Env;
use secrecy::SecretString;

use crate::address::Addresses;
use crate::error::BrokerError;

pub(crate) const AMQP_HINT: &str = "set it to amqp://user:password@host:5672/vhost (several with commas between them)";

const AMQP_TLS: &str = "write amqps://, with ?cacertfile=… for an authority of your own";

/// The address of the broker.
#[derive(Debug, Clone)]
pub struct AmqpConfig {
    /// One address, or several separated by commas; already checked to be well formed.
    pub url: SecretString,
}

impl AmqpConfig {
    /// Reads `AMQP_URL`.
    pub fn from_env(env: &mut Env) -> Option<AmqpConfig> {
        AmqpConfig::from_variable(env, "AMQP_URL")
    }

    /// Reads `AMQP_ADMIN_URL`, which names the user that may declare objects.
    pub fn admin_from_env(env: &mut Env) -> Option<AmqpConfig> {
        AmqpConfig::from_variable(env, "AMQP_ADMIN_URL")
    }

    fn from_variable(env: &mut Env, name: &'static str) -> Option<AmqpConfig> {
        let url = env.address(name, AMQP_HINT)?;
        match Addresses::parse(&url) {
            Ok(addresses) => match addresses.check_files() {
                Ok(()) => env.may_go(name, addresses.clear_hosts(), AMQP_TLS).then_some(AmqpConfig { url }),
                Err(wrong) => {
                    env.fault(name, wrong, "name files in PEM that this process may read, or leave them out");
                    None
                }
            },
            Err(BrokerError::Address(wrong)) => {
                env.fault(name, wrong, AMQP_HINT);
                None
            }
            Err(error) => {
                env.fault(name, error.to_string(), AMQP_HINT);
                None
            }
        }
    }
}
