//! Publishing with proof: a [`Confirmed`] exists only for a message that the broker has stored in at least one queue.
//!
//! Callers put messages into a bounded queue. A few tasks, each the only owner of one channel, publish the waiting
//! messages as a group and answer when the whole group is confirmed (`group.rs`). While there is no session, or the
//! broker blocks it, callers get an error at once, so that they can store the message elsewhere.

use runtime::error_chain::chain;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::Connection;
use lapin::options::ConfirmSelectOptions;
use secrecy::SecretString;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::address::Addresses;
use crate::error::BrokerError;
use crate::group::{Job, Lane};
use crate::session::supervise_watched;
use crate::step::step;

/// How long a stopping publisher may take to publish what is queued.
const DRAIN: Duration = Duration::from_secs(3);

/// A message to publish. It is stored durably, and refused if no queue is bound for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The exchange; it must exist.
    pub exchange: String,
    /// The routing key, at most 255 bytes.
    pub routing_key: String,
    /// The message id, at most 255 bytes: the same on every repeat. A returned message is recognised by it.
    pub id: String,
    /// The AMQP `type`, if the message has one.
    pub kind: Option<String>,
    /// The media type of the body.
    pub content_type: String,
    /// Text headers. Names have at most 255 bytes; if a name occurs twice, the last one counts.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// Shows the destination and the length, never the bytes or headers.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Message({} to {}/{}, {} bytes)", self.id, self.exchange, self.routing_key, self.body.len())
    }
}

/// Proof that the broker has confirmed a message and routed it to a queue. Only this module can make one.
#[derive(Debug)]
pub struct Confirmed {
    id: String,
}

impl Confirmed {
    /// The id of the confirmed message.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The reason why there is no proof. Only `Unroutable`, `Refused` (by a nack) and `Invalid` are a definite refusal, by
/// the broker or by us. After the other errors the message may still have been stored, so a repeat uses the same id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no session with the broker, or it ended before the message was published.
    #[error("there is no session with the broker")]
    NoSession,
    /// Too many messages are waiting already.
    #[error("the queue of the publisher is full")]
    QueueFull,
    /// The broker accepts no messages: it is short of disk or memory.
    #[error("the broker blocks publishing")]
    Blocked,
    /// No confirm within the caller's time.
    #[error("no confirm in time")]
    TimedOut,
    /// No queue is bound for the routing key.
    #[error("no queue takes the message: bind one to payment.events (ops/integrate.md, section 7)")]
    Unroutable,
    /// The broker answered with a nack, or closed the channel.
    #[error("the broker refused the message: {0}")]
    Refused(String),
    /// The session broke while we waited for the confirm.
    #[error("the session broke before the confirm: {0}")]
    Lost(String),
    /// A name or id is longer than AMQP allows; nothing was sent.
    #[error("the message cannot be expressed in AMQP: {0}")]
    Invalid(&'static str),
}

impl PublishError {
    /// A name for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            PublishError::NoSession => "no_session",
            PublishError::QueueFull => "queue_full",
            PublishError::Blocked => "blocked",
            PublishError::TimedOut => "timed_out",
            PublishError::Unroutable => "unroutable",
            PublishError::Refused(_) => "refused",
            PublishError::Lost(_) => "lost",
            PublishError::Invalid(_) => "invalid",
        }
    }
}

/// How a publisher works.
#[derive(Debug, Clone, Copy)]
pub struct PublisherOptions {
    /// The number of channels that work in parallel; they hide the round trip. With 1, messages reach the broker in the
    /// order in which they were queued; with more, there is no order.
    pub channels: usize,
    /// The largest number of messages that are published before we wait for their confirms.
    pub group: usize,
    /// The largest number of messages that wait for a channel. This, plus one group for each channel, limits the
    /// memory.
    pub queue: usize,
}

impl Default for PublisherOptions {
    fn default() -> PublisherOptions {
        PublisherOptions { channels: 8, group: 256, queue: 1024 }
    }
}

/// What a publisher can do right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublisherState {
    /// No session with the broker.
    NoSession,
    /// Publishing works.
    Ready,
    /// Connected, but the broker accepts no messages.
    Blocked,
}

/// A handle to publish with; clones share one connection, which a supervised task keeps alive until `stop`.
#[derive(Clone)]
pub struct Publisher {
    jobs: mpsc::Sender<Job>,
    state: watch::Receiver<PublisherState>,
    stop: CancellationToken,
    finished: CancellationToken,
}

