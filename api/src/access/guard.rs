//! Checks every request before its handler: the client's address, the shape of the request, the address list of a
//! gateway.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ipnet::IpNet;
use tracing::Span;
use tracing::field::display;

use crate::access::callers::Networks;

/// The longest path and query of a request, in bytes.
const URI: usize = 4 * 1024;
/// Lists the addresses on the way. Each proxy adds the address that it received the request from.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Headers that decide something. With two different values, the result would depend on which one is read.
const AT_MOST_ONCE: &[&str] = &[
    "authorization",
    "content-type",
    "idempotency-key",
    "wechatpay-nonce",
    "wechatpay-serial",
    "wechatpay-signature",
    "wechatpay-timestamp",
];

/// The client's address as far as it can be trusted. Every request has it in its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientIp(pub IpAddr);

/// Refuses what no honest client sends, and records the client's address. `trusted`: the networks of our proxies.
pub async fn guard(State(trusted): State<Networks>, mut request: Request, next: Next) -> Response {
    if let Some(status) = refusal(&request) {
        return status.into_response();
    }
    let address = client_ip(peer(&request), request.headers(), &trusted);
    Span::current().record("client", display(address));
    request.extensions_mut().insert(ClientIp(address));
    next.run(request).await
}

/// The other end of the connection.
fn peer(request: &Request) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).to_canonical()
}

/// The peer that forwarded the request for another client without being one of `trusted`. All that it forwards counts
/// as its own.
pub fn unknown_proxy(request: &Request, trusted: &[IpNet]) -> Option<IpAddr> {
    let peer = peer(request);
    (request.headers().contains_key(FORWARDED_FOR) && !is_listed(peer, trusted)).then_some(peer)
}

fn refusal(request: &Request) -> Option<StatusCode> {
    let count = |name: &str| request.headers().get_all(name).iter().count();
    let uri = request.uri();
    let length = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    if length > URI {
        return Some(StatusCode::URI_TOO_LONG);
    }
    let shaped = count("host") == 1 && AT_MOST_ONCE.iter().all(|name| count(name) <= 1);
    (!shaped).then_some(StatusCode::BAD_REQUEST)
}

/// Whether `address` is in the list. An empty list is off: it allows every address.
pub fn is_allowed(address: IpAddr, list: &[IpNet]) -> bool {
    list.is_empty() || is_listed(address, list)
}

/// Whether `address` is in the list.
pub fn is_listed(address: IpAddr, list: &[IpNet]) -> bool {
    list.iter().any(|network| network.contains(&address))
}

/// The first address from the right of `X-Forwarded-For` that is not one of our proxies. The client can forge the left
/// part. An entry that cannot be read ends the search at the last good address.
fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut current = peer;
    if !is_listed(current, trusted) {
        return current;
    }
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    for line in lines.into_iter().rev() {
        let Ok(line) = line.to_str() else { return current };
        for hop in line.rsplit(',').map(str::trim) {
            let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
            let Some(address) = hop.parse::<IpAddr>().ok().or_else(with_port) else { return current };
            current = address.to_canonical();
            if !is_listed(current, trusted) {
                return current;
            }
        }
    }
    current
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, lines: &[&str]) -> String {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).into();
        let headers = lines.iter().map(|line| ("x-forwarded-for".parse().unwrap(), line.parse().unwrap())).collect();
        client_ip(peer.parse::<IpAddr>().unwrap().to_canonical(), &headers, &trusted).to_string()
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_no_proxy_of_ours() {
        for (peer, lines, expected) in [
            ("1.2.3.4", &["9.9.9.9"][..], "1.2.3.4"),
            ("10.0.0.1", &["9.9.9.9, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["9.9.9.9, 1.2.3.4, 10.1.1.1, 10.0.0.7"], "1.2.3.4"),
            ("10.0.0.1", &["9.9.9.9", "1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4", "10.1.1.1"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4, garbage"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4, garbage, 10.1.1.1"], "10.1.1.1"),
            ("10.0.0.1", &["1.2.3.4:5678"], "1.2.3.4"),
            ("fd00::1", &["[2001:db8::1]:443"], "2001:db8::1"),
            ("::ffff:10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &[], "10.0.0.1"),
        ] {
            assert_eq!(seen(peer, lines), expected, "{peer} {lines:?}");
        }
    }
}
