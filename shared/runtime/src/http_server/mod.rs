//! The accept loop of every HTTP port. It limits connections, connections per client, headers and waiting times, and
//! stops gracefully.
//!
//! The usual serve function has none of these limits: half a header occupies its slot forever. This server supports
//! only HTTP/1.1. Browsers and gateways use HTTP/2 only over TLS, that is, with the proxy in front; and the detection
//! of HTTP/2 has no time limit.

pub mod shares;
mod untaken;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use crate::http_server::shares::AddressShares;
use crate::http_server::untaken::Untaken;

/// The limits on what a client may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Maximum of simultaneous connections; the next one waits in the backlog of the operating system.
    pub connections: usize,
    /// Maximum of simultaneous connections from one address, or from one IPv6 /64; a /48 may have eight times as many.
    /// A further connection is closed at once. 0: no limit.
    pub per_address: usize,
    /// A connection closes after this many requests.
    pub requests: u32,
    /// A connection closes with the first answer after this age.
    pub age: Duration,
    /// The time in which a client must read a whole waiting answer, however steadily it reads.
    pub untaken: Duration,
    /// The time limit for all headers of a request, counted from the moment at which the request could begin. So it
    /// also limits how long a new connection may be silent, and how long a connection may idle between requests.
    pub header_wait: Duration,
    /// How long a client may read nothing of a waiting answer.
    pub unread: Duration,
    /// Maximum size of all headers together, in bytes.
    pub header_bytes: usize,
    /// Maximum number of headers.
    pub headers: usize,
    /// The time for requests in flight when the process stops.
    pub drain: Duration,
}

impl Default for HttpLimits {
    fn default() -> HttpLimits {
        HttpLimits {
            connections: 64,
            per_address: 0,
            requests: 1000,
            age: Duration::from_mins(5),
            untaken: Duration::from_mins(1),
            header_wait: Duration::from_secs(5),
            unread: Duration::from_secs(30),
            header_bytes: 32 * 1024,
            headers: 64,
            drain: Duration::from_secs(20),
        }
    }
}

/// Peers whose connections do not count against their address: our own proxies, and the gateways.
pub type Friends = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// A listener, and the peers that connect to it on behalf of many clients.
pub struct Door {
    /// The socket that accepts connections.
    pub listener: TcpListener,
    /// See [`Friends`].
    pub friends: Friends,
}

impl From<TcpListener> for Door {
    fn from(listener: TcpListener) -> Door {
        Door { listener, friends: Arc::new(|_| false) }
    }
}

/// Serves `router` over HTTP/1.1 until `stop`, then lets the requests in flight finish. Handlers find the peer's
/// address in `ConnectInfo<SocketAddr>`.
pub async fn serve_http(door: impl Into<Door>, router: Router, limits: HttpLimits, stop: CancellationToken) {
    let Door { listener, friends } = door.into();
    let builder = builder(limits);
    let shares = AddressShares::new(limits.per_address);
    let slots = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = slots.clone().acquire_owned() => permit,
        };
        let (socket, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // No file descriptors are left: an immediate retry would fail as well.
                Err(_) => { sleep(Duration::from_millis(50)).await; continue }
            },
        };
        let address = peer.ip().to_canonical();
        let friend = limits.per_address == 0 || friends(address);
        let share = if friend { None } else { shares.take(address) };
        if !friend && share.is_none() {
            metrics::counter!("connections_refused_total").increment(1);
            continue;
        }
        let (builder, router, watcher) = (builder.clone(), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _held = (permit, share);
            // Fails only on systems without this option; the connection is served anyway.
            let _ = SockRef::from(&socket).set_tcp_user_timeout(Some(limits.unread));
            let spent = Arc::new(Spent { began: Instant::now(), requests: AtomicU32::new(0), limits, friend });
            let service = TowerToHyperService::new(with_peer(router, peer, spent));
            let socket = TokioIo::new(Untaken::new(socket, limits.untaken));
            // If a client breaks its own connection, that is not our error.
            let _ = watcher.watch(builder.serve_connection(socket, service)).await;
        });
    }
    drop(listener);
    tokio::select! { () = graceful.shutdown() => {}, () = sleep(limits.drain) => {} }
}

fn builder(limits: HttpLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_wait)
        .max_buf_size(limits.header_bytes)
        .max_headers(limits.headers);
    builder
}

/// What one connection has used so far.
struct Spent {
    began: Instant,
    requests: AtomicU32,
    limits: HttpLimits,
    /// Friends keep their connection after a refusal, because other clients use it too.
    friend: bool,
}

