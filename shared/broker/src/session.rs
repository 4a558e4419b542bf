//! Opens connections, and keeps opening them.

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::runtime::default_runtime;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, Event};
use runtime::error_chain::chain;
use runtime::panics::caught;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::address::{Address, Addresses, is_plain, place};
use crate::error::MqError;
use crate::step::STEP;

/// How long a broker may take for its first bytes.
const PREFLIGHT: Duration = Duration::from_secs(2);
/// How long a clean close may take; it hangs while the broker blocks the connection.
const CLOSE: Duration = Duration::from_secs(3);
/// The largest frame, in bytes, unless the address says otherwise. The library keeps room for 64 of them for each connection:
/// 8 MiB with the broker's own 128 KiB. No callback of a gateway has to be cut for it.
const FRAME: u32 = 64 * 1024;
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A session that lived this long was a good one: the next wait is short again.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// Opens a connection called `name` to the first address that answers, for a command or a look at the start.
///
/// # Errors
/// [`MqError::Address`] for a malformed address; [`MqError::Unreachable`] names every address with its reason.
pub async fn open(uri: &SecretString, name: &str) -> Result<Connection, MqError> {
    connect(&Addresses::parse(uri)?, name, 0).await
}

/// Keeps a session with the broker until `stop`: opens a connection, runs `session` on it until that returns, closes,
/// waits a moment, begins again.
///
/// `session` gets the connection and `stop`; it ends by itself when `stop` is cancelled or anything fails, and is never
/// dropped halfway, since it may be inside a database transaction. Channels it opened must be gone when it returns. A panic
/// ends it as an error does.
///
/// # Errors
/// [`MqError::Address`] alone: everything else is logged and tried again.
pub async fn supervise<S, F, E>(
    name: &'static str,
    uri: &SecretString,
    stop: CancellationToken,
    session: S,
) -> Result<(), MqError>
where
    S: Fn(Arc<Connection>, CancellationToken) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    supervise_watched(name, uri, stop, |_| (), session).await
}

/// [`supervise`] that also tells when the broker blocks (`true`) and unblocks (`false`) the connection.
pub(super) async fn supervise_watched<S, F, E>(
    name: &'static str,
    uri: &SecretString,
    stop: CancellationToken,
    on_blocked: impl Fn(bool),
    session: S,
) -> Result<(), MqError>
where
    S: Fn(Arc<Connection>, CancellationToken) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let addresses = Addresses::parse(uri)?;
    let connected = metrics::gauge!("amqp_connected", "name" => name);
    let blocked = metrics::gauge!("amqp_blocked", "name" => name);
    connected.set(0.0);
    blocked.set(0.0);
    let mut backoff = Backoff::default();
    // Processes are spread over the nodes, and each goes on to the next one when its own fails.
    let mut attempt = anything() as usize;
    let mut down = Announced::default();
    while !stop.is_cancelled() {
        let mut opening = pin!(connect(&addresses, name, attempt));
        let opened = tokio::select! {
            opened = &mut opening => opened,
            () = stop.cancelled() => {
                // Dropped halfway, a handshake leaves a thread behind that panics when the process ends.
                if let Ok(Ok(connection)) = timeout(STEP, opening).await {
                    close(&connection).await;
                }
                break;
            }
        };
        attempt = attempt.wrapping_add(1);
        match opened {
            Err(error) => down.announce(name, chain(&error)),
            Ok(connection) => {
                let since = Instant::now();
                info!(connection = name, "Connected to the broker as {name}");
                metrics::counter!("amqp_sessions_total", "name" => name).increment(1);
                connected.set(1.0);
                down = Announced::default();
                let on_event = |is: bool| {
                    blocked.set(if is { 1.0 } else { 0.0 });
                    on_blocked(is);
                };
                let ended = run_session(name, Arc::new(connection), &stop, on_event, &session).await;
                connected.set(0.0);
                blocked.set(0.0);
                if since.elapsed() >= GOOD_SESSION {
                    backoff = Backoff::default();
                }
                match ended {
                    Err(error) => down.announce(name, chain(error.as_ref())),
                    Ok(()) if stop.is_cancelled() => info!(connection = name, "Closed the session {name}"),
                    Ok(()) => {}
                }
            }
        }
        tokio::select! { () = sleep(backoff.next()) => {}, () = stop.cancelled() => {} }
    }
    Ok(())
}

