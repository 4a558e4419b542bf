//! The operator's settings: one section for each concern, every variable documented on its field.

use std::net::SocketAddr;
use std::path::PathBuf;

use domain::PaymentMethod;
use ipnet::IpNet;
use runtime::env::{Env, PublicUrl};
use runtime::file_mode;
use runtime::seal::SealKeys;
use tracing::warn;
use url::{Origin, Url};

use crate::access::callers::{self, Callers, network};
use crate::access::in_hand::{InHand, Most};
use crate::access::limits::PerMinute;
use crate::access::prices::BuyerPrices;

/// Where the process listens.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// `LISTEN_ADDR` (default `127.0.0.1:8080`): everything, callbacks included.
    pub addr: SocketAddr,
    /// `CALLBACK_LISTEN_ADDR` (default none): callbacks only, so that open pages never crowd them out.
    pub callbacks: Option<SocketAddr>,
    /// `MAX_CONNECTIONS` (default 4096): connections on each of the two addresses, if the limit of open files allows as
    /// many.
    pub connections: usize,
    /// `CONNECTIONS_PER_ADDRESS` (default 128, 0: no limit): connections of one client address or IPv6 /64, on each of
    /// the two; a /48 may have eight times as many. Addresses in `TRUSTED_PROXIES` and in the lists of the gateways are
    /// not counted.
    pub per_address: usize,
}

impl Listen {
    /// Reads the section.
    pub fn from_env(env: &mut Env) -> Option<Listen> {
        let hint = "set it to an address and port, such as 127.0.0.1:8080";
        let addr = env.parse_or("LISTEN_ADDR", SocketAddr::from(([127, 0, 0, 1], 8080)), hint);
        let callbacks = match env.optional("CALLBACK_LISTEN_ADDR") {
            None => Some(None),
            Some(_) => env.parse("CALLBACK_LISTEN_ADDR", hint).map(Some),
        };
        let connections = number(env, "MAX_CONNECTIONS", 4096);
        let per_address = env.parse_or("CONNECTIONS_PER_ADDRESS", 128, OR_NO_LIMIT);
        let (connections, per_address) = (connections?, per_address?);
        Some(Listen { addr: addr?, callbacks: callbacks?, connections, per_address })
    }
}

const OR_NO_LIMIT: &str = "set it to a number, or to 0 for no limit";

/// The settings that the handlers use.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `PUBLIC_URL` (required): the base of our own URLs as gateways and browsers see them, without a slash at the end.
    pub public_url: String,
    /// `RETURN_URL_ORIGINS` (default none): origins that a buyer may be sent back to, such as
    /// `https://shop.example.com`.
    pub return_url_origins: Vec<Origin>,
    /// `CORS_ORIGINS` (default none): origins whose pages may call the API from a browser, such as
    /// `https://shop.example.com`.
    pub cors_origins: Vec<Origin>,
    /// `TRUSTED_PROXIES` (default none): networks whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// `ALIPAY_CALLBACK_IPS` (default none: off): networks that Alipay's callbacks come from; or
    /// `ALIPAY_CALLBACK_IPS_FILE`: a file with one network per line, reloaded when it changes.
    pub alipay_callers: Callers,
    /// `WECHAT_CALLBACK_IPS`, `WECHAT_CALLBACK_IPS_FILE`: the same for WeChat Pay.
    pub wechat_callers: Callers,
    /// `MAX_STREAMS` (default 2000): open pages of the whole process.
    pub streams: usize,
    /// `MAX_REQUESTS` (default 512): frontend requests that are processed at once; further requests get 503.
    pub requests: usize,
    /// `MAX_CALLBACKS` (default 1024): callbacks that are processed at once; further callbacks get 503.
    pub callbacks: usize,
    /// `REQUESTS_IN_HAND` (default 64, 0: no limit): of these, requests of one user, or of one address without a user;
    /// further requests get 429. One address with all its users has at most a quarter of `MAX_REQUESTS`, or
    /// `REQUESTS_IN_HAND` if that is more.
    pub requests_in_hand: usize,
    /// `STREAMS_PER_USER` (default 10, 0: no limit): open pages of one user. With view tokens, one address may have
    /// twenty times as many.
    pub streams_per_user: usize,
    /// `SERVE_DOCS` (default 1, and 0 where `PUBLIC_URL` is https): whether everyone may read the description of the
    /// API, which contains the administrators' routes.
    pub serve_docs: bool,
    /// See [`BuyerPrices`].
    pub buyer_prices: BuyerPrices,
    /// `MAX_PENDING_PER_USER` (default 20, 0: no limit): orders of one buyer that wait for a payment. A buyer's further order
    /// is refused; a backend's is not. Requests at one moment may pass the limit together.
    pub pending_per_user: i64,
    /// `REQUESTS_PER_ADDRESS` (default 1200, 0: no limit): requests per minute from one address, except those with an API
    /// key. `REQUESTS_PER_USER` (default 600): of one user. `REQUESTS_PER_KEY` (default 6000): with one API key.
    pub per_minute: PerMinute,
    /// `EXPORT_DIR` (default `payment-exports` in the directory for temporary files): where the files of exports lie for a
    /// day. It is made with mode 0700 if it does not exist.
    pub export_dir: PathBuf,
}

