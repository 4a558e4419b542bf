//! State that survives a reload of the file: HTTP clients, circuit breakers, and certificates fetched from gateways.

use std::collections::HashMap;
use std::sync::Arc;

use domain::PaymentMethod;
use reqwest::Client;
use url::Url;

use crate::accounts::fields::Section;
use crate::transport::breaker::Breaker;
use crate::transport::http::{self, Transport};
use crate::transport::route::Route;
use crate::{alipay, wechat};

#[derive(Default)]
pub(super) struct Held {
    clients: Clients,
    breakers: HashMap<(PaymentMethod, String), Arc<Breaker>>,
    alipay: HashMap<String, Arc<alipay::Fetched>>,
    wechat: HashMap<String, Arc<wechat::Fetched>>,
}

impl Held {
    /// The route to a gateway through these addresses, the preferred one first. Accounts share the breaker of a host.
    pub(super) fn route(&mut self, method: PaymentMethod, urls: &[Url], section: &Section<'_>) -> Option<Route> {
        let client = self.clients.of(urls.first()?, section)?;
        let hosts = urls.iter().map(|url| {
            let name = host(url);
            let breaker = self.breakers.entry((method, name.clone()));
            (url.clone(), breaker.or_insert_with(|| Arc::new(Breaker::new(method, name))).clone())
        });
        Some(Route::new(client, hosts.collect()))
    }

    /// The certificates fetched for this account of this application.
    pub(super) fn alipay(&mut self, name: String) -> Arc<alipay::Fetched> {
        self.alipay.entry(name).or_default().clone()
    }

    /// The certificates fetched for this account of this merchant.
    pub(super) fn wechat(&mut self, name: String) -> Arc<wechat::Fetched> {
        self.wechat.entry(name).or_default().clone()
    }
}

/// Host and port.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// One client for each transport, created when the first account needs it.
#[derive(Default)]
struct Clients {
    https: Option<Client>,
    loopback: Option<Client>,
}

impl Clients {
    fn of(&mut self, url: &Url, section: &Section<'_>) -> Option<Client> {
        let (transport, slot) = match url.scheme() {
            "https" => (Transport::Https, &mut self.https),
            _ => (Transport::Loopback, &mut self.loopback),
        };
        if slot.is_none() {
            *slot = http::client(transport)
                .map_err(|error| section.fault("", &format!("has no HTTP client: {error}; install ca-certificates")))
                .ok();
        }
        slot.clone()
    }
}
