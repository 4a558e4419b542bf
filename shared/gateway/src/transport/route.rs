//! The route to a gateway: a client, one host or two, and a breaker for each host.
//!
//! The second host gets a call only if nothing of it reached the first: there was no connection, or the breaker stopped
//! the call. So any call may be sent to the second host, with the same numbers.

use runtime::error_chain::chain;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder};
use tracing::warn;
use url::Url;

use crate::error::GatewayError;
use crate::transport::breaker::{Breaker, stopped};
use crate::transport::http::{self, Answer};

/// How long the second host goes first after it answered instead of the first.
const DETOUR: Duration = Duration::from_mins(1);

/// The route of one account.
pub(crate) struct Route {
    client: Client,
    hosts: Vec<(Url, Arc<Breaker>)>,
    /// Which host goes first, and until when.
    detour: Mutex<Option<(usize, Instant)>>,
}

impl Route {
    /// The hosts in the order of preference; at least one.
    pub(crate) fn new(client: Client, hosts: Vec<(Url, Arc<Breaker>)>) -> Route {
        Route { client, hosts, detour: Mutex::new(None) }
    }

    /// Makes one call. `build` builds the same request for each host.
    pub(crate) async fn send(
        &self,
        build: impl Fn(&Client, &Url) -> Result<RequestBuilder, GatewayError>,
    ) -> Result<Answer, GatewayError> {
        let first = self.first(Instant::now());
        let mut not_sent = None;
        for offset in 0..self.hosts.len() {
            let at = (first + offset) % self.hosts.len();
            let (url, breaker) = &self.hosts[at];
            match through(breaker, build(&self.client, url)?).await {
                Err(error @ GatewayError::Unavailable(_)) => not_sent = Some(more_telling(not_sent, error)),
                outcome => {
                    if let Some(error) = not_sent {
                        self.turn_to(at, &error);
                    }
                    return outcome;
                }
            }
        }
        Err(not_sent.unwrap_or_else(|| GatewayError::Unavailable("no host".to_owned())))
    }

    fn first(&self, now: Instant) -> usize {
        let detour = *self.detour.lock().unwrap_or_else(PoisonError::into_inner);
        detour.filter(|(_, until)| now < *until).map_or(0, |(host, _)| host)
    }

    fn turn_to(&self, at: usize, error: &GatewayError) {
        let host = self.hosts[at].0.host_str().unwrap_or_default();
        warn!(host, error = chain(&error), "The other host cannot be reached: calls go to {host} first for a while");
        metrics::counter!("gateway_detours_total", "host" => host.to_owned()).increment(1);
        *self.detour.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, Instant::now() + DETOUR));
    }
}

/// Of two hosts' errors, the one that states a real failure rather than a call that was not tried.
fn more_telling(earlier: Option<GatewayError>, error: GatewayError) -> GatewayError {
    match earlier {
        Some(earlier) if stopped(&error) || !stopped(&earlier) => earlier,
        _ => error,
    }
}

/// The breaker learns only the outcome of the transport; the content of an answer does not matter to it.
async fn through(breaker: &Breaker, request: RequestBuilder) -> Result<Answer, GatewayError> {
    let leave = breaker.enter(Instant::now())?;
    let outcome = http::send(request).await;
    match &outcome {
        Ok(_) => leave.answered(),
        Err(_) => leave.failed(Instant::now()),
    }
    outcome
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{Reply, Server, silent};
    use crate::transport::http::{Transport, client};
    use domain::PaymentMethod;

    /// A route to these hosts, each with its own breaker.
    pub(crate) fn to(client: Client, urls: &[&str]) -> Route {
        let host =
            |url: &&str| (Url::parse(url).unwrap(), Arc::new(Breaker::new(PaymentMethod::Wechat, (*url).into())));
        Route::new(client, urls.iter().map(host).collect())
    }

    async fn get(route: &Route) -> Result<Answer, GatewayError> {
        route.send(|client, url| Ok(client.get(url.clone()))).await
    }

    fn reply() -> Reply {
        Reply { status: 200, headers: Vec::new(), body: "ok".to_owned() }
    }

    const CLOSED_PORT: &str = "http://127.0.0.1:1";

    #[tokio::test]
    async fn the_second_host_answers_when_the_first_takes_no_connection_and_goes_first_then() {
        let server = Server::start(reply()).await;
        let route = to(client(Transport::Loopback).unwrap(), &[CLOSED_PORT, &server.url]);
        assert_eq!(route.first(Instant::now()), 0);
        assert_eq!(get(&route).await.unwrap().body, "ok");
        assert_eq!(route.first(Instant::now()), 1);
        assert_eq!(route.first(Instant::now() + DETOUR), 0);
        assert_eq!(get(&route).await.unwrap().body, "ok");
    }

    #[tokio::test]
    async fn what_was_sent_goes_nowhere_else() {
        let server = Server::start(reply()).await;
        let (_held, mute) = silent();
        let route = to(crate::testing::impatient_client(), &[&mute, &server.url]);
        assert!(matches!(get(&route).await, Err(GatewayError::Unknown(_))));
        assert_eq!(server.seen().method, "", "nothing came");
    }

    #[tokio::test]
    async fn closed_ports_alone_mean_not_sent_and_open_both_breakers() {
        let route = to(client(Transport::Loopback).unwrap(), &[CLOSED_PORT, "http://127.0.0.1:2"]);
        for _ in 0..5 {
            assert!(matches!(get(&route).await, Err(error @ GatewayError::Unavailable(_)) if !stopped(&error)));
        }
        let error = get(&route).await.unwrap_err().to_string();
        assert!(error.contains("failed too often"), "{error}");
    }

    #[tokio::test]
    async fn of_a_host_that_is_not_tried_and_one_that_is_not_there_the_second_is_reported() {
        let (_held, mute) = silent();
        let route = to(crate::testing::impatient_client(), &[&mute, CLOSED_PORT]);
        for _ in 0..5 {
            assert!(matches!(get(&route).await, Err(GatewayError::Unknown(_))));
        }
        assert!(matches!(get(&route).await, Err(error @ GatewayError::Unavailable(_)) if !stopped(&error)));
    }

    #[tokio::test]
    async fn an_open_breaker_leads_to_the_second_host() {
        let server = Server::start(reply()).await;
        let (_held, mute) = silent();
        let route = to(crate::testing::impatient_client(), &[&mute, &server.url]);
        for _ in 0..5 {
            assert!(matches!(get(&route).await, Err(GatewayError::Unknown(_))));
        }
        assert_eq!(get(&route).await.unwrap().body, "ok");
    }
}