impl Settings {
    /// Whether browsers reach us over HTTPS.
    pub fn is_https(&self) -> bool {
        is_https(&self.public_url)
    }

    /// Reads the section.
    pub fn from_env(env: &mut Env) -> Option<Settings> {
        let public_url = PublicUrl::from_env(env).map(PublicUrl::into_text);
        let return_url_origins = list(env, "RETURN_URL_ORIGINS", "https://shop.example.com", origin);
        let cors_origins = list(env, "CORS_ORIGINS", "https://shop.example.com", origin);
        let trusted_proxies = list(env, "TRUSTED_PROXIES", NETWORK, network);
        let alipay = callers(env, "ALIPAY_CALLBACK_IPS", "ALIPAY_CALLBACK_IPS_FILE");
        let wechat = callers(env, "WECHAT_CALLBACK_IPS", "WECHAT_CALLBACK_IPS_FILE");
        let streams = number(env, "MAX_STREAMS", 2000);
        let requests = number(env, "MAX_REQUESTS", 512);
        let callbacks = number(env, "MAX_CALLBACKS", 1024);
        let in_hand = env.parse_or("REQUESTS_IN_HAND", 64, OR_NO_LIMIT);
        let streams_per_user = env.parse_or("STREAMS_PER_USER", 10, OR_NO_LIMIT);
        let a_minute = "set it to the number of requests a minute, or to 0 for no limit";
        let per_address = env.parse_or("REQUESTS_PER_ADDRESS", 1200, a_minute);
        let per_user = env.parse_or("REQUESTS_PER_USER", 600, a_minute);
        let per_key = env.parse_or("REQUESTS_PER_KEY", 6000, a_minute);
        let buyer_prices = BuyerPrices::from_env(env);
        let pending =
            env.parse_or("MAX_PENDING_PER_USER", 20_u16, "set it to a number of orders, or to 0 for no limit");
        let export_dir = export_dir(env);
        let serve_docs = env.switch("SERVE_DOCS", !public_url.as_deref().is_some_and(is_https));
        Some(Settings {
            serve_docs,
            buyer_prices: buyer_prices?,
            pending_per_user: pending?.into(),
            public_url: public_url?,
            return_url_origins: return_url_origins?,
            cors_origins: cors_origins?,
            trusted_proxies: trusted_proxies?,
            alipay_callers: alipay?,
            wechat_callers: wechat?,
            streams: streams?,
            requests: requests?,
            callbacks: callbacks?,
            requests_in_hand: in_hand?,
            streams_per_user: streams_per_user?,
            per_minute: PerMinute { per_address: per_address?, per_user: per_user?, per_key: per_key? },
            export_dir: export_dir?,
        })
    }

    /// The limits on concurrent work.
    pub fn in_hand(&self) -> InHand {
        InHand::new(&Most {
            requests: self.requests,
            of_client: self.requests_in_hand,
            callbacks: self.callbacks,
            streams_of_user: self.streams_per_user,
        })
    }

    /// The networks that this gateway's callbacks come from.
    pub fn callers(&self, method: PaymentMethod) -> Callers {
        match method {
            PaymentMethod::Alipay => self.alipay_callers.clone(),
            PaymentMethod::Wechat => self.wechat_callers.clone(),
        }
    }
}

