//! Genuine callbacks while strangers forge ten thousand per second.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::sleep_until;

use crate::database;
use crate::figures::short;
use crate::http::{self, Connection, Load, Sent};
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::service::Memory;
use crate::stage::Stage;

/// Genuine callbacks per second.
const PER_SECOND: u32 = 50;
const CONNECTIONS: u32 = 16;
/// Forged callbacks per second, if the machine is fast enough.
const FORGED: u32 = 10_000;
/// Each has its own address, as far as the accept loop and the count of refusals can see.
const STRANGERS: u32 = 64;
/// Both gateways stop waiting after this time.
const PATIENCE_MS: f64 = 5_000.0;

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Row> {
    let (mut ours, mut notes) = (Vec::new(), Vec::new());
    for repeat in 1..=stage.cli.repeats() {
        let seconds = stage.cli.seconds();
        progress.say(&format!("flood {repeat}: {seconds} s at {PER_SECOND}/s, quiet"));
        let quiet = run(stage, false).await.context("a quiet time")?;
        progress.say(&format!("flood {repeat}: {seconds} s at {PER_SECOND}/s, and {FORGED}/s forged"));
        let flood = run(stage, true).await.context("a flood")?;
        let note = format!(
            "quiet p99 {} ms; flood of {}/s p50 {} ms, p99 {} ms, payment-api peak {} MiB",
            short(quiet.sent.percentile(99.0)),
            short(flood.forged_per_second),
            short(flood.sent.percentile(50.0)),
            short(flood.sent.percentile(99.0)),
            short(flood.memory.peak),
        );
        progress.done(&note);
        ours.push(flood.sent.percentile(99.0));
        notes.push(note);
    }
    let question = Question {
        what: "p99 of the answer to genuine callbacks under a flood of forged ones".to_owned(),
        unit: "ms",
        against: "the time that a gateway waits".to_owned(),
        target: Target::AtMost(0.9),
    };
    Ok(question.answer(&ours, &[PATIENCE_MS], notes))
}

struct Outcome {
    /// The genuine callbacks.
    sent: Sent,
    forged_per_second: f64,
    memory: Memory,
}

/// One repeat; every genuine callback is answered with success, and nothing else is queued.
async fn run(stage: &Stage<'_>, flood: bool) -> Result<Outcome> {
    let count = PER_SECOND * stage.cli.seconds();
    database::refill(&stage.db, 0).await?;
    let signed = stage.callbacks.signed(count)?;
    let forged = http::render("POST", "/v1/callbacks/alipay/main", &[], &forge(&signed.bodies[0]));
    let services = stage.start(&["payment-api"]).await?;
    let strangers = Strangers::start(stage, Arc::new(forged), if flood { STRANGERS } else { 0 });
    let load =
        Load { to: stage.api, connections: CONNECTIONS, pace: Some(Duration::from_secs(1) / PER_SECOND), from: None };
    let sent = http::send(load, &signed.requests).await?;
    let forged_per_second = strangers.stop().await? / sent.elapsed.as_secs_f64();
    let service = services.iter().next().context("payment-api runs")?;
    let memory = service.memory()?;
    super::accepted::every_one_is_stored(stage, count).await?;
    services.stop().await?;
    stage.broker.empty().await?;
    Ok(Outcome { sent, forged_per_second, memory })
}

/// A genuine Alipay callback with one digit added to its amount: everything is valid except the signature.
fn forge(body: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(body).replacen("total_amount=", "total_amount=1", 1).into_bytes()
}

/// The senders of forged callbacks, until they are stopped.
struct Strangers {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Result<u32>>>,
}

impl Strangers {
    fn start(stage: &Stage<'_>, request: Arc<Vec<u8>>, count: u32) -> Strangers {
        let (stop, next, began, to) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Instant::now(), stage.api);
        let forge = |n: u32| {
            let (stop, next, request) = (stop.clone(), next.clone(), request.clone());
            tokio::spawn(async move {
                let from = IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0001 + n));
                let mut connection = Connection::open_from(from, to).await?;
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    sleep_until((began + Duration::from_secs(1) * number / FORGED).into()).await;
                    let answer = connection.call(&request).await?;
                    ensure!(matches!(answer.status, 401 | 429), "a forged callback is answered {answer}");
                    sent += 1;
                }
                Ok(sent)
            })
        };
        let tasks = (0..count).map(forge).collect();
        Strangers { stop, tasks }
    }

    /// Stops them; returns how many they have sent.
    async fn stop(self) -> Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = 0;
        for task in self.tasks {
            sent += task.await??;
        }
        Ok(f64::from(sent))
    }
}
