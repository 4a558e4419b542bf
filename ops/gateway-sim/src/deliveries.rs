//! What sends callbacks: the client, the limit of requests in flight, and the tasks that run until the simulator stops.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::callback::SignedCallback;
use crate::ledger::Gateway;

/// A later answer is ignored. This is not scaled by the speed, because the merchant's service does not become faster.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The maximum of an answer that is read and shown.
const ANSWER_LIMIT: usize = 256;

#[derive(Debug)]
pub(crate) struct Deliveries {
    client: reqwest::Client,
    /// Limits the requests in flight.
    slots: Semaphore,
    tasks: Mutex<JoinSet<()>>,
    speed: f64,
}

/// The result of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// Whether the answer was the gateway's success answer.
    pub(crate) accepted: bool,
    /// Status and body, or the error if there is no answer.
    pub(crate) answer: String,
}

impl Deliveries {
    pub(crate) fn new(speed: f64, slots: usize) -> Result<Deliveries> {
        anyhow::ensure!(speed.is_finite() && speed > 0.0, "the speed is a number above 0, not {speed}");
        let client = reqwest::Client::builder()
            .timeout(ANSWER_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .context("making the HTTP client of the deliveries")?;
        Ok(Deliveries { client, slots: Semaphore::new(slots.max(1)), tasks: Mutex::default(), speed })
    }

    /// Runs `work` beside everything else, until the simulator stops.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Aborts everything that is under way.
    pub(crate) fn stop(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// A duration of the gateway, divided by the speed.
    pub(crate) fn scaled(&self, time: Duration) -> Duration {
        time.div_f64(self.speed)
    }

    /// Sends a callback and reads the answer.
    pub(crate) async fn send(&self, gateway: Gateway, callback: SignedCallback) -> Delivered {
        let failed = |answer: String| Delivered { accepted: false, answer };
        let Ok(_slot) = self.slots.acquire().await else { return failed("the simulator stops".to_owned()) };
        let mut request = self.client.post(&callback.url).body(callback.body);
        for (name, value) in &callback.headers {
            request = request.header(name, value);
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return failed(describe(&error)),
        };
        let status = response.status();
        let mut body = Vec::new();
        while body.len() <= ANSWER_LIMIT {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => return failed(describe(&error)),
            }
        }
        let accepted = match gateway {
            Gateway::Alipay => status == 200 && body == b"success",
            Gateway::Wechat => status == 200 || status == 204,
        };
        body.truncate(ANSWER_LIMIT);
        let text = String::from_utf8_lossy(&body);
        Delivered { accepted, answer: format!("{} {text}", status.as_u16()).trim_end().to_owned() }
    }
}

/// The chain of errors without the address, which adds nothing.
fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer within 5 s".to_owned();
    }
    let mut text = "no answer".to_owned();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