/// Runs one session and closes its connection, however the session ended.
async fn run_session<S, F, E>(
    name: &'static str,
    connection: Arc<Connection>,
    stop: &CancellationToken,
    on_blocked: impl Fn(bool),
    session: &S,
) -> Result<(), Box<dyn Error + Send + Sync>>
where
    S: Fn(Arc<Connection>, CancellationToken) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    // Listeners share events between them, so there is exactly one for each connection, and it is this one.
    let mut events = connection.events_listener();
    let listen = async {
        while let Some(event) = events.next().await {
            match event {
                Event::ConnectionBlocked(reason) => {
                    warn!(connection = name, reason, "The broker blocks publishing on {name}");
                    on_blocked(true);
                }
                Event::ConnectionUnblocked => {
                    info!(connection = name, "The broker takes messages on {name} again");
                    on_blocked(false);
                }
                _ => {}
            }
        }
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = caught(async { session(connection.clone(), stop.clone()).await }) => match ended {
            Ok(ended) => ended.map_err(Into::into),
            Err(panic) => Err(panic.noted(name, "session", &name).into()),
        },
        () = listen => Ok(()),
    };
    close(&connection).await;
    ended
}

/// Closes a connection without waiting long for the broker to agree.
pub async fn close(connection: &Connection) {
    // A refusal only says that it was closed or broken before.
    let _ = timeout(CLOSE, connection.close(200, "bye".into())).await;
}

async fn connect(addresses: &Addresses, name: &str, attempt: usize) -> Result<Connection, MqError> {
    let mut reasons = Vec::new();
    for address in addresses.starting_at(attempt) {
        match connect_one(address, name).await {
            Ok(connection) => return Ok(connection),
            Err(reason) => reasons.push(format!("{}: {reason}", place(&address.uri))),
        }
    }
    // In the same order at each attempt, so that the same trouble reads the same.
    reasons.sort();
    Err(MqError::Unreachable(reasons))
}

async fn connect_one(address: &Address, name: &str) -> Result<Connection, String> {
    let (mut uri, tls) = (address.uri.clone(), address.tls()?);
    uri.query.frame_max.get_or_insert(FRAME);
    match timeout(PREFLIGHT, preflight(&uri)).await {
        Err(_) => return Err(format!("no answer within {} s", PREFLIGHT.as_secs())),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(())) => {}
    }
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = default_runtime().map_err(|error| chain(&error))?;
    match timeout(STEP, Connection::connect_uri_with_config(uri, properties, tls, runtime)).await {
        Err(_) => Err(format!("the handshake took longer than {} s", STEP.as_secs())),
        Ok(connected) => connected.map_err(|error| explained(chain(&error))),
    }
}

/// What to do about a certificate, where the library only names its fault.
fn explained(reason: String) -> String {
    // A bad signature: an authority of the same name, and another key.
    let remedy = if reason.contains("UnknownIssuer") || reason.contains("BadSignature") {
        "; nobody trusted has issued its certificate: name the authority with ?cacertfile="
    } else if reason.contains("not valid for name") {
        "; its certificate is for another host: use the name that is in it"
    } else {
        ""
    };
    reason + remedy
}

/// Looks whether a broker answers before the library tries: it has no timeout of its own for connecting, and a connect
/// future that is dropped leaves a thread and a socket behind.
async fn preflight(uri: &AMQPUri) -> std::io::Result<()> {
    let mut socket = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await?;
    if !is_plain(uri) {
        return Ok(());
    }
    socket.write_all(b"AMQP\x00\x00\x09\x01").await?;
    let mut head = [0u8; 7];
    socket.read_exact(&mut head).await?;
    // A live broker answers Connection.Start: a method frame, type 1.
    if head[0] == 1 { Ok(()) } else { Err(std::io::Error::other("it does not speak AMQP 0-9-1")) }
}

/// Says that the broker is away once, not at every attempt.
#[derive(Default)]
struct Announced(Option<String>);

impl Announced {
    fn announce(&mut self, name: &'static str, reason: String) {
        if self.0.as_ref() != Some(&reason) {
            warn!(connection = name, reason, "No session with the broker for {name}, trying again");
            self.0 = Some(reason);
        }
    }
}

/// 100 ms doubling to 2 s, each wait shortened by up to a half so that processes do not return in step.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff(SHORTEST_WAIT)
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let full = self.0;
        self.0 = (full * 2).min(LONGEST_WAIT);
        full - full * u32::try_from(anything() % 512).unwrap_or(0) / 1024
    }
}

/// A number that nobody can foresee. The standard library's only source of randomness: the keys of a hasher.
fn anything() -> u64 {
    RandomState::new().hash_one(0u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_their_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next()).collect();
        assert!(waits[0] <= SHORTEST_WAIT && waits[0] > SHORTEST_WAIT / 2 - Duration::from_millis(1));
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT));
        assert!(waits[7] > LONGEST_WAIT / 2 - Duration::from_millis(1));
    }

    #[tokio::test]
    async fn a_mute_peer_costs_two_seconds_and_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let uri = SecretString::from(format!("amqp://u:hidden@127.0.0.1:{port}/v"));
        let began = Instant::now();
        let error = open(&uri, "test").await.unwrap_err().to_string();
        assert!(began.elapsed() < STEP);
        assert!(error.contains(&format!("127.0.0.1:{port}: no answer")), "{error}");
        assert!(!error.contains("hidden"));
    }
}