fn is_https(url: &str) -> bool {
    url.starts_with("https:")
}

/// Reads `SEAL_KEY` and `PREVIOUS_SEAL_KEY`, see [`SealKeys::from_env`], and warns if there is none.
pub fn seal_keys(env: &mut Env) -> Option<Option<SealKeys>> {
    let keys = SealKeys::from_env(env)?;
    if keys.is_none() {
        warn!(
            "SEAL_KEY is not set: no credential is stored for when a gateway gives no fresh one, and no API key signs offers"
        );
    }
    Some(keys)
}

fn origin(text: &str) -> Option<Origin> {
    let url = Url::parse(text).ok()?;
    let bare = matches!(url.scheme(), "http" | "https") && url.path() == "/" && url.query().is_none();
    Some(url.origin()).filter(|origin| bare && origin.is_tuple())
}

/// A relative path would name another directory for each way to start the process.
fn export_dir(env: &mut Env) -> Option<PathBuf> {
    let Some(text) = env.optional("EXPORT_DIR") else { return Some(std::env::temp_dir().join("payment-exports")) };
    let path = PathBuf::from(&text);
    if path.is_absolute() {
        return Some(path);
    }
    env.fault("EXPORT_DIR", format!("{text:?} does not begin with /"), "set it to an absolute path");
    None
}

/// An example of a network, for the message about a wrong value.
const NETWORK: &str = "203.0.113.0/24 or a single address";

/// Reads a list of networks from a variable, or from the file that a variable names.
fn callers(env: &mut Env, name: &'static str, file: &'static str) -> Option<Callers> {
    let networks = list(env, name, NETWORK, network)?;
    if env.optional(file).is_none() {
        return Some(Callers { networks, file: None });
    }
    let hint = "name a file with one network a line";
    if !networks.is_empty() {
        env.fault(file, format!("{name} is set as well"), "set one of the two");
        return None;
    }
    let path = env.file(file, hint)?;
    if let Err(wrong) = file_mode::check(&path) {
        env.fault(file, format!("{}: {wrong}", path.display()), hint);
        return None;
    }
    let read = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    match read.and_then(|text| Ok((callers::networks(&text)?, text))) {
        Ok((networks, text)) => Some(Callers { networks, file: Some((path, text)) }),
        Err(wrong) => {
            env.fault(file, format!("{}: {wrong}", path.display()), hint);
            None
        }
    }
}

/// Reads values that are separated by commas.
fn list<T>(env: &mut Env, name: &'static str, example: &str, read: fn(&str) -> Option<T>) -> Option<Vec<T>> {
    let text = env.optional(name).unwrap_or_default();
    let mut values = Vec::new();
    let mut wrong = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match read(part) {
            Some(value) => values.push(value),
            None => wrong.push(format!("{part:?}")),
        }
    }
    if wrong.is_empty() {
        return Some(values);
    }
    env.fault(
        name,
        format!("{} cannot be read", wrong.join(", ")),
        format!("write values such as {example}, with commas"),
    );
    None
}

fn number(env: &mut Env, name: &'static str, default: usize) -> Option<usize> {
    let hint = "set it to a number from 1 to 100000, or leave it out";
    let number = env.parse_or(name, default, hint)?;
    if (1..=100_000).contains(&number) {
        return Some(number);
    }
    env.fault(name, format!("{number} is out of range"), hint);
    None
}

#[cfg(test)]
mod tests {
    use broker::AmqpConfig;
    use runtime::health::OpsConfig;
    use store::DatabaseConfig;

    use super::*;
    use crate::access::token_keys::TokenKeys;

