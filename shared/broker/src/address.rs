//! The addresses of the broker, with the user that logs in.

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use runtime::tls_files::{TlsFiles, TlsPem};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use crate::error::BrokerError;

/// Seconds between heartbeats: we notice a dead peer after about twice this time. The usual 60 is too slow, and below 5
/// a busy machine raises false alarms.
const HEARTBEAT: u16 = 10;

/// The addresses of one broker (or of the nodes of one cluster). Any one that answers will do.
///
/// Written as one `amqp://user:password@host:port/vhost`, or several separated by commas; `amqps://` for TLS, with
/// [`TlsFiles`]. Certificate authorities in these files are trusted in addition to the system's.
#[derive(Clone)]
pub struct Addresses(Vec<Address>);

/// One address.
#[derive(Clone)]
pub(super) struct Address {
    /// The host, the virtual host and the user.
    pub uri: AMQPUri,
    files: TlsFiles,
}

impl Address {
    /// The TLS settings from the files.
    ///
    /// # Errors
    /// Names the file that cannot be read or holds something else.
    pub fn tls(&self) -> Result<OwnedTLSConfig, String> {
        let TlsPem { authorities, identity } = self.files.read()?;
        let identity = identity.map(|(pem, key)| OwnedIdentity::PKCS8 { pem: pem.into_bytes(), key: key.into_bytes() });
        Ok(OwnedTLSConfig { identity, cert_chain: authorities })
    }
}

impl Addresses {
    /// Reads the value of `AMQP_URL`.
    ///
    /// # Errors
    /// [`BrokerError::Address`] states which address is wrong and why, without repeating the value, which contains a
    /// password.
    pub fn parse(text: &SecretString) -> Result<Addresses, BrokerError> {
        let parts: Vec<&str> = text.expose_secret().split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        let mut addresses: Vec<Address> = Vec::with_capacity(parts.len());
        for (n, part) in parts.iter().enumerate() {
            let address = parse_one(part).and_then(|address| match addresses.first() {
                Some(first) if first.uri.vhost != address.uri.vhost => {
                    Err("it names another virtual host than the first: all are to be nodes of one broker")
                }
                _ => Ok(address),
            });
            addresses.push(address.map_err(|wrong| BrokerError::Address(of_several(n, parts.len(), wrong)))?);
        }
        if addresses.is_empty() {
            Err(BrokerError::Address("it is empty".to_owned()))
        } else {
            Ok(Addresses(addresses))
        }
    }

    /// The addresses, rotated so that each `attempt` begins with another one.
    pub(super) fn starting_at(&self, attempt: usize) -> impl Iterator<Item = &Address> {
        let first = attempt % self.0.len();
        self.0[first..].iter().chain(&self.0[..first])
    }

    /// The hosts that are reached without TLS.
    pub fn clear_hosts(&self) -> Vec<String> {
        self.0.iter().filter(|at| is_plain(&at.uri)).map(|at| at.uri.authority.host.clone()).collect()
    }

    /// Checks that the files with certificates and keys can be read.
    ///
    /// # Errors
    /// Names the file that cannot be read or holds something else.
    pub fn check_files(&self) -> Result<(), String> {
        let mut each = self.0.iter().enumerate();
        each.try_for_each(|(n, address)| match address.tls() {
            Ok(_) => Ok(()),
            Err(wrong) => Err(of_several(n, self.0.len(), &wrong)),
        })
    }
}

/// Shows hosts, never credentials.
impl std::fmt::Debug for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|address| place(&address.uri))).finish()
    }
}

/// `host:port`, the part of an address that may be shown.
pub(super) fn place(uri: &AMQPUri) -> String {
    let host = &uri.authority.host;
    if host.contains(':') {
        format!("[{host}]:{}", uri.authority.port)
    } else {
        format!("{host}:{}", uri.authority.port)
    }
}

/// Whether the preflight can speak AMQP to this address. Under TLS it can only check whether the port is open.
pub(super) fn is_plain(uri: &AMQPUri) -> bool {
    uri.scheme == AMQPScheme::AMQP
}

const NO_URL: &str = "it is not a URL like amqp://user:password@host:5672/vhost";

/// The error of the nth of `all` addresses.
fn of_several(n: usize, all: usize, wrong: &str) -> String {
    let hint = if wrong == NO_URL { " (a comma in a password is %2C)" } else { "" };
    if all == 1 { wrong.to_owned() } else { format!("address {} of {all}: {wrong}{hint}", n + 1) }
}

fn parse_one(text: &str) -> Result<Address, &'static str> {
    let url = Url::parse(text).map_err(|_| NO_URL)?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err("its scheme is neither amqp nor amqps");
    }
    let host = url.host().ok_or("it names no host")?;
    // The library's own message would repeat the text, including the password.
    let mut uri = text.parse::<AMQPUri>().map_err(|_| "its parameters or its percent signs cannot be read")?;
    // The library reads any IPv6 address as "localhost".
    if let Host::Ipv6(ip) = host {
        uri.authority.host = ip.to_string();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    let files = TlsFiles::of(&url, url.scheme() == "amqps")?;
    Ok(Address { uri, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Addresses, BrokerError> {
        Addresses::parse(&SecretString::from(text))
    }

    #[test]
    fn several_addresses_are_tried_in_turn() {
        let addresses = parse("amqp://u:p@a:1/v, amqps://u:p@[::1]/v").unwrap();
        let places = |attempt| addresses.starting_at(attempt).map(|address| place(&address.uri)).collect::<Vec<_>>();
        assert_eq!(places(0), ["a:1", "[::1]:5671"]);
        assert_eq!(places(1), ["[::1]:5671", "a:1"]);
        assert_eq!(places(2), places(0));
    }

    #[test]
    fn the_one_that_is_wrong_is_named_by_its_place() {
        let wrong = |text| parse(text).unwrap_err().to_string();
        assert!(!wrong("amqp//u:hidden@h").contains("address 1"), "there is no other");
        let second = wrong("amqp://u:hidden@a/v, http://u:hidden@b/v, amqp://c/v");
        assert!(second.contains("address 2 of 3: its scheme is neither amqp nor amqps"), "{second}");
        let comma = wrong("amqp://u:hid,den@a/v");
        assert!(comma.contains("address 1 of 2") && comma.contains("%2C") && !comma.contains("hid"), "{comma}");
        let vhost = wrong("amqp://a/v,amqp://b/w");
        assert!(vhost.contains("address 2 of 2: it names another virtual host"), "{vhost}");
        assert!(parse("amqp://a/v,amqp://b/v,").is_ok(), "a comma at the end is no address");
        let files = parse("amqp://a/v,amqps://b/v?cacertfile=/nowhere/ca.pem").unwrap().check_files().unwrap_err();
        assert!(files.starts_with("address 2 of 2: /nowhere/ca.pem"), "{files}");
    }

    #[test]
    fn a_heartbeat_is_set_unless_the_address_names_one() {
        let beat = |text| parse(text).unwrap().0[0].uri.query.heartbeat;
        assert_eq!(beat("amqp://h/v"), Some(HEARTBEAT));
        assert_eq!(beat("amqp://h/v?heartbeat=30"), Some(30));
    }

    #[test]
    fn no_error_and_no_debug_shows_the_password() {
        for text in ["amqp//u:hidden@h", "http://u:hidden@h/", "amqp://u:hidden@h/v?heartbeat=x", "amqp:u:hidden", ""] {
            let error = parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hidden"), "{text}");
        }
        assert!(!format!("{:?}", parse("amqp://u:hidden@h/v").unwrap()).contains("hidden"));
    }
}
