//! Opens connections to the broker and reopens them after a failure.

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
use tracing::{error, info, warn};

use crate::address::{Address, Addresses, is_plain, place};
use crate::error::BrokerError;
use crate::step::STEP;

/// How long a broker may take to send its first bytes.
const PREFLIGHT: Duration = Duration::from_secs(2);
/// How long a clean close may take; it hangs while the broker blocks the connection.
const CLOSE: Duration = Duration::from_secs(3);
/// The largest frame, in bytes, unless the address sets it. The library reserves memory for 64 of them per connection;
/// with the broker's own default of 128 KiB, that is 8 MiB. No callback of a gateway needs to be split at this size.
const FRAME: u32 = 64 * 1024;
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// After a session that lived this long, the next wait is short again.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// Opens a connection called `name` to the first address that answers, for a command or for a check at the start.
///
/// # Errors
/// [`BrokerError::Address`] for a malformed address; [`BrokerError::Unreachable`] lists every address with its error.
pub async fn open(uri: &SecretString, name: &str) -> Result<Connection, BrokerError> {
    connect(&Addresses::parse(uri)?, name, 0).await
}

/// Maintains a session with the broker until `stop`: opens a connection, runs `session` on it until that returns,
/// closes it, waits briefly, and begins again.
///
/// `session` gets the connection and `stop`. It ends by itself when `stop` is cancelled or anything fails. It is never
/// dropped halfway, because it may be inside a database transaction. The channels that it opened must be closed when it
/// returns. A panic ends it as an error does.
///
/// # Errors
/// Only [`BrokerError::Address`]: every other error is logged, and we try again.
pub async fn supervise<S, F, E>(
    name: &'static str,
    uri: &SecretString,
    stop: CancellationToken,
    session: S,
) -> Result<(), BrokerError>
where
    S: Fn(Arc<Connection>, CancellationToken) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    supervise_watched(name, uri, stop, |_| (), session).await
}

/// [`supervise`] that also reports when the broker blocks (`true`) and unblocks (`false`) the connection.
pub(super) async fn supervise_watched<S, F, E>(
    name: &'static str,
    uri: &SecretString,
    stop: CancellationToken,
    on_blocked: impl Fn(bool),
    session: S,
) -> Result<(), BrokerError>
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
    // Processes spread over the nodes, and each moves to the next node when its own fails.
    let mut attempt = anything() as usize;
    let (mut down, mut broken) = (Announced::default(), Announced::default());
    while !stop.is_cancelled() {
        let mut opening = pin!(connect(&addresses, name, attempt));
        let opened = tokio::select! {
            opened = &mut opening => opened,
            () = stop.cancelled() => {
                // If a handshake is dropped halfway, it leaves a thread behind that panics when the process ends.
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
                if !broken.repeats {
                    info!(connection = name, "Connected to the broker as {name}");
                }
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
                    (backoff, broken) = (Backoff::default(), Announced::default());
                }
                match ended {
                    Err(error) => broken.announce(name, explained(chain(error.as_ref()))),
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
    // Listeners compete for events, so each connection has exactly one listener, and it is this one.
    let mut events = connection.events_listener();
    let listen = async {
        while let Some(event) = events.next().await {
            match event {
                Event::ConnectionBlocked(reason) => {
                    warn!(connection = name, error = reason, "The broker blocks publishing on {name}");
                    on_blocked(true);
                }
                Event::ConnectionUnblocked => {
                    info!(connection = name, "The broker accepts messages on {name} again");
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

/// Closes a connection, without waiting long for the broker's answer.
pub async fn close(connection: &Connection) {
    // An error here only means that it was closed or broken before.
    let _ = timeout(CLOSE, connection.close(200, "bye".into())).await;
}

async fn connect(addresses: &Addresses, name: &str, attempt: usize) -> Result<Connection, BrokerError> {
    let mut reasons = Vec::new();
    for address in addresses.starting_at(attempt) {
        match connect_one(address, name).await {
            Ok(connection) => return Ok(connection),
            Err(reason) if reason.contains("Login was refused") => {
                let user = &address.uri.authority.userinfo.username;
                let wrong = "its password is wrong, or the broker has no such user";
                reasons.push(format!("{}: the broker refuses the user {user}: {wrong}", place(&address.uri)));
            }
            Err(reason) => reasons.push(format!("{}: {reason}", place(&address.uri))),
        }
    }
    // In the same order at each attempt, so that the same error gives the same text.
    reasons.sort();
    Err(BrokerError::Unreachable(reasons))
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

/// Adds what to do about an error of certificates or of rights, because the library and the broker only name it.
fn explained(reason: String) -> String {
    // A bad signature means an authority of the same name with another key.
    let remedy = if reason.contains("UnknownIssuer") || reason.contains("BadSignature") {
        "; no trusted authority has issued its certificate: name the authority with ?cacertfile="
    } else if reason.contains("not valid for name") {
        "; its certificate is for another host: use the name that is in it"
    } else if reason.contains("ACCESS_REFUSED - access to") {
        "; AMQP_URL must name this program's own user, with the rights that `paymentctl broker-setup` gives it"
    } else {
        ""
    };
    reason + remedy
}

/// Checks whether a broker answers before the library connects. The library has no connect timeout of its own, and a
/// connect future that is dropped leaves a thread and a socket behind.
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

/// Logs an error once, not at every attempt.
#[derive(Default)]
struct Announced {
    last: Option<String>,
    /// Whether the last two attempts had the same error.
    repeats: bool,
}

impl Announced {
    fn announce(&mut self, name: &'static str, reason: String) {
        self.repeats = self.last.as_ref() == Some(&reason);
        if self.repeats {
            return;
        }
        if reason.contains("ACCESS_REFUSED") {
            error!(connection = name, error = reason, "No session with the broker for {name}: {reason}");
        } else {
            warn!(connection = name, error = reason, "No session with the broker for {name}, trying again");
        }
        self.last = Some(reason);
    }
}

/// 100 ms, doubled up to 2 s. Each wait is shortened by up to a half, so that processes do not reconnect at the same
/// time.
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

/// An unpredictable number, from the only source of randomness in the standard library: the keys of a hasher.
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

    #[test]
    fn an_error_that_stays_is_logged_once_and_says_what_to_do_about_rights() {
        let refused =
            "consuming failed: ACCESS_REFUSED - access to queue 'payment.refunds' in vhost 'v' refused for user 'r'";
        let refused = explained(refused.to_owned());
        assert!(refused.ends_with("with the rights that `paymentctl broker-setup` gives it"), "{refused}");
        let mut announced = Announced::default();
        let repeats = [refused.as_str(), refused.as_str(), "the session was lost", refused.as_str()].map(|reason| {
            announced.announce("test", reason.to_owned());
            announced.repeats
        });
        assert_eq!(repeats, [false, true, false, false]);
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
