//! The TLS files that an address names, with the parameter names of RabbitMQ's own clients: `?cacertfile=`
//! (authorities), `&certfile=` and `&keyfile=` (our identity), all PEM.
//!
//! Source: RabbitMQ, "URI Query Parameters", read 2026-11-26.

use std::path::Path;

use url::Url;

use crate::file_mode;

/// Paths of the files. They are read at each connect, so that a renewed certificate needs no restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    authorities: Option<String>,
    /// Certificate and key.
    identity: Option<(String, String)>,
}

/// The content of the files.
#[derive(Clone)]
pub struct TlsPem {
    /// Certificates of authorities.
    pub authorities: Option<String>,
    /// Our certificate and its key.
    pub identity: Option<(String, String)>,
}

const CERTIFICATE: &str = "BEGIN CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

impl TlsFiles {
    /// The files that an address names; `is_tls` states whether its scheme uses TLS.
    ///
    /// # Errors
    /// Describes the fault without repeating any part of the address.
    pub fn of(url: &Url, is_tls: bool) -> Result<TlsFiles, &'static str> {
        let value = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        let (authorities, certificate, key) = (value("cacertfile"), value("certfile"), value("keyfile"));
        let verify = value("verify");
        if verify.as_ref().is_some_and(|verify| verify != "verify_peer") {
            return Err("the server's certificate is always verified: leave verify out");
        }
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("certfile and keyfile go together"),
        };
        if !is_tls && (authorities.is_some() || identity.is_some() || verify.is_some()) {
            return Err("cacertfile, certfile, keyfile and verify are for TLS, and this address speaks without");
        }
        Ok(TlsFiles { authorities, identity })
    }

    /// The current content of the files.
    ///
    /// # Errors
    /// The file that cannot be read, or that holds something else.
    pub fn read(&self) -> Result<TlsPem, String> {
        let read = |path: &String, marker: &str| match std::fs::read_to_string(path) {
            Ok(text) if text.contains(marker) => Ok(text),
            Ok(_) => Err(format!("{path} holds no PEM block with {marker}")),
            Err(error) => Err(format!("{path} cannot be read ({error})")),
        };
        let authorities = self.authorities.as_ref().map(|path| read(path, CERTIFICATE)).transpose()?;
        let identity = self.identity.as_ref().map(|(certificate, key)| {
            file_mode::check(Path::new(key)).map_err(|wrong| format!("{key}: {wrong}"))?;
            let both = (read(certificate, CERTIFICATE)?, read(key, PRIVATE_KEY)?);
            Ok::<_, String>(both)
        });
        Ok(TlsPem { authorities, identity: identity.transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<TlsFiles, &'static str> {
        let url = Url::parse(text).unwrap();
        TlsFiles::of(&url, url.scheme().ends_with('s'))
    }

    #[test]
    fn files_are_named_in_the_address() {
        let whole =
            of("amqps://u:p@h/v?cacertfile=/etc/my%20ca.pem&certfile=c.pem&keyfile=k.pem&verify=verify_peer").unwrap();
        assert_eq!(whole.authorities.as_deref(), Some("/etc/my ca.pem"));
        assert_eq!(whole.identity, Some(("c.pem".to_owned(), "k.pem".to_owned())));
        assert_eq!(of("amqps://h/v"), Ok(TlsFiles::default()));
        for (text, wrong) in [
            ("amqp://h/v?cacertfile=a", "are for TLS"),
            ("amqps://h/v?certfile=a", "go together"),
            ("rediss://h/v?verify=verify_none", "always verified"),
        ] {
            assert!(of(text).unwrap_err().contains(wrong), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let read = |path: &str| of(&format!("amqps://h/v?cacertfile={path}")).unwrap().read().map(|_| ()).unwrap_err();
        let error = read("/nowhere/ca.pem");
        assert!(error.starts_with("/nowhere/ca.pem cannot be read"), "{error}");
        let error = read(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        assert!(error.ends_with("holds no PEM block with BEGIN CERTIFICATE"), "{error}");
    }
}
