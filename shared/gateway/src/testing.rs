//! A mock gateway for the adapters' tests: it answers on loopback, signed with the keys of the test vectors.

use std::sync::{Arc, Mutex};

use domain::{Money, OrderNo, RefundNo, TradeNo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::refund::RefundOrder;

/// A request as the mock gateway received it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub method: String,
    /// The request target, as sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str())
    }
}

/// The reply to send.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// The address of a server that answers every request with status 200 and these bytes.
pub(super) async fn answering(body: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 65_536]).await;
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = socket.write_all(&[head.as_bytes(), &body].concat()).await;
        }
    });
    url
}

/// Gives the same reply to every request, or chooses one by the start of the target; stores the requests.
pub(super) struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Seen>>>,
    replies: Arc<Mutex<Vec<(&'static str, Reply)>>>,
}

impl Server {
    pub(super) async fn start(reply: Reply) -> Server {
        Server::start_with(vec![("", reply)]).await
    }

    /// The first reply whose prefix matches the target is used.
    pub(super) async fn start_with(replies: Vec<(&'static str, Reply)>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, replies) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(Mutex::new(replies)));
        let (received, given) = (requests.clone(), replies.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                answer(socket, &given, &received).await;
            }
        });
        Server { url, requests, replies }
    }

    /// The last request, or an empty one if none came.
    pub(super) fn seen(&self) -> Seen {
        self.requests.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// The number of requests received.
    pub(super) fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// From now on gives this reply to every request.
    pub(super) fn reply(&self, reply: Reply) {
        *self.replies.lock().unwrap() = vec![("", reply)];
    }
}

/// A refund of 1 yuan from a payment of 3 yuan.
pub(super) fn refund_order() -> RefundOrder {
    RefundOrder {
        order_no: OrderNo::parse("ORD_01").unwrap(),
        trade_no: TradeNo::parse("42").unwrap(),
        refund_no: RefundNo::parse("RF_1").unwrap(),
        amount: Money::from_fen(100).unwrap(),
        total: Money::from_fen(300).unwrap(),
        reason: Some("破损".to_owned()),
        notify_url: "https://pay.example.com/v1/callbacks/wechat/main".to_owned(),
    }
}

/// Accepts connections while the listener lives, but never answers.
pub(super) fn silent() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// A client with a timeout of 50 ms.
pub(super) fn impatient_client() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    builder.timeout(std::time::Duration::from_millis(50)).build().unwrap()
}

async fn answer(mut socket: TcpStream, replies: &Mutex<Vec<(&'static str, Reply)>>, received: &Mutex<Vec<Seen>>) {
    let mut bytes = Vec::new();
    let seen = loop {
        if let Some(seen) = parse(&bytes) {
            break seen;
        }
        let mut chunk = [0; 4096];
        match socket.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
        }
    };
    let found = replies.lock().unwrap().iter().find(|(start, _)| seen.target.starts_with(start)).cloned();
    received.lock().unwrap().push(seen);
    let (_, reply) = found.expect("a reply to this target");
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.status != 204 {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    let _ = socket.write_all(format!("{head}\r\n{}", reply.body).as_bytes()).await;
}

fn parse(bytes: &[u8]) -> Option<Seen> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let headers: Vec<_> =
        lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_lowercase(), v.to_owned())).collect();
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let seen = Seen { method, target, headers, body: body.to_owned() };
    let length = seen.header("content-length").parse().unwrap_or(0);
    (body.len() >= length).then_some(seen)
}