impl Publisher {
    /// Starts a publisher whose connection is called `name`. It answers [`PublishError::NoSession`] until it is
    /// connected.
    ///
    /// When `stop` is cancelled, new messages are refused, waiting messages are still published (3 s at most), and the
    /// connection closes; [`Publisher::finished`] waits for that. Cancel it after the callers have ended.
    ///
    /// # Errors
    /// [`BrokerError::Address`] when the address is malformed. Needs a tokio runtime.
    pub fn start(
        uri: &SecretString,
        name: &'static str,
        options: PublisherOptions,
        stop: CancellationToken,
    ) -> Result<Publisher, BrokerError> {
        Addresses::parse(uri)?;
        let (jobs, waiting) = mpsc::channel(options.queue.max(1));
        let (state, watched) = watch::channel(PublisherState::NoSession);
        let finished = CancellationToken::new();
        let publisher = Publisher { jobs, state: watched, stop: stop.clone(), finished: finished.clone() };
        let work = Work { waiting: Mutex::new(waiting), state, options };
        let uri = uri.clone();
        tokio::spawn(async move {
            let _finished = finished.drop_guard();
            let work = Arc::new(work);
            let on_blocked = |blocked| work.set_blocked(blocked);
            // It ends with `stop`, or when the last handle is dropped.
            let life = stop.child_token();
            let session = |connection, life| work.clone().session(connection, life);
            if let Err(error) = supervise_watched(name, &uri, life, on_blocked, session).await {
                tracing::error!(connection = name, error = chain(&error), "The publisher {name} cannot run");
            }
            work.state.send_replace(PublisherState::NoSession);
        });
        Ok(publisher)
    }

    /// Publishes one message and waits at most `wait` for the proof.
    ///
    /// # Errors
    /// Every [`PublishError`] means "no proof". A message whose caller has gone is not published any more. But once its
    /// group is being sent, a message may arrive even after an error. So a caller that stores it elsewhere, or repeats
    /// it, makes a duplicate.
    pub async fn publish(&self, message: Message, wait: Duration) -> Result<Confirmed, PublishError> {
        let (exchange, began) = (message.exchange.clone(), Instant::now());
        let outcome = match self.hand_in(message) {
            Ok(ticket) => self.await_proof(ticket, began + wait).await,
            Err(error) => Err(error),
        };
        count(&exchange, began, &outcome);
        outcome
    }

    /// Publishes many messages and waits at most `wait` for all the proofs; the answers are in the order of `messages`.
    ///
    /// If there are more messages than the queue holds, they are queued as it empties. So a large number is slowed
    /// down, not refused.
    pub async fn publish_all(&self, messages: Vec<Message>, wait: Duration) -> Vec<Result<Confirmed, PublishError>> {
        let (began, deadline) = (Instant::now(), Instant::now() + wait);
        let mut tickets = Vec::with_capacity(messages.len());
        for message in messages {
            let exchange = message.exchange.clone();
            tickets.push((exchange, self.hand_in_slowly(message, deadline).await));
        }
        let mut outcomes = Vec::with_capacity(tickets.len());
        for (exchange, ticket) in tickets {
            let outcome = match ticket {
                Ok(ticket) => self.await_proof(ticket, deadline).await,
                Err(error) => Err(error),
            };
            count(&exchange, began, &outcome);
            outcomes.push(outcome);
        }
        outcomes
    }

    /// What the publisher can do right now, for readiness.
    pub fn state(&self) -> PublisherState {
        // While it stops, the internal state stays `Ready`, so that waiting callers get their proof.
        if self.stop.is_cancelled() || self.finished.is_cancelled() {
            PublisherState::NoSession
        } else {
            *self.state.borrow()
        }
    }

