//! The accept loop of every HTTP port: bounded in connections, headers and waiting, and graceful at the end.
//!
//! The usual serve function has none of these bounds: half a header holds its slot for ever.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

/// What a client may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Connections at once; the next one waits in the backlog of the operating system.
    pub connections: usize,
    /// For the first byte of a connection, and for all headers of a request; also how long a connection may idle
    /// between requests.
    pub header_wait: Duration,
    /// Bytes of all headers together.
    pub header_bytes: usize,
    /// Number of headers.
    pub headers: usize,
    /// For requests in flight when the process stops.
    pub drain: Duration,
}

impl Default for HttpLimits {
    fn default() -> HttpLimits {
        HttpLimits {
            connections: 64,
            header_wait: Duration::from_secs(5),
            header_bytes: 32 * 1024,
            headers: 64,
            drain: Duration::from_secs(20),
        }
    }
}

/// Serves `router` over HTTP/1.1 and HTTP/2 until `stop`, then lets the requests in flight end. Handlers find the
/// peer's address in `ConnectInfo<SocketAddr>`.
pub async fn serve_http(listener: TcpListener, router: Router, limits: HttpLimits, stop: CancellationToken) {
    let builder = builder(limits);
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
                // Out of descriptors: the next try would fail as well, and at once.
                Err(_) => { sleep(Duration::from_millis(50)).await; continue }
            },
        };
        let (builder, router, watcher) = (builder.clone(), router.clone(), graceful.watcher());
        let stop = stop.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let began = tokio::select! {
                began = begins(&socket, limits.header_wait) => began,
                () = stop.cancelled() => false,
            };
            if began {
                let service = TowerToHyperService::new(with_peer(router, peer));
                let connection = builder.serve_connection_with_upgrades(TokioIo::new(socket), service).into_owned();
                // A client that breaks its own connection is no error of ours.
                let _ = watcher.watch(connection).await;
            }
        });
    }
    drop(listener);
    tokio::select! { () = graceful.shutdown() => {}, () = sleep(limits.drain) => {} }
}

fn builder(limits: HttpLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_wait)
        .max_buf_size(limits.header_bytes)
        .max_headers(limits.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}

/// Whether the client says anything in time. Telling HTTP/1 from HTTP/2 has no time limit of its own.
async fn begins(socket: &TcpStream, wait: Duration) -> bool {
    matches!(timeout(wait, socket.peek(&mut [0u8; 1])).await, Ok(Ok(1)))
}

/// The router with the peer's address in each request.
fn with_peer(
    router: Router,
    peer: SocketAddr,
) -> impl Service<hyper::Request<Incoming>, Response = axum::response::Response, Error = Infallible, Future: Send> + Clone
{
    router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.map(Body::new)
    })
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;

    async fn start(stop: &CancellationToken) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let slow = || async { sleep(Duration::from_millis(300)).await };
        let who = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.ip().to_string() };
        let router = Router::new().route("/slow", get(slow)).route("/who", get(who));
        let limits = HttpLimits { header_wait: Duration::from_millis(200), ..Default::default() };
        (addr, tokio::spawn(serve_http(listener, router, limits, stop.clone())))
    }

    /// Everything the server says after `sent`, until it closes.
    async fn talk(addr: SocketAddr, sent: &str) -> String {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.write_all(sent.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        let _ = socket.read_to_end(&mut said).await;
        String::from_utf8_lossy(&said).into_owned()
    }

    #[tokio::test]
    async fn silence_half_a_header_and_idling_end_at_the_limit() {
        let (addr, _server) = start(&CancellationToken::new()).await;
        let began = Instant::now();
        assert_eq!(talk(addr, "").await, "");
        let half = talk(addr, "GET /who HTTP/1.1\r\nHost: a\r\nX-").await;
        assert!(half.is_empty() || half.starts_with("HTTP/1.1 408"), "{half}");
        assert!(talk(addr, "GET /who HTTP/1.1\r\nHost: a\r\n\r\n").await.ends_with("127.0.0.1"));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn too_many_headers_are_refused() {
        let (addr, _server) = start(&CancellationToken::new()).await;
        let many = "X-A: b\r\n".repeat(70);
        assert!(talk(addr, &format!("GET /who HTTP/1.1\r\nHost: a\r\n{many}\r\n")).await.starts_with("HTTP/1.1 431"));
    }

    #[tokio::test]
    async fn requests_in_flight_end_before_the_server_does() {
        let stop = CancellationToken::new();
        let (addr, server) = start(&stop).await;
        let request = tokio::spawn(async move { talk(addr, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await });
        sleep(Duration::from_millis(100)).await;
        stop.cancel();
        server.await.unwrap();
        assert!(request.await.unwrap().starts_with("HTTP/1.1 200"));
        assert!(TcpStream::connect(addr).await.is_err());
    }
}
