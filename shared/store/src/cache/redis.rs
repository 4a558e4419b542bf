//! A handle on Redis that never makes its caller wait long.
//!
//! There is one connection, shared by all callers. If a call gets no answer within [`LIMIT`], or its connection breaks,
//! the call fails and the connection is dropped. A background task then makes the next connection, first soon, then
//! less and less often. It uses the new connection only after that has answered within the same limit. Meanwhile calls
//! fail at once. So a dead or slow Redis costs the limit only for the calls that are waiting at that moment, and
//! nothing for later calls.
//!
//! For a single server, or one that fails over behind its address; not for Redis Cluster.

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, ClientTlsConfig, FromRedisValue, RedisError, TlsCertificates};
use runtime::env::Env;
use runtime::panics::caught;
use runtime::tls_files::{TlsFiles, TlsPem};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};
use url::Url;

use crate::cache::shelf::CopiesKey;

/// How long a call may take.
pub const LIMIT: Duration = Duration::from_millis(100);
/// How long making a connection may take, including name resolution and TLS.
const DIAL: Duration = Duration::from_secs(1);
/// The first wait before a new connection. It doubles up to the longest wait while connections do not last.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that lasted this long resets the wait.
const LASTED: Duration = Duration::from_secs(10);

/// The address of Redis.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    address: Address,
    prefix: String,
    copies_key: Option<CopiesKey>,
}

/// `redis://…`, or `rediss://…` for TLS, with [`TlsFiles`]; certificate authorities in these files are trusted instead
/// of the system's.
#[derive(Debug, Clone)]
struct Address {
    url: SecretString,
    files: TlsFiles,
}

impl Address {
    fn parse(url: SecretString) -> Result<Address, String> {
        // The parser's error text may contain the password.
        const WRONG: &str = "it is not a Redis URL";
        let parsed = Url::parse(url.expose_secret()).map_err(|_| WRONG)?;
        let files = TlsFiles::of(&parsed, parsed.scheme() == "rediss")?;
        // The library uses this fragment to switch certificate verification off.
        if parsed.fragment() == Some("insecure") {
            return Err("the server's certificate is always verified: leave #insecure out".to_owned());
        }
        Client::open(url.expose_secret()).map_err(|_| WRONG)?;
        files.read()?;
        Ok(Address { url, files })
    }

    /// The host, if the connection has no TLS. A Unix socket has no host.
    fn clear_host(&self) -> Option<String> {
        let url = Url::parse(self.url.expose_secret()).ok()?;
        let clear = !matches!(url.scheme(), "rediss" | "valkeys");
        url.host_str().filter(|_| clear).map(str::to_owned)
    }

    fn client(&self) -> Result<Client, CallError> {
        let unreadable = |why: String| RedisError::from(std::io::Error::other(why));
        let TlsPem { authorities, identity } = self.files.read().map_err(unreadable).map_err(CallError::Failed)?;
        let url = self.url.expose_secret();
        let client = if authorities.is_none() && identity.is_none() {
            Client::open(url)
        } else {
            let client_tls = identity.map(|(certificate, key)| ClientTlsConfig {
                client_cert: certificate.into_bytes(),
                client_key: key.into_bytes(),
            });
            let root_cert = authorities.map(String::into_bytes);
            Client::build_with_tls(url, TlsCertificates { client_tls, root_cert })
        };
        client.map_err(CallError::Failed)
    }
}

impl RedisConfig {
    /// Reads `REDIS_URL` (`redis://` or `rediss://`, absent: no Redis) and `REDIS_KEY_PREFIX` (default none). The
    /// prefix is put before every key, for deployments that share one Redis. [`CopiesKey::from_env`] reads
    /// `COPIES_KEY`.
    pub fn from_env(env: &mut Env) -> Option<RedisConfig> {
        let prefix = env.optional("REDIS_KEY_PREFIX").unwrap_or_default();
        let copies_key = CopiesKey::from_env(env).flatten();
        let hint = "set it to redis://:password@host:6379/0, or rediss:// for TLS, or leave it out";
        let url = env.optional_address("REDIS_URL", hint)?;
        let config = RedisConfig::new(url, prefix).map_err(|problem| env.fault("REDIS_URL", &problem, hint)).ok()?;
        let clear = config.address.clear_host().into_iter().collect();
        let remedy = "write rediss://, with ?cacertfile=… for an authority of your own";
        env.may_go("REDIS_URL", clear, remedy).then_some(RedisConfig { copies_key, ..config })
    }

