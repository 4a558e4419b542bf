//! `RABBITMQ_MANAGEMENT_URL`: where the broker's management plug-in is, and who we are there.

use runtime::env::{Env, decoded};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

const MANAGEMENT_HINT: &str = "set it to http://user:password@host:15672 (several with commas between them)";

/// Reads `RABBITMQ_MANAGEMENT_URL`, where it may be absent.
pub fn management_url(env: &mut Env) -> Option<SecretString> {
    let url = env.optional_address("RABBITMQ_MANAGEMENT_URL", MANAGEMENT_HINT)?;
    may_use(env, &url).then_some(url)
}

/// The same, where it is required.
pub(super) fn required(env: &mut Env) -> Option<SecretString> {
    let url = env.address("RABBITMQ_MANAGEMENT_URL", MANAGEMENT_HINT)?;
    may_use(env, &url).then_some(url)
}

/// Whether the addresses can be read, and none of them sends an administrator's password in clear to another machine.
fn may_use(env: &mut Env, url: &SecretString) -> bool {
    match nodes(url) {
        Err(wrong) => {
            env.fault("RABBITMQ_MANAGEMENT_URL", wrong, MANAGEMENT_HINT);
            false
        }
        Ok(nodes) => {
            let clear = nodes.iter().filter(|node| node.url.scheme() == "http");
            let hosts = clear.filter_map(|node| node.url.host_str().map(str::to_owned)).collect();
            let remedy = "write https:// (an authority of your own goes into the system's store, or SSL_CERT_FILE)";
            env.may_go("RABBITMQ_MANAGEMENT_URL", hosts, remedy)
        }
    }
}

/// The plug-in of one node: each speaks for the whole broker.
pub(super) struct Node {
    pub url: Url,
    pub user: String,
    pub password: Option<SecretString>,
}

/// The nodes of `RABBITMQ_MANAGEMENT_URL`, or which address is wrong and why.
pub(super) fn nodes(urls: &SecretString) -> Result<Vec<Node>, String> {
    let parts: Vec<&str> = urls.expose_secret().split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let node = |(n, part): (usize, &&str)| {
        let url = Url::parse(part).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut url = url.filter(|url| !url.cannot_be_a_base() && !url.username().is_empty()).ok_or_else(|| {
            let which = if parts.len() > 1 { format!("address {} of {}", n + 1, parts.len()) } else { "it".to_owned() };
            format!("{which} is not an http URL with a user")
        })?;
        let user = decoded(url.username());
        let password = url.password().map(|password| SecretString::from(decoded(password)));
        // From here on the URL may appear in errors.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(Node { url, user, password })
    };
    let nodes = parts.iter().enumerate().map(node).collect::<Result<Vec<_>, String>>()?;
    if nodes.is_empty() { Err("it is empty".to_owned()) } else { Ok(nodes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_administrators_password_goes_to_no_other_machine_in_clear() {
        for (url, fine) in [
            ("http://u:hidden@127.0.0.1:15672", true),
            ("https://u:hidden@mq.example.com", true),
            ("http://u:hidden@127.0.0.1:15672,http://u:hidden@mq.example.com", false),
        ] {
            let amqp = ("AMQP_ADMIN_URL", "amqp://u:hidden@mq.example.com/v");
            let mut env = Env::of([amqp, ("RABBITMQ_MANAGEMENT_URL", url)]);
            assert_eq!(management_url(&mut env).is_some(), fine, "{url}");
            assert!(super::super::BrokerSetupConfig::from_env(&mut env).is_none());
            let text = env.finish().unwrap_err().to_string();
            assert!(text.contains("AMQP_ADMIN_URL: passwords and data would go to mq.example.com"), "{text}");
            assert_eq!(text.contains("RABBITMQ_MANAGEMENT_URL"), !fine, "{text}");
            assert!(!text.contains("hidden"), "{text}");
        }
    }

    #[test]
    fn the_address_that_is_wrong_is_named_by_its_place() {
        let wrong = |text: &str| nodes(&SecretString::from(text)).err().unwrap_or_default();
        assert_eq!(wrong("http://u:p@a,http://u:p@b,"), "");
        assert_eq!(wrong("http://a"), "it is not an http URL with a user");
        assert_eq!(wrong("http://u:p@a,amqp://u:hidden@b"), "address 2 of 2 is not an http URL with a user");
        assert_eq!(wrong(" , "), "it is empty");
    }
}