    /// Waits until publishing works. Never returns after `stop`.
    pub async fn ready(&self) {
        let mut state = self.state.clone();
        if state.wait_for(|state| *state == PublisherState::Ready).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until the publisher has stopped and its connection is closed; holds no handle meanwhile.
    pub fn finished(&self) -> impl Future<Output = ()> + Send + use<> {
        self.finished.clone().cancelled_owned()
    }

    /// Refuses a message at once if it cannot be published now.
    fn hand_in(&self, message: Message) -> Result<Ticket, PublishError> {
        usable(self.state())?;
        let (job, ticket) = ticket(message)?;
        match self.jobs.try_send(job) {
            Ok(()) => Ok(ticket),
            Err(mpsc::error::TrySendError::Full(_)) => Err(PublishError::QueueFull),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(PublishError::NoSession),
        }
    }

    /// Waits for room in the queue.
    async fn hand_in_slowly(&self, message: Message, deadline: Instant) -> Result<Ticket, PublishError> {
        usable(self.state())?;
        let (job, ticket) = ticket(message)?;
        let mut state = self.state.clone();
        tokio::select! {
            sent = timeout_at(deadline, self.jobs.send(job)) => match sent {
                Ok(Ok(())) => Ok(ticket),
                Ok(Err(_)) => Err(PublishError::NoSession),
                Err(_) => Err(PublishError::TimedOut),
            },
            refusal = refusal(&mut state) => Err(refusal),
        }
    }

    /// Waits for the answer, for the deadline, or until it is certain that no answer will come.
    async fn await_proof(&self, ticket: Ticket, deadline: Instant) -> Result<Confirmed, PublishError> {
        let mut state = self.state.clone();
        tokio::select! {
            biased;
            answered = timeout_at(deadline, ticket.answer) => match answered {
                Ok(Ok(answer)) => answer.map(|()| Confirmed { id: ticket.id }),
                Ok(Err(_)) => Err(PublishError::NoSession),
                Err(_) => Err(PublishError::TimedOut),
            },
            refusal = refusal(&mut state) => Err(refusal),
        }
    }
}

/// The caller's half of a job.
struct Ticket {
    id: String,
    answer: oneshot::Receiver<Result<(), PublishError>>,
}

fn ticket(message: Message) -> Result<(Job, Ticket), PublishError> {
    let id = message.id.clone();
    let (done, answer) = oneshot::channel();
    Ok((Job::new(message, done)?, Ticket { id, answer }))
}

fn usable(state: PublisherState) -> Result<(), PublishError> {
    match state {
        PublisherState::Ready => Ok(()),
        PublisherState::NoSession => Err(PublishError::NoSession),
        PublisherState::Blocked => Err(PublishError::Blocked),
    }
}

/// Waits until the publisher cannot publish, and returns the error.
async fn refusal(state: &mut watch::Receiver<PublisherState>) -> PublishError {
    let unusable = state.wait_for(|state| *state != PublisherState::Ready).await;
    match unusable.map(|state| usable(*state)) {
        Ok(Err(error)) => error,
        _ => PublishError::NoSession,
    }
}

fn count(exchange: &str, began: Instant, outcome: &Result<Confirmed, PublishError>) {
    let name = outcome.as_ref().map_or_else(PublishError::as_str, |_| "confirmed");
    let labels = [("exchange", exchange.to_owned()), ("outcome", name.to_owned())];
    metrics::counter!("amqp_published_total", &labels).increment(1);
    match outcome {
        Ok(_) => metrics::histogram!("amqp_confirm_duration_seconds").record(began.elapsed()),
        Err(PublishError::Unroutable) => metrics::counter!("amqp_returned_total").increment(1),
        Err(_) => {}
    }
}

/// What the supervised task keeps from one session to the next.
struct Work {
    waiting: Mutex<mpsc::Receiver<Job>>,
    state: watch::Sender<PublisherState>,
    options: PublisherOptions,
}

impl Work {
    /// One session: channels that publish until `life` ends or one of them fails.
    async fn session(self: Arc<Self>, connection: Arc<Connection>, life: CancellationToken) -> Result<(), BrokerError> {
        let mut channels = Vec::new();
        for _ in 0..self.options.channels.max(1) {
            let channel = step("opening a channel", connection.create_channel()).await?;
            step("switching confirms on", channel.confirm_select(ConfirmSelectOptions::default())).await?;
            channels.push(channel);
        }
        self.state.send_replace(PublisherState::Ready);
        let broken = CancellationToken::new();
        let lane = Lane {
            status: connection.status(),
            waiting: &self.waiting,
            group: self.options.group.max(1),
            drained: &life,
            broken: &broken,
            since: Instant::now(),
        };
        let mut running = channels.into_iter().map(|channel| lane.publish(channel)).collect::<FuturesUnordered<_>>();
        let all = async {
            let mut ended = Ok(());
            while let Some(result) = running.next().await {
                if result.is_err() {
                    broken.cancel();
                }
                ended = ended.and(result);
            }
            if ended.is_ok() {
                life.cancel(); // If this was not a stop, the last handle is gone.
            }
            ended
        };
        let ended = tokio::select! {
            ended = all => ended,
            () = overdue(&life) => Err(BrokerError::TimedOut("publishing what was queued")),
        };
        self.state.send_replace(PublisherState::NoSession);
        ended
    }

    fn set_blocked(&self, blocked: bool) {
        let (from, to) = match blocked {
            true => (PublisherState::Ready, PublisherState::Blocked),
            false => (PublisherState::Blocked, PublisherState::Ready),
        };
        self.state.send_if_modified(|state| {
            let changes = *state == from;
            if changes {
                *state = to;
            }
            changes
        });
    }
}

/// Returns when stopping takes longer than a publisher may take.
async fn overdue(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}
