//! What a client can do to keep others from using the service, each attack as cheap as possible.
//!
//! An attack runs on its own thread, so that its processor time is known. It counts the outcome of each step, and
//! [`Attack::is_felt`] states which outcomes show that the service had to deal with it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use futures_util::future::{join_all, pending};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use crate::cpu;
use crate::http::{Requests, render};

/// The attacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    /// One address holds as many connections as it gets, and sends no request.
    Connections,
    /// Eight addresses request more than the systems in between can buffer, and read it a few bytes at a time.
    SlowReaders,
    /// Each of 20 addresses sends the bodies of 1 024 callbacks, one byte at a time.
    Trickles,
    /// Four addresses request the close of ten users' orders, and disconnect before the answer.
    AbortedCloses,
    /// One address sends callbacks with certificate numbers that do not exist.
    ForgedSerials,
    /// 50 000 addresses send one forged callback each.
    Addresses,
}

impl Attack {
    pub(crate) const ALL: [Attack; 6] = [
        Attack::Connections,
        Attack::SlowReaders,
        Attack::Trickles,
        Attack::AbortedCloses,
        Attack::ForgedSerials,
        Attack::Addresses,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Attack::Connections => "4 096 connections of one address",
            Attack::SlowReaders => "512 slow readers of eight addresses",
            Attack::Trickles => "1 024 trickled bodies from each of 20 addresses",
            Attack::AbortedCloses => "600 aborted closes a second",
            Attack::ForgedSerials => "500 forged serials a second",
            Attack::Addresses => "forged callbacks of 50 000 addresses",
        }
    }

    /// Whether the outcomes show that the service had to deal with it: each needed outcome with its minimum count.
    pub(crate) fn is_felt(self, outcomes: &BTreeMap<String, u64>) -> Result<(), String> {
        let needed: &[(&str, u64)] = match self {
            // Some connections are held for long, and those beyond the limit are closed at once.
            Attack::Connections => &[("closed at once", 2_000)],
            Attack::SlowReaders => &[("read for a while", 64)],
            Attack::Trickles => &[("answered 408", 500), ("answered 429", 5_000)],
            Attack::AbortedCloses => &[("hung up", 2_000)],
            Attack::ForgedSerials => &[("answered 503", 20), ("answered 429", 500)],
            Attack::Addresses => &[("answered 401", 49_000)],
        };
        let of = |what: &str| outcomes.get(what).copied().unwrap_or_default();
        let lacking = needed.iter().filter(|(what, least)| of(what) < *least);
        let lacking: Vec<String> = lacking.map(|(what, least)| format!("{what}: {} of {least}", of(what))).collect();
        if lacking.is_empty() { Ok(()) } else { Err(lacking.join(", ")) }
    }
}

/// The pause of a client before it repeats its step.
const AGAIN: Duration = Duration::from_secs(6);
/// How long the client waits for an answer or a connection.
const PATIENCE: Duration = Duration::from_secs(4);
/// A connection that ends sooner was refused.
const AT_ONCE: Duration = Duration::from_millis(500);
/// The pause between two reads of an answer.
const SELDOM: Duration = Duration::from_secs(2);
/// The pause between two bytes of a body: shorter than the silence that the service allows in a callback.
const GAP: Duration = Duration::from_millis(900);
/// How long the client of a close stays after its request, so that the service reads the request.
const MOMENT: Duration = Duration::from_millis(30);
const CLOSES_A_SECOND: u32 = 600;
const FORGED_A_SECOND: u32 = 500;
const ADDRESSES: u32 = 50_000;
const LANES: u32 = 64;
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// The result of an attack.
pub(crate) struct Attacked {
    /// The outcomes of its steps, with their counts.
    pub(crate) outcomes: BTreeMap<String, u64>,
    /// Its processor time, as a share of one processor.
    pub(crate) share: f64,
}

/// A running attack.
pub(crate) struct Attacker {
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<Attacked>>,
}

