//! The load generator: requests are rendered beforehand and sent over many keep-alive connections, as cheaply as
//! possible.
//!
//! It uses no HTTP library. The answers of interest have a status, a length and a short body, and the cost of a
//! library would reduce the processor time of the service under test.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep_until, timeout};

use crate::figures;

/// An answer must arrive within this time.
const ANSWER: Duration = Duration::from_secs(30);
/// The time that counts for an answer that was not a success.
const NEVER_MS: f64 = 1_000_000.0;
/// The maximum size of an answer.
const LARGEST: usize = 1024 * 1024;

/// Complete requests, head and body, ready to send.
pub(crate) type Requests = Arc<Vec<Vec<u8>>>;

/// The options for sending.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) to: SocketAddr,
    pub(crate) connections: u32,
    /// The time from one request to the next; `None` means as fast as answers arrive.
    pub(crate) pace: Option<Duration>,
    /// The address of the first connection; each further one has the next address. With `None` all have the
    /// machine's address.
    pub(crate) from: Option<Ipv4Addr>,
}

/// The result; each list is indexed by the number of the request.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) began: Instant,
    pub(crate) elapsed: Duration,
    /// The time at which each request was sent.
    pub(crate) at: Vec<Instant>,
    /// The duration until each answer, in milliseconds.
    pub(crate) answered_ms: Vec<f64>,
}

impl Sent {
    /// The duration within which `percent` of the answers arrived, in milliseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        figures::percentile(&figures::sorted(&self.answered_ms), percent)
    }

    /// For each answer, its time and its duration in milliseconds.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (Instant, f64)> {
        self.at.iter().zip(&self.answered_ms).map(|(at, ms)| (*at + Duration::from_secs_f64(ms / 1000.0), *ms))
    }

    /// Answers per second.
    pub(crate) fn rate(&self) -> f64 {
        self.at.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// A request as bytes.
pub(crate) fn render(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n", body.len()).into_bytes();
    for (name, value) in headers {
        request.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body);
    request
}

/// Sends every request once and waits for every answer; all must be successes.
pub(crate) async fn send(load: Load, requests: &Requests) -> Result<Sent> {
    let Outcome { sent, refused } = try_send(load, requests).await?;
    ensure!(refused.is_empty(), "not every request was answered with success: {refused:?}");
    Ok(sent)
}

/// The result of requests that need not all succeed.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// A request without success has no duration.
    sent: Sent,
    /// The other answers, or the errors if there was no answer, with their counts.
    pub(crate) refused: BTreeMap<String, usize>,
}

impl Outcome {
    /// The duration within which `percent` of all requests succeeded, in milliseconds from the time when each was
    /// due. A request without success counts as infinitely long.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let all = self.sent.answered_ms.iter().map(|ms| if ms.is_nan() { NEVER_MS } else { *ms });
        figures::percentile(&figures::sorted(&all.collect::<Vec<_>>()), percent)
    }

    /// How many requests did not succeed within this many milliseconds.
    pub(crate) fn later_than(&self, ms: f64) -> usize {
        self.sent.answered_ms.iter().filter(|took| took.is_nan() || **took > ms).count()
    }
}

/// Sends every request once, and reports the result of each.
///
/// # Errors
/// Only when the load generator itself fails.
pub(crate) async fn try_send(load: Load, requests: &Requests) -> Result<Outcome> {
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..load.connections {
        let from = load.from.map_or(Ipv4Addr::UNSPECIFIED, |first| Ipv4Addr::from_bits(first.to_bits() + number));
        tasks.push(tokio::spawn(work(load, IpAddr::V4(from), requests.clone(), next.clone(), began)));
    }
    let count = requests.len();
    let mut sent = Sent { began, elapsed: Duration::ZERO, at: vec![began; count], answered_ms: vec![f64::NAN; count] };
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for task in tasks {
        for Done { number, at, took, answer } in task.await.context("a connection of the load generator")? {
            sent.at[number] = at;
            match answer {
                Ok(answer) if answer.is_success() => sent.answered_ms[number] = took.as_secs_f64() * 1000.0,
                Ok(answer) => *refused.entry(answer.to_string()).or_default() += 1,
                Err(error) => *refused.entry(error.root_cause().to_string()).or_default() += 1,
            }
        }
    }
    sent.elapsed = began.elapsed();
    Ok(Outcome { sent, refused })
}