    /// # Errors
    /// What is wrong, without the value, which contains a password.
    pub fn new(url: impl Into<SecretString>, prefix: impl Into<String>) -> Result<RedisConfig, String> {
        Ok(RedisConfig { address: Address::parse(url.into())?, prefix: prefix.into(), copies_key: None })
    }

    /// The same with a key. Without a key, Redis holds no copies.
    #[must_use]
    pub fn with_copies_key(self, key: CopiesKey) -> RedisConfig {
        RedisConfig { copies_key: Some(key), ..self }
    }
}

/// A script that Redis runs atomically.
pub struct Script(::redis::Script);

impl Script {
    /// A script in Lua.
    pub fn new(lua: &str) -> Script {
        Script(::redis::Script::new(lua))
    }
}

/// The error of a call. The call had no effect, or its effect is unknown.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection; nothing was sent.
    #[error("there is no connection to Redis")]
    Away,
    /// No answer in time; the call may have taken effect, or may do so later.
    #[error("Redis did not answer within {} ms", LIMIT.as_millis())]
    Slow,
    /// The connection broke, or Redis refused the call.
    #[error("the call to Redis failed")]
    Failed(#[source] RedisError),
}

impl CallError {
    /// The name of the error in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            CallError::Away => "away",
            CallError::Slow => "slow",
            CallError::Failed(_) => "failed",
        }
    }
}

/// See the module. Clones share the connection; it is closed with the last of them.
#[derive(Clone)]
pub struct Redis(Arc<Handle>);

struct Handle {
    line: Arc<Line>,
    prefix: String,
    copies_key: Option<CopiesKey>,
    _ends: DropGuard,
}

/// The connection, if there is one.
struct Line {
    link: watch::Sender<Option<Link>>,
    lost: Notify,
}

#[derive(Clone)]
struct Link {
    /// Identifies this connection among the earlier and later ones.
    number: u64,
    connection: MultiplexedConnection,
}

impl Redis {
    /// Starts connecting, and waits briefly for the connection. If Redis cannot be reached, this does not fail; the
    /// connection is made later.
    pub async fn connect(config: &RedisConfig) -> Redis {
        let line = Arc::new(Line { link: watch::Sender::new(None), lost: Notify::new() });
        let stop = CancellationToken::new();
        let mut connected = line.link.subscribe();
        let maintenance = maintain(config.address.clone(), line.clone());
        let ended = stop.clone();
        tokio::spawn(async move {
            tokio::select! { () = maintenance => {}, () = ended.cancelled() => {} }
        });
        // If it takes longer, the keeper logs the error.
        let _ = timeout(DIAL + LIMIT, connected.wait_for(Option::is_some)).await;
        let (prefix, copies_key) = (config.prefix.clone(), config.copies_key.clone());
        Redis(Arc::new(Handle { line, prefix, copies_key, _ends: stop.drop_guard() }))
    }

    /// The full name of a key of this deployment.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.0.prefix)
    }

    /// The key that signs the copies.
    pub(super) fn copies_key(&self) -> Option<&CopiesKey> {
        self.0.copies_key.as_ref()
    }

    /// Whether there is a connection at the moment.
    pub fn is_connected(&self) -> bool {
        self.0.line.link.borrow().is_some()
    }

    /// Runs a script on full keys (see [`Redis::key`]), within [`LIMIT`].
    ///
    /// # Errors
    /// [`CallError`]; the caller continues without Redis.
    pub async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[String],
    ) -> Result<T, CallError> {
        let Some(Link { number, mut connection }) = self.0.line.link.borrow().clone() else {
            return Err(self.failed(CallError::Away));
        };
        let mut call = script.0.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        for argument in arguments {
            call.arg(argument);
        }
        match timeout(LIMIT, call.invoke_async(&mut connection)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                if is_of_the_connection(&error) {
                    self.0.line.lose(number, &error.to_string());
                }
                Err(self.failed(CallError::Failed(error)))
            }
            Err(_) => {
                self.0.line.lose(number, "an answer took too long");
                Err(self.failed(CallError::Slow))
            }
        }
    }

    fn failed(&self, error: CallError) -> CallError {
        metrics::counter!("redis_errors_total", "kind" => error.as_str()).increment(1);
        error
    }
}