/// The target of the attack, its planned duration, and its counters.
#[derive(Clone)]
struct Field {
    to: SocketAddr,
    lasts: Duration,
    began: Instant,
    outcomes: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Attacker {
    /// Starts an attack that lasts as long as given; [`Attack::AbortedCloses`] sends the requests `closes` in turn.
    pub(crate) fn start(attack: Attack, to: SocketAddr, lasts: Duration, closes: Requests) -> Attacker {
        let (stop, mut stopped) = watch::channel(false);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let field = Field { to, lasts, began: Instant::now(), outcomes: Arc::default() };
            runtime.block_on(async {
                tokio::select! {
                    () = field.attack(attack, closes) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
            let seconds = field.began.elapsed().as_secs_f64();
            let stat = fs::read_to_string("/proc/thread-self/stat").context("what the attack took")?;
            let outcomes = field.outcomes.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Ok(Attacked { outcomes, share: cpu::seconds_of(&stat) / seconds })
        });
        Attacker { stop, thread }
    }

    /// Stops it.
    pub(crate) async fn stop(self) -> Result<Attacked> {
        let _ = self.stop.send(true);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await?;
        joined.map_err(|_| anyhow!("the attack panicked"))?
    }
}

impl Field {
    /// Runs until it is stopped.
    async fn attack(&self, attack: Attack, closes: Requests) {
        let first = address(0x7f02_0000);
        match attack {
            Attack::Connections => {
                join_all((0..4_096).map(|n| self.again(n, 4_096, async move || self.hold(first).await))).await;
            }
            Attack::SlowReaders => {
                let from = |n: u32| address(0x7f02_0000 + n % 8);
                join_all((0..512).map(|n| self.again(n, 512, async move || self.read_slowly(from(n)).await))).await;
            }
            Attack::Trickles => {
                let (all, from) = (20 * 1_024, |n: u32| address(0x7f02_0000 + n % 20));
                join_all((0..all).map(|n| self.again(n, all, async move || self.trickle(from(n)).await))).await;
            }
            Attack::AbortedCloses => {
                join_all((0..LANES).map(|lane| self.abort(lane, &closes))).await;
            }
            Attack::ForgedSerials => {
                join_all((0..16).map(|lane| self.forge_serials(lane, 16, first))).await;
            }
            Attack::Addresses => {
                join_all((0..LANES).map(|lane| self.once_each(lane))).await;
            }
        }
        pending::<()>().await;
    }

    fn note(&self, outcome: Result<String>) {
        let outcome = outcome.unwrap_or_else(|error| error.root_cause().to_string());
        *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// Repeats the same step forever; the first steps are spread over [`AGAIN`].
    async fn again(&self, n: u32, of: u32, work: impl AsyncFn() -> Result<String>) {
        sleep(AGAIN * n / of).await;
        loop {
            self.note(work().await);
            sleep(AGAIN).await;
        }
    }

    async fn connect(&self, from: IpAddr, received: Option<u32>) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = received {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.bind(SocketAddr::from((from, 0)))?;
        Ok(timeout(PATIENCE, socket.connect(self.to)).await.context("no connection in time")??)
    }

    async fn hold(&self, from: IpAddr) -> Result<String> {
        let mut stream = self.connect(from, None).await?;
        let since = Instant::now();
        // A clean close and a reset both count as the end.
        while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {}
        Ok(ended(since).to_owned())
    }

    async fn read_slowly(&self, from: IpAddr) -> Result<String> {
        let mut stream = self.connect(from, Some(2_048)).await?;
        let since = Instant::now();
        // Requests the largest answer several times, so that the answers do not fit into the system's buffers.
        for _ in 0..8 {
            stream.write_all(&render("GET", "/docs/swagger-ui-bundle.js", &[], b"")).await?;
        }
        while stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {
            sleep(SELDOM).await;
            if since.elapsed() > SELDOM * 2 {
                self.note(Ok("read for a while".to_owned()));
            }
        }
        Ok(ended(since).to_owned())
    }

    async fn trickle(&self, from: IpAddr) -> Result<String> {
        let mut stream = self.connect(from, None).await?;
        let since = Instant::now();
        let whole = render("POST", "/v1/callbacks/alipay/main", &[("Content-Type", FORM)], &[b'a'; 2_000]);
        let (head, body) = whole.split_at(whole.len() - 2_000);
        stream.write_all(head).await?;
        for byte in body {
            let mut answer = [0; 2_048];
            match timeout(GAP, stream.read(&mut answer)).await {
                Ok(Ok(0) | Err(_)) => return Ok(ended(since).to_owned()),
                Ok(Ok(read)) => {
                    // There are many of these clients, and reconnecting costs most.
                    sleep(AGAIN).await;
                    return status(&answer[..read]);
                }
                Err(_) => stream.write_all(&[*byte]).await?,
            }
        }
        Ok("sent whole".to_owned())
    }

    async fn abort(&self, lane: u32, closes: &Requests) {
        for n in (lane..).step_by(LANES as usize) {
            sleep_until((self.began + Duration::from_secs(1) * n / CLOSES_A_SECOND).into()).await;
            // It uses four addresses, because the system frees ports slowly.
            let hang_up = async {
                let mut stream = self.connect(address(0x7f02_0000 + n % 4), None).await?;
                stream.write_all(&closes[n as usize % closes.len()]).await?;
                sleep(MOMENT).await;
                Ok("hung up".to_owned())
            };
            self.note(hang_up.await);
        }
    }

    async fn forge_serials(&self, lane: u32, lanes: usize, from: IpAddr) {
        // Base64 of as many bytes as a signature has.
        let signature = format!("{}==", "A".repeat(342));
        let mut stream = None;
        for n in (lane..).step_by(lanes) {
            sleep_until((self.began + Duration::from_secs(1) * n / FORGED_A_SECOND).into()).await;
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
            let serial = format!("{n:040X}");
            let headers = [
                ("Content-Type", "application/json"),
                ("Wechatpay-Timestamp", at.as_str()),
                ("Wechatpay-Nonce", "0123456789abcdef"),
                ("Wechatpay-Signature", signature.as_str()),
                ("Wechatpay-Serial", serial.as_str()),
            ];
            let request = render("POST", "/v1/callbacks/wechat/main", &headers, b"{}");
            let send = async {
                let mut open = match stream.take() {
                    Some(open) => open,
                    None => self.connect(from, None).await?,
                };
                let outcome = exchange(&mut open, &request).await?;
                stream = Some(open);
                Ok(outcome)
            };
            self.note(send.await);
        }
    }

    /// Spreads the callbacks over the duration of the attack. The service remembers a forged callback longest.
    async fn once_each(&self, lane: u32) {
        let body = b"notify_id=1&app_id=2&sign_type=RSA2&sign=AAAA";
        let request = render("POST", "/v1/callbacks/alipay/main", &[("Content-Type", FORM)], body);
        for n in (lane..ADDRESSES).step_by(LANES as usize) {
            sleep_until((self.began + self.lasts * n / ADDRESSES).into()).await;
            let once = async {
                let mut stream = self.connect(address(0x7f03_0000 + n), None).await?;
                exchange(&mut stream, &request).await
            };
            self.note(once.await);
        }
    }
}

/// Sends one request and reads the first part of its answer.
async fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<String> {
    stream.write_all(request).await?;
    let mut answer = [0; 2_048];
    let read = timeout(PATIENCE, stream.read(&mut answer)).await.context("no answer in time")??;
    if read == 0 { Ok("closed".to_owned()) } else { status(&answer[..read]) }
}

fn status(answer: &[u8]) -> Result<String> {
    let status = answer.split(|byte| *byte == b' ').nth(1).context("no status")?;
    Ok(format!("answered {}", String::from_utf8_lossy(status)))
}

fn ended(since: Instant) -> &'static str {
    if since.elapsed() < AT_ONCE { "closed at once" } else { "closed after a while" }
}

fn address(bits: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(bits))
}
