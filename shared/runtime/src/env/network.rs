//! Which data may leave this machine unencrypted, and at which address gateways can reach us.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::Url;

use crate::env::Env;

/// Whether a host name or address from a URL is this machine itself.
pub fn is_loopback(host: &str) -> bool {
    match ip(host) {
        Some(ip) => ip.to_canonical().is_loopback(),
        None => matches!(name(host).as_str(), "localhost" | "localhost.localdomain"),
    }
}

/// Whether a host is this machine, or in a network that the Internet does not reach.
fn is_private(host: &str) -> bool {
    match ip(host).map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => is_private_v4(ip),
        Some(IpAddr::V6(ip)) => is_private_v6(ip),
        None => {
            let name = name(host);
            let last = name.rsplit_once('.').map(|(_, last)| last);
            matches!(last, None | Some("localhost" | "localdomain" | "local" | "internal" | "lan" | "home" | "corp"))
                || name.ends_with(".home.arpa")
        }
    }
}

fn is_private_v4(ip: Ipv4Addr) -> bool {
    let [first, second, ..] = ip.octets();
    // 100.64.0.0/10 is shared address space behind the NAT of carriers.
    let shared = first == 100 && (64..128).contains(&second);
    first == 0 || shared || ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_broadcast()
}

fn is_private_v6(ip: Ipv6Addr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()
}

fn ip(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn name(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

impl Env {
    /// Whether the address in `name` may be used. `clear` lists the hosts that it reaches without TLS, or without
    /// verifying their certificate. Hosts on this machine are always allowed. `remedy` states how to enable TLS.
    ///
    /// `ALLOW_PLAINTEXT=1` allows all of them, and each start logs which.
    pub fn may_go(&mut self, name: &'static str, clear: Vec<String>, remedy: &str) -> bool {
        let others: Vec<String> = clear.into_iter().filter(|host| !is_loopback(host)).collect();
        if others.is_empty() {
            return true;
        }
        let hosts = others.join(", ");
        let allowed = self.allows_plaintext();
        if allowed {
            self.warnings.push(format!(
                "{name}: passwords and data go to {hosts} without verified TLS, because ALLOW_PLAINTEXT is 1; {remedy}"
            ));
        } else {
            let wrong = format!("passwords and data would go to {hosts} without verified TLS");
            self.fault(name, wrong, format!("{remedy}, or set ALLOW_PLAINTEXT=1 where the network itself is trusted"));
        }
        allowed
    }

    fn allows_plaintext(&mut self) -> bool {
        self.switch("ALLOW_PLAINTEXT", false)
    }
}

/// A deploy step has no log, so the warning goes to standard error there.
pub(super) fn warned(text: &str) {
    if tracing::enabled!(tracing::Level::WARN) {
        tracing::warn!("{text}");
    } else {
        eprintln!("warning: {text}");
    }
}

/// `PUBLIC_URL`: the base of our own addresses as gateways and browsers see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// Reads it; it is required.
    pub fn from_env(env: &mut Env) -> Option<PublicUrl> {
        let hint = "set it to the base URL that gateways reach this service by, such as https://pay.example.com";
        let text = env.required("PUBLIC_URL", hint)?;
        let url = PublicUrl::parse(&text);
        if url.is_none() {
            env.fault("PUBLIC_URL", format!("{text:?} is not an http or https URL without a query"), hint);
        }
        url
    }

    fn parse(text: &str) -> Option<PublicUrl> {
        let url = Url::parse(text).ok()?;
        let bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let fits = matches!(url.scheme(), "http" | "https") && url.has_host() && bare && url.password().is_none();
        fits.then(|| PublicUrl(text.trim_end_matches('/').to_owned()))
    }

    /// The URL without a trailing slash.
    pub fn into_text(self) -> String {
        self.0
    }

    /// The reason that no production account may use the `PUBLIC_URL` of `env`, if that can be read: its callbacks
    /// would cross the Internet unencrypted, or not arrive.
    pub fn unfit(env: &mut Env) -> Option<String> {
        let public = PublicUrl::parse(&env.optional("PUBLIC_URL")?)?;
        let url = Url::parse(&public.0).ok()?;
        let wrong = match (url.scheme(), url.host_str()) {
            (_, Some(host)) if is_private(host) => "names a host that gateways do not reach",
            ("https", _) => return None,
            _ => "is plain http, and callbacks would come in clear",
        };
        Some(format!(
            "cannot have callbacks at {}, which {wrong}; set PUBLIC_URL to the public https address",
            public.0
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Captures what is written to the log.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_allowed_is_said_at_each_start_even_where_nothing_is_wrong() {
        for finished in [true, false] {
            let log = Log::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
            tracing::subscriber::with_default(subscriber, || {
                let mut env = Env::of([("ALLOW_PLAINTEXT", "1")]);
                assert!(env.may_go("AMQP_URL", vec!["mq".to_owned()], "write amqps://"));
                assert!(env.warnings[0].contains("AMQP_URL: passwords and data go to mq"), "{:?}", env.warnings);
                if finished {
                    env.finish().unwrap();
                }
            });
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.matches("AMQP_URL: passwords and data go to mq").count(), 1, "{text}");
        }
    }

    #[test]
    fn production_stands_behind_a_public_https_address_only() {
        let unfit = |url: &str| PublicUrl::unfit(&mut Env::of([("PUBLIC_URL", url)]));
        for url in ["https://pay.example.com", "https://203.0.113.7/pay", "https://[2001:db8::1]"] {
            assert_eq!(unfit(url), None, "{url}");
        }
        assert!(unfit("http://pay.example.com").unwrap().contains("is plain http"));
        for host in [
            "127.0.0.1",
            "localhost",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.0.1",
            "100.64.0.1",
            "0.0.0.0",
            "[::1]",
            "[fd00::1]",
            "[fe80::1]",
            "[::ffff:10.0.0.1]",
            "pay",
            "pay.local",
            "pay.internal",
            "PAY.INTERNAL.",
            "a.localhost",
        ] {
            for scheme in ["http", "https"] {
                let wrong = unfit(&format!("{scheme}://{host}:8080/base")).unwrap_or_default();
                assert!(wrong.contains("do not reach") && wrong.contains("; set PUBLIC_URL"), "{host}: {wrong}");
            }
        }
        for none in ["ftp://h", "https://h?a", "https://u:p@h", "h"] {
            let mut env = Env::of([("PUBLIC_URL", none)]);
            assert!(PublicUrl::from_env(&mut env).is_none() && PublicUrl::unfit(&mut env).is_none(), "{none}");
        }
    }
}