impl Line {
    /// Drops a connection, once.
    fn lose(&self, number: u64, why: &str) {
        let lost = self.link.send_if_modified(|link| {
            let is_it = link.as_ref().is_some_and(|link| link.number == number);
            if is_it {
                *link = None;
            }
            is_it
        });
        if lost {
            metrics::gauge!("redis_up").set(0.0);
            warn!(error = why, "The connection to Redis is lost; the service continues without Redis");
            self.lost.notify_one();
        }
    }
}

/// Whether the connection is the problem: a new connection may help, a repeated call would not.
fn is_of_the_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_timeout()
        || matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "NOAUTH"))
}

/// Makes one connection after another.
async fn maintain(address: Address, line: Arc<Line>) {
    let mut pause = PAUSE;
    let mut silent = false;
    for number in 1.. {
        let began = Instant::now();
        let dialled = caught(dial(&address)).await.unwrap_or_else(|panic| {
            panic.noted("redis", "dial", &"Redis");
            Err(CallError::Away)
        });
        match dialled {
            Ok(connection) => {
                line.link.send_replace(Some(Link { number, connection }));
                metrics::gauge!("redis_up").set(1.0);
                info!("Redis answers");
                silent = false;
                line.lost.notified().await;
                if began.elapsed() > LASTED {
                    pause = PAUSE;
                }
            }
            Err(error) => {
                metrics::gauge!("redis_up").set(0.0);
                if !silent {
                    silent = true;
                    let why = match &error {
                        CallError::Failed(source) => source.to_string(),
                        other => other.to_string(),
                    };
                    warn!(error = why, "Redis does not answer; the service continues without Redis");
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A connection that has answered as fast as a call must.
async fn dial(address: &Address) -> Result<MultiplexedConnection, CallError> {
    let options = AsyncConnectionConfig::new().set_connection_timeout(Some(DIAL)).set_response_timeout(Some(DIAL));
    let client = address.client()?;
    let dialled = timeout(DIAL, client.get_multiplexed_async_connection_with_config(&options)).await;
    let mut connection = dialled.map_err(|_| CallError::Slow)?.map_err(CallError::Failed)?;
    let answered = timeout(LIMIT, connection.send_packed_command(&::redis::cmd("PING"))).await;
    answered.map_err(|_| CallError::Slow)?.map_err(CallError::Failed)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_none_is_a_fault_without_its_password() {
        for url in ["redis//:hidden@h", "http://:hidden@h:1/0", "redis://:hidden@h:port"] {
            let mut env = Env::of([("REDIS_URL", url)]);
            assert!(RedisConfig::from_env(&mut env).is_none());
            let text = env.finish().unwrap_err().to_string();
            assert!(text.contains("REDIS_URL: it is not a Redis URL") && !text.contains("hidden"), "{text}");
        }
        for url in ["redis://localhost", "redis://:p@127.0.0.1:6379/3", "rediss://u:p@h:6380/0"] {
            let mut env = Env::of([("REDIS_URL", url), ("REDIS_KEY_PREFIX", "test:")]);
            let config = RedisConfig::from_env(&mut env).unwrap_or_else(|| panic!("{url}"));
            assert_eq!(config.prefix, "test:");
            assert!(!format!("{config:?}").contains(":p@"), "{config:?}");
            env.finish().unwrap();
        }
        assert!(RedisConfig::from_env(&mut Env::of([])).is_none());
        let of_key = |key: &str| {
            let mut env = Env::of([("REDIS_URL", "redis://localhost"), ("COPIES_KEY", key)]);
            (RedisConfig::from_env(&mut env).is_some_and(|config| config.copies_key.is_some()), env.finish().is_ok())
        };
        assert_eq!(of_key(&"0123456789abcdef".repeat(4)), (true, true));
        assert_eq!(of_key("secret"), (false, false));
    }

    #[tokio::test]
    async fn no_request_waits_for_a_redis_that_is_not_there() {
        let redis = Redis::connect(&RedisConfig::new("redis://127.0.0.1:9/0", "").unwrap()).await;
        let before = Instant::now();
        for _ in 0..1000 {
            let answer = redis.run::<i64>(&Script::new("return 1"), &[], &[]).await;
            assert!(matches!(answer, Err(CallError::Away)));
        }
        // A thousand calls that each wait for the limit would take more than a minute and a half.
        assert!(before.elapsed() < Duration::from_secs(30));
    }
}
