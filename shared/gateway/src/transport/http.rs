//! Calls to a gateway: one pooled client, limits on time and size, and the meaning of transport errors.

use runtime::error_chain::chain;
use std::time::{Duration, Instant};

use bytes::Bytes;
use domain::PaymentMethod;
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, tls};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::error::GatewayError;
use crate::keys::KeyError;
use crate::transport::breaker;

/// Larger than any answer of either gateway (bills are fetched elsewhere).
const MAX_BODY: usize = 1024 * 1024;
/// The time limit of a connection, TLS included. Before the connection is established, no byte of the request is sent.
const CONNECT: Duration = Duration::from_secs(2);
/// The time limit from the start of a call to the head of its answer, the connection included.
const ANSWER: Duration = Duration::from_secs(7);
/// The time limit of the whole call, to the last byte of the answer.
const WHOLE: Duration = Duration::from_secs(10);
/// WeChat Pay's front end refuses a request without one.
const USER_AGENT: &str = concat!("payment/", env!("CARGO_PKG_VERSION"));

/// The hosts that a client may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TLS 1.2 or newer, certificates checked: every real gateway.
    Https,
    /// Plain HTTP on this machine: the simulator.
    Loopback,
}

/// A gateway's answer whose signature has not been checked yet.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Builds the client that all accounts of one transport share.
pub(crate) fn client(transport: Transport) -> Result<Client, reqwest::Error> {
    let builder = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT)
        .timeout(WHOLE)
        .tcp_user_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(32)
        .user_agent(USER_AGENT);
    match transport {
        Transport::Https => builder.https_only(true).tls_version_min(tls::Version::TLS_1_2).build(),
        // This client never uses TLS, so the machine's certificate store is not even read.
        Transport::Loopback => builder.tls_certs_only([]).build(),
    }
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(request: RequestBuilder) -> Result<Answer, GatewayError> {
    send_within(ANSWER, request).await
}

/// Waits a shorter time for an answer to begin than for an answer that is still arriving.
async fn send_within(answer: Duration, request: RequestBuilder) -> Result<Answer, GatewayError> {
    let begun = timeout(answer, request.send()).await.map_err(|_| no_answer())?;
    let mut response = begun.map_err(|error| transport_error(&error))?;
    let (status, headers) = (response.status().as_u16(), std::mem::take(response.headers_mut()));
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport_error(&error))? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(GatewayError::Unknown(format!("an answer of more than {MAX_BODY} bytes (status {status})")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, headers, body: body.into() })
}

/// Before the connection is established, nothing was sent; after that, the request may have arrived. Neither error
/// shows the address, because its query string holds the signed parameters.
fn transport_error(error: &reqwest::Error) -> GatewayError {
    if error.is_connect() || error.is_builder() {
        GatewayError::Unavailable(format!("no connection: {}", root_cause(error)))
    } else if error.is_timeout() {
        no_answer()
    } else {
        GatewayError::Unknown(format!("the exchange broke off: {}", root_cause(error)))
    }
}

fn no_answer() -> GatewayError {
    GatewayError::Unknown("no answer in time".to_owned())
}

/// Adjusts the error of an answer to a call that moves money. The gateway may answer "too often" to a repeat of a
/// request that it is already processing, so the outcome is unknown. Do not use this for transport errors: a request
/// that was not sent is not unknown.
pub(crate) fn may_have_happened(error: GatewayError) -> GatewayError {
    match error {
        GatewayError::Unavailable(text) => GatewayError::Unknown(text),
        error => error,
    }
}

impl From<KeyError> for GatewayError {
    /// A request that cannot be signed was not sent.
    fn from(error: KeyError) -> GatewayError {
        GatewayError::Unavailable(error.to_string())
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Runs one gateway call under its name: counts it, measures its time, and logs it without any body.
pub(crate) async fn measured<T>(
    gateway: PaymentMethod,
    call: &'static str,
    work: impl Future<Output = Result<T, GatewayError>>,
) -> Result<T, GatewayError> {
    let started = Instant::now();
    let result = work.await;
    let elapsed = started.elapsed();
    let outcome = match &result {
        Ok(_) => "ok",
        Err(GatewayError::Refused { .. }) => "refused",
        Err(GatewayError::Misconfigured { .. }) => "misconfigured",
        Err(GatewayError::NotNow { .. }) => "not_now",
        Err(error) if breaker::stopped(error) => "stopped",
        Err(GatewayError::Unavailable(_)) => "unavailable",
        Err(GatewayError::Unknown(_)) => "unknown",
        Err(GatewayError::Protocol(_)) => "protocol",
    };
    metrics::counter!("gateway_calls_total", "gateway" => gateway.as_str(), "call" => call, "outcome" => outcome)
        .increment(1);
    metrics::histogram!("gateway_call_duration_seconds", "gateway" => gateway.as_str(), "call" => call)
        .record(elapsed.as_secs_f64());
    let duration_ms = elapsed.as_millis();
    match &result {
        Ok(_) => debug!(%gateway, call, duration_ms, "Called {gateway} {call}"),
        Err(error) if breaker::stopped(error) => {
            debug!(%gateway, call, error = chain(&error), "{gateway} {call} was not tried")
        }
        Err(error) => {
            warn!(%gateway, call, duration_ms, outcome, error = chain(&error), "Call of {gateway} {call} failed")
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection with these bytes after reading the request's head, then closes.
    async fn server(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(&answer).await;
        });
        format!("http://{address}/x?sign=secret")
    }

    async fn get(url: &str) -> Result<Answer, GatewayError> {
        send(client(Transport::Loopback).unwrap().get(url)).await
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_and_not_followed() {
        let url =
            server(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 2\r\n\r\nok".to_vec());
        let answer = get(&url.await).await.unwrap();
        assert_eq!((answer.status, &answer.body[..]), (302, &b"ok"[..]));
    }

    #[tokio::test]
    async fn a_closed_port_means_not_sent() {
        let error = get("http://127.0.0.1:1/x?sign=secret").await.unwrap_err();
        assert!(matches!(&error, GatewayError::Unavailable(_)), "{error:?}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_after_sending_means_unknown() {
        for answer in [&b""[..], b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"] {
            let error = get(&server(answer.to_vec()).await).await.unwrap_err();
            assert!(matches!(&error, GatewayError::Unknown(_)), "{error:?}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_does_not_begin_is_given_up_and_may_have_happened() {
        let (_held, url) = crate::testing::silent();
        let request = client(Transport::Loopback).unwrap().get(url);
        let error = send_within(Duration::from_millis(50), request).await.unwrap_err();
        assert!(matches!(&error, GatewayError::Unknown(text) if text == "no answer in time"), "{error:?}");
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut_off() {
        let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        answer.resize(MAX_BODY + 1000, b' ');
        let error = get(&server(answer).await).await.unwrap_err();
        assert!(matches!(&error, GatewayError::Unknown(text) if text.contains("more than")), "{error:?}");
    }

    #[tokio::test]
    async fn the_secure_client_speaks_no_plain_http() {
        let url = server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
        let Ok(client) = client(Transport::Https) else { return }; // A machine without any certificate store.
        assert!(matches!(send(client.get(url)).await, Err(GatewayError::Unavailable(_))));
    }
}
