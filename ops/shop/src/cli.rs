//! The command line and the environment variables.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};
use lapin::uri::AMQPUri;
use reqwest::Url;

/// The demo's shop: a page that buys, and a consumer that delivers.
#[derive(Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve the shop page and deliver at every fulfilment event
    Serve(Serve),
    /// Play one purchase and one refund at each gateway and wait for their events; exit 0 only if all arrived
    Once(Settings),
}

#[derive(Args)]
pub(crate) struct Serve {
    /// The address on which the page is served
    #[arg(long, env = "LISTEN_ADDR", default_value = "127.0.0.1:3000")]
    pub(crate) listen: SocketAddr,
    /// The URL of the page for browsers, so that gateways can send the buyer back; it must be in payment-api's
    /// RETURN_URL_ORIGINS
    #[arg(long, env = "SHOP_URL")]
    pub(crate) return_url: Option<Url>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

#[derive(Args, Clone)]
pub(crate) struct Settings {
    /// Base URL of payment-api
    #[arg(long, env = "API_URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) api_url: Url,
    /// Base URL of the gateway simulator
    #[arg(long, env = "SIM_URL", default_value = "http://127.0.0.1:7000")]
    pub(crate) sim_url: Url,
    /// Broker address of a downstream user, who may read payment.events and own queues named shop.*
    #[arg(long, env = "AMQP_URL", hide_env_values = true, value_delimiter = ',', value_parser = parse_amqp_url)]
    pub(crate) amqp_url: Vec<AMQPUri>,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

/// What payment-api accepts as proof of the shopper's identity.
#[derive(Args, Clone)]
pub(crate) struct Identity {
    /// The secret that the shop shares with payment-api, 32 bytes or more
    #[arg(long, env = "JWT_HS256_SECRET", value_name = "JWT_HS256_SECRET", hide_env_values = true, value_parser = parse_secret)]
    pub(crate) jwt_secret: Secret,
    /// `iss` of the shopper's token
    #[arg(long, env = "JWT_ISSUER", default_value = "payment")]
    pub(crate) jwt_issuer: String,
    /// `aud` of the shopper's token
    #[arg(long, env = "JWT_AUDIENCE", default_value = "payment-api")]
    pub(crate) jwt_audience: String,
    /// The id of the API key of the shop's backend, which names the offers that it signs
    #[arg(long, env = "SHOP_KEY_ID")]
    pub(crate) key_id: String,
    /// The secret of this key's offers (`paymentctl keys offer-secret`)
    #[arg(long, env = "SHOP_OFFER_SECRET", hide_env_values = true, value_parser = parse_secret)]
    pub(crate) offer_secret: Secret,
    /// The shopper, `sub` of the token
    #[arg(long, env = "SHOP_USER", default_value = "demo-shopper")]
    pub(crate) shopper: String,
}

/// A secret that cannot be printed.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fn parse_secret(text: &str) -> Result<Secret, String> {
    if text.len() < 32 {
        return Err(format!("{} bytes are too short, 32 are needed", text.len()));
    }
    Ok(Secret(text.to_owned()))
}

fn parse_amqp_url(text: &str) -> Result<AMQPUri, String> {
    let mut uri: AMQPUri = text.parse()?;
    // The default of one minute is too slow to notice that a broker hangs.
    uri.query.heartbeat.get_or_insert(10);
    Ok(uri)
}

/// `base` with more path segments, each escaped.
pub(crate) fn join(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    // Only a URL like `mailto:` has no path to extend, and no such URL is used as a base here.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_escaped_and_a_trailing_slash_does_not_double() {
        let base = Url::parse("http://127.0.0.1:8080/").unwrap();
        assert_eq!(join(&base, &["v1", "a/b ?"]).as_str(), "http://127.0.0.1:8080/v1/a%2Fb%20%3F");
    }

    #[test]
    fn a_short_secret_is_refused_without_showing_it() {
        let refused = parse_secret("too short").err().unwrap();
        assert!(!refused.contains("too short to show") && refused.starts_with("9 bytes"));
    }

    #[test]
    fn the_heartbeat_is_short_unless_chosen() {
        assert_eq!(parse_amqp_url("amqp://u:p@localhost/%2f").unwrap().query.heartbeat, Some(10));
        assert_eq!(parse_amqp_url("amqp://u:p@localhost/%2f?heartbeat=30").unwrap().query.heartbeat, Some(30));
    }
}
