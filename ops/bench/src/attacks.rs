//! What a client can do to keep others from the service, each as cheaply as it can be done.
//!
//! An attack runs on a thread of its own, so that what it takes of the processors is known.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use crate::cpu;
use crate::http::{Requests, render};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    /// One address holds as many connections as it gets, and asks for nothing.
    Connections,
    /// Eight addresses ask for a long answer and take it a few bytes at a time.
    SlowReaders,
    /// From each of 20 addresses the bodies of 1 024 callbacks come, a byte now and then.
    Trickles,
    /// One address asks for the end of orders, and hangs up before the answer.
    AbortedCloses,
    /// One address sends callbacks with certificate numbers that nobody has.
    ForgedSerials,
    /// 50 000 addresses ask once each, without a token.
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
            Attack::Addresses => "50 000 addresses, 2 000 a second",
        }
    }
}

/// How long one that was turned away waits before it comes again.
const AGAIN: Duration = Duration::from_secs(4);
/// Between two bytes of a body, or two reads of an answer.
const SELDOM: Duration = Duration::from_secs(2);
const CLOSES_A_SECOND: u32 = 600;
const FORGED_A_SECOND: u32 = 500;
const ADDRESSES: u32 = 50_000;
const ADDRESSES_A_SECOND: u32 = 2_000;

/// What came of an attack.
pub(crate) struct Attacked {
    /// How many connections it made.
    pub(crate) connections: u64,
    /// What it took, in shares of one processor.
    pub(crate) share: f64,
}

/// An attack under way.
pub(crate) struct Attacker {
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<Attacked>>,
}

/// Where the attack goes, and what it counts.
#[derive(Clone)]
struct Field {
    to: SocketAddr,
    connections: Arc<AtomicU64>,
    began: Instant,
}

impl Attacker {
    /// Begins an attack; `closes` are the requests that [`Attack::AbortedCloses`] sends in turn.
    pub(crate) fn start(attack: Attack, to: SocketAddr, closes: Requests) -> Attacker {
        let (stop, mut stopped) = watch::channel(false);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let field = Field { to, connections: Arc::default(), began: Instant::now() };
            runtime.block_on(async {
                tokio::select! {
                    () = field.attack(attack, closes) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
            let seconds = field.began.elapsed().as_secs_f64();
            let stat = fs::read_to_string("/proc/thread-self/stat").context("what the attack took")?;
            let connections = field.connections.load(Ordering::Relaxed);
            Ok(Attacked { connections, share: cpu::seconds_of(&stat) / seconds })
        });
        Attacker { stop, thread }
    }

    /// Ends it.
    pub(crate) async fn stop(self) -> Result<Attacked> {
        let _ = self.stop.send(true);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await?;
        joined.map_err(|_| anyhow!("the attack panicked"))?
    }
}

impl Field {
    async fn attack(&self, attack: Attack, closes: Requests) {
        let many = |count: u32| (0..count).map(move |n| (n, address(0x7f02_0000)));
        match attack {
            Attack::Connections => {
                join_all(many(4_096).map(|(n, from)| self.again(n, 4_096, async move || self.hold(from).await))).await;
            }
            Attack::SlowReaders => {
                let readers = (0..512).map(|n| (n, address(0x7f02_0000 + n % 8)));
                join_all(readers.map(|(n, from)| self.again(n, 512, async move || self.read_slowly(from).await))).await;
            }
            Attack::Trickles => {
                let all = 20 * 1_024;
                let bodies = (0..all).map(|n| (n, address(0x7f02_0000 + n % 20)));
                join_all(bodies.map(|(n, from)| self.again(n, all, async move || self.trickle(from).await))).await;
            }
            Attack::AbortedCloses => self.abort(&closes).await,
            Attack::ForgedSerials => {
                join_all(many(16).map(|(n, from)| self.forge(n, from))).await;
            }
            Attack::Addresses => {
                join_all((0..64).map(|n| self.once_each(n))).await;
            }
        }
    }

    /// The same again and again; all begin within [`AGAIN`], one after the other.
    async fn again(&self, n: u32, of: u32, work: impl AsyncFn() -> Result<()>) {
        sleep(AGAIN * n / of).await;
        loop {
            // Being turned away is what the service is for.
            let _ = work().await;
            sleep(AGAIN).await;
        }
    }

    async fn connect(&self, from: IpAddr, received: Option<u32>) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = received {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.bind(SocketAddr::from((from, 0)))?;
        let stream = timeout(AGAIN, socket.connect(self.to)).await??;
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(stream)
    }

    async fn hold(&self, from: IpAddr) -> Result<()> {
        let mut stream = self.connect(from, None).await?;
        while stream.read(&mut [0; 64]).await? > 0 {}
        Ok(())
    }

    async fn read_slowly(&self, from: IpAddr) -> Result<()> {
        let mut stream = self.connect(from, Some(2_048)).await?;
        stream.write_all(&render("GET", "/openapi.json", &[], b"")).await?;
        while stream.read(&mut [0; 64]).await? > 0 {
            sleep(SELDOM).await;
        }
        Ok(())
    }

    async fn trickle(&self, from: IpAddr) -> Result<()> {
        let mut stream = self.connect(from, None).await?;
        let whole = render("POST", "/v1/callbacks/alipay/main", &[("Content-Type", FORM)], &[b'a'; 2_000]);
        let (head, body) = whole.split_at(whole.len() - 2_000);
        stream.write_all(head).await?;
        for byte in body {
            stream.write_all(&[*byte]).await?;
            sleep(SELDOM).await;
        }
        Ok(())
    }

    async fn abort(&self, closes: &Requests) {
        let from = address(0x7f02_0000);
        for (n, close) in (0..).zip(closes.iter().cycle()) {
            sleep_until((self.began + Duration::from_secs(1) * n / CLOSES_A_SECOND).into()).await;
            let hang_up = async {
                let mut stream = self.connect(from, None).await?;
                stream.write_all(close).await?;
                anyhow::Ok(())
            };
            let _ = hang_up.await;
        }
    }

    async fn forge(&self, lane: u32, from: IpAddr) {
        // Base64 of as many bytes as a signature has.
        let signature = format!("{}==", "A".repeat(342));
        let mut stream = None;
        for n in (lane..).step_by(16) {
            sleep_until((self.began + Duration::from_secs(1) * n / FORGED_A_SECOND).into()).await;
            let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let (at, serial) = (at.as_secs().to_string(), format!("{n:040X}"));
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
                open.write_all(&request).await?;
                let read = timeout(AGAIN, open.read(&mut [0; 2_048])).await??;
                anyhow::Ok((read > 0).then_some(open))
            };
            stream = send.await.ok().flatten();
        }
    }

    async fn once_each(&self, lane: u32) {
        let request = render("GET", "/v1/orders", &[], b"");
        for n in (lane..ADDRESSES).step_by(64) {
            sleep_until((self.began + Duration::from_secs(1) * n / ADDRESSES_A_SECOND).into()).await;
            let ask = async {
                let mut stream = self.connect(address(0x7f03_0000 + n), None).await?;
                stream.write_all(&request).await?;
                timeout(AGAIN, stream.read(&mut [0; 512])).await??;
                anyhow::Ok(())
            };
            let _ = ask.await;
        }
    }
}

const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
fn address(bits: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(bits))
}