    #[test]
    fn every_fault_is_named_at_once() {
        let mut env = Env::of([
            ("LISTEN_ADDR", "8080"),
            ("CALLBACK_LISTEN_ADDR", "here"),
            ("MAX_CONNECTIONS", "0"),
            ("PUBLIC_URL", "ftp://pay.example.com"),
            ("RETURN_URL_ORIGINS", "https://shop.example.com, https://shop.example.com/path, shop"),
            ("TRUSTED_PROXIES", "10.0.0.0/8,10.0.0.300"),
            ("EXPORT_DIR", "exports"),
            ("JWT_HS256_SECRET", "hidden"),
            ("VIEW_TOKEN_SECRET", "hidden"),
        ]);
        assert!(Listen::from_env(&mut env).is_none());
        assert!(Settings::from_env(&mut env).is_none());
        assert!(TokenKeys::from_env(&mut env).is_none());
        let text = env.finish().unwrap_err().to_string();
        assert!(!text.contains("hidden"), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn lists_and_defaults() {
        let mut env = Env::of([
            ("PUBLIC_URL", "https://pay.example.com/"),
            ("RETURN_URL_ORIGINS", "https://shop.example.com,http://127.0.0.1:3000"),
            ("WECHAT_CALLBACK_IPS", "203.0.113.0/24, 2001:db8::1"),
        ]);
        let settings = Settings::from_env(&mut env).unwrap();
        assert_eq!(settings.public_url, "https://pay.example.com");
        assert_eq!(settings.return_url_origins.len(), 2);
        assert!(settings.export_dir.is_absolute() && settings.export_dir.ends_with("payment-exports"));
        assert_eq!(settings.callers(PaymentMethod::Wechat).networks.len(), 2);
        assert!(settings.callers(PaymentMethod::Alipay).networks.is_empty());
        env.finish().unwrap();
    }

    #[test]
    fn the_description_is_served_where_the_internet_does_not_reach_or_where_it_is_requested() {
        let served = |url: &str, switch: Option<&str>| {
            let variables = [Some(("PUBLIC_URL", url)), switch.map(|switch| ("SERVE_DOCS", switch))];
            let mut env = Env::of(variables.into_iter().flatten());
            let served = Settings::from_env(&mut env).unwrap().serve_docs;
            env.finish().map(|_| served).map_err(|faults| faults.to_string())
        };
        assert_eq!(served("http://127.0.0.1:8080", None), Ok(true));
        assert_eq!(served("https://pay.example.com", None), Ok(false));
        assert_eq!(served("https://pay.example.com", Some("1")), Ok(true));
        assert_eq!(served("http://127.0.0.1:8080", Some("0")), Ok(false));
        assert!(served("https://pay.example.com", Some("yes")).unwrap_err().contains("SERVE_DOCS: it is neither"));
    }

    #[test]
    fn one_secret_for_both_kinds_of_token_is_a_fault() {
        let secret = "0123456789abcdef0123456789abcdef";
        let mut env = Env::of([("JWT_HS256_SECRET", secret), ("VIEW_TOKEN_SECRET", secret)]);
        assert!(TokenKeys::from_env(&mut env).is_none());
        assert!(!env.finish().unwrap_err().to_string().contains(secret));
    }

    #[test]
    fn every_fault_is_named_at_once_and_no_secret_is_shown() {
        let mut env = Env::of([
            ("DATABASE_URL", "mysql://u:hidden@h/d"),
            ("DATABASE_MAX_CONNECTIONS", "0"),
            ("AMQP_URL", "amqp:hidden"),
            ("OPS_ADDR", "9100"),
            ("SHORT", "hidden"),
            ("FILE", "/does/not/exist"),
        ]);
        assert!(DatabaseConfig::from_env(&mut env, 4).is_none());
        assert!(AmqpConfig::from_env(&mut env).is_none());
        assert!(AmqpConfig::admin_from_env(&mut env).is_none());
        assert!(OpsConfig::from_env(&mut env, 9100).is_none());
        assert!(env.secret("SHORT", 32, "make one with `openssl rand -hex 32`").is_none());
        assert!(env.file("FILE", "name a file").is_none());
        let text = env.finish().unwrap_err().to_string();
        assert!(!text.contains("hidden"), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn defaults_stand_for_absent_and_empty_values() {
        let mut env = Env::of([("DATABASE_URL", "postgres://localhost/d"), ("OPS_ADDR", "")]);
        assert_eq!(DatabaseConfig::from_env(&mut env, 4).unwrap().max_connections, 4);
        assert_eq!(OpsConfig::from_env(&mut env, 9101).unwrap().addr.port(), 9101);
        assert_eq!(env.optional("OPS_ADDR"), None);
        env.finish().unwrap();
    }
}