struct Done {
    number: usize,
    at: Instant,
    took: Duration,
    answer: Result<Answer>,
}

async fn work(load: Load, from: IpAddr, requests: Requests, next: Arc<AtomicUsize>, began: Instant) -> Vec<Done> {
    let mut connection = None;
    let mut done = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(request) = requests.get(number) else { return done };
        let mut at = Instant::now();
        if let Some(pace) = load.pace {
            // A request that waits behind a slow answer is counted from the time when it was due.
            at = began + pace * u32::try_from(number).unwrap_or(u32::MAX);
            sleep_until(at.into()).await;
        }
        let answer = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => Connection::open_from(from, load.to).await?,
            };
            let answer = open.call(request).await.with_context(|| format!("request {number}"))?;
            connection = Some(open);
            Ok(answer)
        };
        let answer = answer.await;
        done.push(Done { number, at, took: at.elapsed(), answer });
    }
}

/// One answer with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// A success: as a gateway understands it (at Alipay the status alone means nothing), or an order that was
    /// shown or created, or a refund that was accepted.
    fn is_success(&self) -> bool {
        match self.status {
            200 => self.body == b"success" || self.body.starts_with(b"{"),
            status => matches!(status, 201 | 202 | 204),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.body);
        write!(f, "{} {}", self.status, text.chars().take(160).collect::<String>())
    }
}

/// One keep-alive connection.
pub(crate) struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr) -> Result<Connection> {
        Connection::open_from(IpAddr::V4(Ipv4Addr::UNSPECIFIED), to).await
    }

    /// A connection from this address of this machine.
    pub(crate) async fn open_from(from: IpAddr, to: SocketAddr) -> Result<Connection> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        let socket = socket.connect(to).await.with_context(|| format!("connecting to {to}"))?;
        socket.set_nodelay(true)?;
        Ok(Connection { socket, buffer: Vec::with_capacity(4096) })
    }

    /// Sends one request and reads its answer.
    pub(crate) async fn call(&mut self, request: &[u8]) -> Result<Answer> {
        timeout(ANSWER, self.exchange(request)).await.with_context(|| format!("no answer within {ANSWER:?}"))?
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        self.socket.write_all(request).await?;
        self.buffer.clear();
        loop {
            if let Some((answer, length)) = parse(&self.buffer)? {
                ensure!(length == self.buffer.len(), "more was answered than was asked");
                return Ok(answer);
            }
            ensure!(self.buffer.len() < LARGEST, "the answer is too large");
            ensure!(self.socket.read_buf(&mut self.buffer).await? > 0, "the connection was closed before the answer");
        }
    }
}

/// An answer and its length, once it is complete.
fn parse(bytes: &[u8]) -> Result<Option<(Answer, usize)>> {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..head]).context("the head of the answer is not text")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let status: u16 = status.context("the answer has no status")?;
    let mut length = if status == 204 { Some(0) } else { None };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().context("the answer's length is no number")?);
        }
    }
    let Some(length) = length else { bail!("the answer {status} has no length") };
    let end = head + 4 + length;
    Ok(bytes.get(head + 4..end).map(|body| (Answer { status, body: body.to_vec() }, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_once_it_is_whole() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nContent-Length: 7\r\n\r\nsuccess";
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]).unwrap(), None, "{cut}");
        }
        let (answer, length) = parse(whole).unwrap().unwrap();
        assert_eq!((answer.is_success(), length), (true, whole.len()));
        let (answer, _) = parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap();
        assert!(answer.is_success());
    }

    #[test]
    fn failures_are_no_successes_and_oddities_are_errors() {
        let (answer, _) = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfail").unwrap().unwrap();
        assert!(!answer.is_success());
        assert!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(parse(b"nonsense\r\n\r\n").is_err());
    }

    #[test]
    fn a_request_is_rendered_whole() {
        let request = render("POST", "/p", &[("A", "b")], b"xy");
        assert_eq!(request, b"POST /p HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nA: b\r\n\r\nxy");
    }
}
