//! The keys that an issuer publishes at a URL, as a JWKS. They are fetched at the start, every five minutes, and when a
//! token names a key that is not among them.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, tls};
use runtime::env::is_loopback;
use runtime::error_chain::chain;
use runtime::panics::caught;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use url::Url;

use crate::access::key::{Claimed, Key, Set};

/// Tokens can name unknown keys without end, so a set is fetched at most this often.
const AT_MOST_EVERY: Duration = Duration::from_secs(30);
/// How long keys may be used before they are fetched again.
const FRESH: Duration = Duration::from_secs(300);
/// The time limit of a fetch, from the connection to the last byte. A request may wait for it.
const FETCH: Duration = Duration::from_secs(3);
/// The largest set, in bytes.
const LARGEST: usize = 256 * 1024;

/// The published keys of one issuer. A fetch that fails leaves the keys as they are.
pub struct Published {
    /// The variable that names the URL.
    name: &'static str,
    url: Url,
    claimed: Claimed,
    /// The claims of offers, if the issuer signs offers as well.
    offers: Option<Claimed>,
    client: Client,
    keys: RwLock<Vec<Key>>,
    last: Mutex<Option<Fetch>>,
}

/// A fetch that ended.
#[derive(Clone, Copy)]
struct Fetch {
    at: Instant,
    has_succeeded: bool,
}

impl Fetch {
    /// Whether the keys are to be fetched again by themselves.
    fn is_due(self) -> bool {
        self.at.elapsed() >= if self.has_succeeded { FRESH } else { AT_MOST_EVERY }
    }
}

impl Published {
    /// The keys at a URL, which is not fetched yet.
    ///
    /// # Errors
    /// States what is wrong with the URL, or with the certificates of this machine.
    pub fn at(name: &'static str, text: &str, claimed: Claimed, offers: Option<Claimed>) -> Result<Published, String> {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        let is_local = url.scheme() == "http" && url.host_str().is_some_and(is_loopback);
        if url.scheme() != "https" && !is_local {
            return Err("it does not begin with https://".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it holds a user or a password".to_owned());
        }
        // A redirect could lead to plain HTTP.
        let builder = Client::builder().redirect(Policy::none()).no_proxy().timeout(FETCH).https_only(!is_local);
        // Without TLS the certificates of the machine are not read.
        let builder =
            if is_local { builder.tls_certs_only([]) } else { builder.tls_version_min(tls::Version::TLS_1_2) };
        let client = builder.build().map_err(|error| chain(&error))?;
        Ok(Published { name, url, claimed, offers, client, keys: RwLock::default(), last: Mutex::default() })
    }

    /// The keys of the last fetch that succeeded.
    pub(super) fn keys(&self) -> RwLockReadGuard<'_, Vec<Key>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches the keys, unless that was done within the last 30 s. Concurrent callers share one fetch. It goes on if its
    /// caller goes away, otherwise such callers could cause one after the other.
    pub(super) async fn learn(self: Arc<Published>) {
        let fetching = tokio::spawn(async move {
            self.fetch_if(|last| last.at.elapsed() >= AT_MOST_EVERY).await;
        });
        // A panic is logged by the hook, and the keys stay as they are.
        let _ = fetching.await;
    }

    /// Fetches the keys until `stop`: every five minutes, and after a failure every 30 s.
    pub(super) async fn follow(&self, stop: &CancellationToken) {
        loop {
            if let Err(panic) = caught(self.fetch_if(Fetch::is_due)).await {
                panic.noted("payment-api", "token keys", &self.name);
            }
            if stop.run_until_cancelled(sleep(AT_MOST_EVERY)).await.is_none() {
                return;
            }
        }
    }

    async fn fetch_if(&self, is_due: impl FnOnce(Fetch) -> bool) {
        let mut last = self.last.lock().await;
        if !last.is_none_or(is_due) {
            return;
        }
        let fetched = self.fetch().await;
        *last = Some(Fetch { at: Instant::now(), has_succeeded: fetched.is_ok() });
        metrics::gauge!("token_keys_published_up_to_date", "source" => self.name).set(u8::from(fetched.is_ok()));
        match fetched {
            Ok(set) => self.put(set),
            Err(reason) => {
                let held = self.keys().len();
                error!(error = reason, keys = held, "{} gave no keys, {held} from before stay: {reason}", self.name);
            }
        }
    }

    fn put(&self, new: Set) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let names = |keys: &[Key]| keys.iter().map(|key| key.kid.clone()).collect::<Vec<_>>();
        if names(&keys) != names(&new.keys) {
            info!(keys = new.keys.len(), "Loaded the token keys of {}", self.name);
            new.left_out.iter().for_each(|wrong| warn!("{}: left out: {wrong}", self.name));
        }
        *keys = new.keys;
    }

    /// The keys at the URL that this service can use.
    async fn fetch(&self) -> Result<Set, String> {
        let answer = self.client.get(self.url.clone()).send().await.map_err(|error| chain(&error.without_url()))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("the answer has the status {}", answer.status().as_u16()));
        }
        let text = text(answer).await?;
        let set = Set::read(&text, &self.claimed)?;
        let offers = self.offers.iter().flat_map(|claimed| set.keys.iter().map(|key| key.for_claims(claimed)));
        let offers: Vec<Key> = offers.collect();
        Ok(Set { keys: set.keys.into_iter().chain(offers).collect(), ..set })
    }
}

/// The body, if it is text of a reasonable size.
async fn text(mut answer: Response) -> Result<String, String> {
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| chain(&error.without_url()))? {
        if body.len() + part.len() > LARGEST {
            return Err(format!("the answer has more than {LARGEST} bytes"));
        }
        body.extend_from_slice(&part);
    }
    String::from_utf8(body).map_err(|_| "the answer is not text in UTF-8".to_owned())
}

#[cfg(test)]
mod tests;
