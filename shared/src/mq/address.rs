//! Where the broker is, and who we are there.

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::MqError;

/// Seconds between heartbeats: a dead peer is noticed after about twice this. The usual 60 is too slow, and below 5
/// busy machines raise false alarms.
const HEARTBEAT: u16 = 10;

/// The addresses of one broker (or of the nodes of one cluster), tried in order.
///
/// Written as one `amqp://user:password@host:port/vhost`, or several separated by commas; `amqps://` for TLS, with the
/// files that RabbitMQ's own clients know by the same names: `?cacertfile=` (authorities to trust beside the system's),
/// `&certfile=` and `&keyfile=` (who we are), all PEM.
/// Source: RabbitMQ, "URI Query Parameters", read 2026-11-26.
#[derive(Clone)]
pub struct Addresses(Vec<Address>);

/// One of them.
#[derive(Clone)]
pub(super) struct Address {
    /// Where, and as whom.
    pub uri: AMQPUri,
    files: TlsFiles,
}

/// Paths, read at each connect, so that a renewed certificate needs no restart.
#[derive(Clone, Default)]
struct TlsFiles {
    authorities: Option<String>,
    /// Certificate and key.
    identity: Option<(String, String)>,
}

impl Address {
    /// What TLS needs of the files.
    ///
    /// # Errors
    /// Which file cannot be read, or holds something else.
    pub fn tls(&self) -> Result<OwnedTLSConfig, String> {
        let read = |path: &String, marker: &str| match std::fs::read_to_string(path) {
            Ok(text) if text.contains(marker) => Ok(text),
            Ok(_) => Err(format!("{path} holds no PEM block with {marker}")),
            Err(error) => Err(format!("{path} cannot be read ({error})")),
        };
        let cert_chain = self.files.authorities.as_ref().map(|path| read(path, CERTIFICATE)).transpose()?;
        let identity = self.files.identity.as_ref().map(|(certificate, key)| {
            let (pem, key) = (read(certificate, CERTIFICATE)?, read(key, PRIVATE_KEY)?);
            Ok::<_, String>(OwnedIdentity::PKCS8 { pem: pem.into_bytes(), key: key.into_bytes() })
        });
        Ok(OwnedTLSConfig { identity: identity.transpose()?, cert_chain })
    }
}

const CERTIFICATE: &str = "BEGIN CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

impl Addresses {
    /// Reads the value of `AMQP_URL`.
    ///
    /// # Errors
    /// [`MqError::Address`] says what is wrong without repeating the value, which holds a password.
    pub fn parse(text: &SecretString) -> Result<Addresses, MqError> {
        let addresses = text.expose_secret().split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse_one);
        let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() { Err(MqError::Address("it is empty")) } else { Ok(Addresses(addresses)) }
    }

    /// The addresses, beginning with another one at each `attempt`.
    pub(super) fn starting_at(&self, attempt: usize) -> impl Iterator<Item = &Address> {
        let first = attempt % self.0.len();
        self.0[first..].iter().chain(&self.0[..first])
    }

    /// Looks at the files of certificates and keys.
    ///
    /// # Errors
    /// Which file cannot be read, or holds something else.
    pub fn check_files(&self) -> Result<(), String> {
        self.0.iter().try_for_each(|address| address.tls().map(drop))
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

/// Whether the preflight may speak AMQP to it: under TLS it can only look whether the port is open.
pub(super) fn is_plain(uri: &AMQPUri) -> bool {
    uri.scheme == AMQPScheme::AMQP
}

fn parse_one(text: &str) -> Result<Address, MqError> {
    let url =
        Url::parse(text).map_err(|_| MqError::Address("it is not a URL like amqp://user:password@host:5672/vhost"))?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err(MqError::Address("its scheme is neither amqp nor amqps"));
    }
    let host = url.host().ok_or(MqError::Address("it names no host"))?;
    // The library's own message would repeat the text, password included.
    let mut uri =
        text.parse::<AMQPUri>().map_err(|_| MqError::Address("its parameters or its percent signs cannot be read"))?;
    // The library takes any IPv6 address for "localhost".
    if let Host::Ipv6(ip) = host {
        uri.authority.host = ip.to_string();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    let files = tls_files(&url)?;
    Ok(Address { uri, files })
}

fn tls_files(url: &Url) -> Result<TlsFiles, MqError> {
    let value = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let (authorities, certificate, key) = (value("cacertfile"), value("certfile"), value("keyfile"));
    let verify = value("verify");
    if verify.as_ref().is_some_and(|verify| verify != "verify_peer") {
        return Err(MqError::Address("the broker's certificate is always verified: leave verify out"));
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(MqError::Address("certfile and keyfile go together")),
    };
    if url.scheme() != "amqps" && (authorities.is_some() || identity.is_some() || verify.is_some()) {
        return Err(MqError::Address("cacertfile, certfile, keyfile and verify are for amqps"));
    }
    Ok(TlsFiles { authorities, identity })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Addresses, MqError> {
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
    fn a_heartbeat_is_set_unless_the_address_names_one() {
        let beat = |text| parse(text).unwrap().0[0].uri.query.heartbeat;
        assert_eq!(beat("amqp://h/v"), Some(HEARTBEAT));
        assert_eq!(beat("amqp://h/v?heartbeat=30"), Some(30));
    }

    #[test]
    fn files_of_tls_are_named_in_the_address() {
        let files = |text| parse(text).unwrap().0.remove(0).files;
        let whole =
            files("amqps://u:p@h/v?cacertfile=/etc/my%20ca.pem&certfile=c.pem&keyfile=k.pem&verify=verify_peer");
        assert_eq!(whole.authorities.as_deref(), Some("/etc/my ca.pem"));
        assert_eq!(whole.identity, Some(("c.pem".to_owned(), "k.pem".to_owned())));
        assert!(files("amqps://h/v").authorities.is_none());
        for (text, wrong) in [
            ("amqp://h/v?cacertfile=a", "are for amqps"),
            ("amqps://h/v?certfile=a", "go together"),
            ("amqps://h/v?verify=verify_none", "always verified"),
        ] {
            assert!(parse(text).unwrap_err().to_string().contains(wrong), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let error = parse("amqps://h/v?cacertfile=/nowhere/ca.pem").unwrap().check_files().unwrap_err();
        assert!(error.starts_with("/nowhere/ca.pem cannot be read"), "{error}");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let error = parse(&format!("amqps://h/v?cacertfile={source}")).unwrap().check_files().unwrap_err();
        assert!(error.ends_with("holds no PEM block with BEGIN CERTIFICATE"), "{error}");
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