impl Spent {
    /// Counts an answer. Closes the connection after it when the connection has reached a limit.
    fn count(&self, mut response: Response) -> Response {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let refused = matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS);
        if requests >= self.limits.requests || self.began.elapsed() >= self.limits.age || (refused && !self.friend) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The router with the peer's address in each request, and with each answer counted.
fn with_peer(
    router: Router,
    peer: SocketAddr,
    spent: Arc<Spent>,
) -> impl Service<hyper::Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Clone {
    let router = router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.map(Body::new)
    });
    router.map_response(move |response| spent.count(response))
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use futures_util::future::join_all;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpSocket, TcpStream};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;

    const GOOD: &str = "GET /who HTTP/1.1\r\nHost: a\r\n\r\n";
    /// No test waits longer than this: a connection that stays open for that long stays open forever.
    const BOUND: Duration = Duration::from_secs(30);

    struct Server {
        addr: SocketAddr,
        stop: CancellationToken,
        ended: JoinHandle<()>,
        /// Notified when `/slow` is running.
        slow: Arc<Notify>,
    }

    async fn start(connections: usize) -> Server {
        let wait = Duration::from_secs(1);
        start_with(HttpLimits { connections, header_wait: wait, unread: wait, ..Default::default() }).await
    }

    async fn start_with(limits: HttpLimits) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, slow) = (CancellationToken::new(), Arc::new(Notify::new()));
        let who = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.ip().to_string() };
        let until_stop = {
            let (stop, slow) = (stop.clone(), slow.clone());
            move || async move {
                slow.notify_one();
                stop.cancelled().await;
                sleep(Duration::from_millis(100)).await;
            }
        };
        let big = || async { vec![b'a'; 32 << 20] };
        let refuse = || async { StatusCode::UNAUTHORIZED };
        let router = Router::new().route("/slow", get(until_stop)).route("/who", get(who)).route("/big", get(big));
        let router = router.route("/refused", get(refuse));
        let friends: Friends = Arc::new(|address| address == IpAddr::from([127, 0, 0, 9]));
        let ended = tokio::spawn(serve_http(Door { listener, friends }, router, limits, stop.clone()));
        Server { addr, stop, ended, slow }
    }

    async fn open(addr: SocketAddr, sent: &str) -> TcpStream {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.write_all(sent.as_bytes()).await.unwrap();
        socket
    }

    /// Everything that the server sends after `sent`, until it closes the connection.
    async fn talk(addr: SocketAddr, sent: &str) -> String {
        let mut said = Vec::new();
        let mut socket = open(addr, sent).await;
        let _ = timeout(BOUND, socket.read_to_end(&mut said)).await.unwrap_or_else(|_| panic!("{sent:?} stays open"));
        String::from_utf8_lossy(&said).into_owned()
    }

    #[tokio::test]
    async fn silence_half_a_header_and_idling_end_at_the_limit() {
        let server = start(64).await;
        let half = "GET /who HTTP/1.1\r\nHost: a\r\nX-";
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let sent = ["", "P", "PRI * HTTP/2.0\r\n", preface, half];
        for (sent, said) in sent.iter().zip(join_all(sent.map(|sent| talk(server.addr, sent))).await) {
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{sent:?}: {said}");
        }
        assert!(talk(server.addr, GOOD).await.ends_with("127.0.0.1"), "served, and closed when it idles");
    }

    #[tokio::test]
    async fn a_slow_client_does_not_block_the_others() {
        let served = |sent: &'static str| async move {
            let server = start(2).await;
            let _dawdlers = (open(server.addr, sent).await, open(server.addr, sent).await);
            assert!(talk(server.addr, GOOD).await.ends_with("127.0.0.1"), "{sent:?}");
        };
        join_all(["", "P", "PRI * HTTP/2.0\r\n\r\n", "GET /who HTTP/1.1\r\nX-"].map(served)).await;
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_does_not_block_the_others() {
        let server = start(1).await;
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut reader = socket.connect(server.addr).await.unwrap();
        reader.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(talk(server.addr, GOOD).await.ends_with("127.0.0.1"));
    }

    /// Opens a connection from this loopback address.
    async fn open_from(last: u8, addr: SocketAddr, sent: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        let mut socket = socket.connect(addr).await.unwrap();
        // The server may have closed the connection already.
        let _ = socket.write_all(sent.as_bytes()).await;
        socket
    }

    /// What the server sends until it closes the connection, or within half a second.
    async fn said(socket: &mut TcpStream) -> String {
        let mut said = Vec::new();
        let _ = timeout(Duration::from_millis(500), socket.read_to_end(&mut said)).await;
        String::from_utf8_lossy(&said).into_owned()
    }

    #[tokio::test]
    async fn one_address_leaves_room_for_the_others() {
        let server = start_with(HttpLimits { connections: 64, per_address: 8, ..Default::default() }).await;
        let mut held = Vec::new();
        for _ in 0..64 {
            held.push(open_from(2, server.addr, GOOD).await);
        }
        let served = join_all(held.iter_mut().map(said)).await.iter().filter(|said| !said.is_empty()).count();
        assert_eq!(served, 8, "the others were closed");
        assert!(said(&mut open_from(3, server.addr, GOOD).await).await.ends_with("127.0.0.3"));
        let mut friends = Vec::new();
        for _ in 0..16 {
            friends.push(open_from(9, server.addr, GOOD).await);
        }
        let all = join_all(friends.iter_mut().map(said)).await;
        assert!(all.iter().all(|said| said.ends_with("127.0.0.9")), "a proxy speaks for many");
        drop(held);
        sleep(Duration::from_millis(100)).await;
        assert!(
            said(&mut open_from(2, server.addr, GOOD).await).await.ends_with("127.0.0.2"),
            "its share is free again"
        );
    }

    #[tokio::test]
    async fn a_connection_ends_when_it_has_cost_enough() {
        let limits = HttpLimits { per_address: 64, requests: 3, ..Default::default() };
        let answers = |said: &str| said.matches("HTTP/1.1 ").count();
        let server = start_with(limits).await;
        assert_eq!(answers(&talk(server.addr, &GOOD.repeat(10)).await), 3);
        let refused = "GET /refused HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(answers(&talk(server.addr, &refused.repeat(3)).await), 1);
        let by_proxy = said(&mut open_from(9, server.addr, &refused.repeat(3)).await).await;
        assert_eq!(answers(&by_proxy), 3, "others come through it as well");
        let old = start_with(HttpLimits { age: Duration::ZERO, ..limits }).await;
        assert_eq!(answers(&talk(old.addr, &GOOD.repeat(3)).await), 1);
    }

    #[tokio::test]
    async fn a_client_that_reads_a_little_now_and_then_is_left_at_the_limit() {
        let limits = HttpLimits { connections: 1, untaken: Duration::from_secs(1), ..Default::default() };
        let server = start_with(limits).await;
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut reader = socket.connect(server.addr).await.unwrap();
        reader.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let dripping = tokio::spawn(async move {
            let mut part = [0; 1024];
            while reader.read(&mut part).await.is_ok_and(|read| read > 0) {
                sleep(Duration::from_millis(100)).await;
            }
        });
        assert!(talk(server.addr, GOOD).await.ends_with("127.0.0.1"), "the only slot is free again");
        dripping.abort();
    }

    #[tokio::test]
    async fn too_many_headers_are_refused() {
        let server = start(64).await;
        let many = "X-A: b\r\n".repeat(70);
        let said = talk(server.addr, &format!("GET /who HTTP/1.1\r\nHost: a\r\n{many}\r\n")).await;
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
    }

    /// A request that a front proxy and this server could read differently is refused, or answered once on a connection
    /// that then closes. Bytes inside a client's request are never served as a request of their own.
    #[tokio::test]
    async fn a_request_cannot_be_smuggled_behind_another() {
        let server = start(64).await;
        let hidden = "GET /who HTTP/1.1\r\nHost: a\r\n\r\n";
        let chunked = format!("0\r\n\r\n{hidden}");
        let (long, short) = (format!("Content-Length: {}", chunked.len()), "Content-Length: 3");
        let heads = [
            format!("{short}\r\n{long}"),
            format!("{short}\r\nTransfer-Encoding: chunked"),
            format!("Transfer-Encoding: chunked\r\n{short}"),
            "Transfer-Encoding: chunked, identity".to_owned(),
            "Transfer-Encoding: xchunked".to_owned(),
            "Transfer-Encoding : chunked".to_owned(),
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(),
            "Content-Length: +3".to_owned(),
            "Content-Length: 3, 4".to_owned(),
            "Content-Length: 0x3".to_owned(),
            format!("{long}\r\n X-Folded: b"),
            "X-Null: a\0b".to_owned(),
        ];
        for head in heads {
            let said = talk(server.addr, &format!("POST /none HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{chunked}")).await;
            let answers = said.matches("HTTP/1.1 ").count();
            assert!(answers <= 1 && !said.contains("127.0.0.1"), "{head:?} is answered {said:?}");
            let refused = said.starts_with("HTTP/1.1 400");
            let closed = said.starts_with("HTTP/1.1 404") && said.contains("connection: close");
            assert!(refused || closed, "{head:?} is answered {said:?}");
        }
    }

    #[tokio::test]
    async fn requests_in_flight_end_before_the_server_does() {
        let server = start(64).await;
        let _silent = open(server.addr, "").await;
        let request = tokio::spawn(async move { talk(server.addr, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await });
        timeout(BOUND, server.slow.notified()).await.unwrap();
        server.stop.cancel();
        timeout(BOUND, server.ended).await.unwrap().unwrap();
        assert!(request.await.unwrap().starts_with("HTTP/1.1 200"));
        assert!(TcpStream::connect(server.addr).await.is_err());
    }
}
