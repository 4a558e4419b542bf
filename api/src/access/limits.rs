//! Rate limits for frontends: a budget for each address and each IPv6 network, and a budget for each user with a valid
//! token.
//!
//! Every answer states what is left (`RateLimit` and `RateLimit-Policy`, draft-ietf-httpapi-ratelimit-headers-10). A
//! request over budget gets 429 with `Retry-After`. Callbacks have no budget: only their refusals count, see
//! [`crate::access::strikes`].
//!
//! An order has a budget of fresh credentials, because each is a call of the gateway.
//!
//! With Redis, all ingress processes share one budget for each key. If Redis does not answer, each process counts in
//! its own memory. Then the total limit is higher by a factor: the number of ingress processes.

use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use domain::OrderId;
use runtime::http_server::shares::{NETWORK, holder, network};
use store::cache::Redis;
use store::cache::redis::Script;
use tokio::time::Instant;

use crate::access::buckets::{Buckets, Left, Quota};
use crate::access::guard::ClientIp;
use crate::access::tokens::Tokens;
use crate::answer::problem::ApiError;

const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The bucket in Redis is the microsecond, by the clock of Redis, at which it is full again. The script takes a token
/// if there is one. It returns how many microseconds the bucket was away from full before that.
const TAKE: &str = "
    local clock = redis.call('TIME')
    local now = clock[1] * 1000000 + clock[2]
    local every, most = tonumber(ARGV[1]), tonumber(ARGV[2])
    local full_in = math.max((tonumber(redis.call('GET', KEYS[1])) or 0) - now, 0)
    if full_in + every <= most then
        redis.call('SET', KEYS[1], string.format('%.0f', now + full_in + every), 'PX', math.ceil((full_in + every) / 1000))
    end
    return full_in";

/// Fresh credentials of one order in a minute. Each is a call of the gateway, which limits the calls of a merchant.
const CREDENTIALS: u32 = 6;

/// All budgets. An absent budget is off.
pub struct Limits {
    addresses: Option<Budget<IpAddr>>,
    /// For each IPv6 /48, eight times as much as for an address.
    networks: Option<Budget<IpAddr>>,
    users: Option<Budget<String>>,
    /// For each API key, in place of the budget of its address.
    keys: Option<Budget<String>>,
    /// For each order, of fresh credentials.
    orders: Option<Budget<OrderId>>,
}

/// Requests per minute; 0 means no limit.
#[derive(Debug, Clone, Copy)]
pub struct PerMinute {
    /// From one address.
    pub per_address: u32,
    /// Of one user, and of each other holder of a JWT.
    pub per_user: u32,
    /// With one API key.
    pub per_key: u32,
}

/// A number of requests per minute for each key, all at once or spread evenly.
struct Budget<K> {
    /// The name in the headers.
    name: &'static str,
    per_minute: u32,
    quota: Quota,
    /// The buckets of this process, used while Redis does not answer.
    buckets: Buckets<K>,
    shared: Option<(Redis, Script)>,
}

impl Limits {
    /// The budgets; 0 means no limit.
    pub fn new(most: &PerMinute, redis: Option<&Redis>) -> Limits {
        let PerMinute { per_address, per_user, per_key } = *most;
        Limits {
            addresses: Budget::new("address", per_address, redis),
            networks: Budget::new("network", per_address.saturating_mul(NETWORK as u32), redis),
            users: Budget::new("user", per_user, redis),
            keys: Budget::new("key", per_key, redis),
            orders: Budget::new("order", CREDENTIALS, redis),
        }
    }

    /// Counts a fresh credential of an order.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`]: the order has had six in this minute.
    pub async fn credential(&self, order: OrderId) -> Result<(), ApiError> {
        let Some(budget) = &self.orders else { return Ok(()) };
        let Spent { left, name, .. } = budget.spend(order).await;
        if left.tokens.is_some() {
            return Ok(());
        }
        metrics::counter!("requests_limited_total", "budget" => name).increment(1);
        Err(ApiError::TooManyRequests { wait: seconds(left.wait) })
    }
}

impl<K: Hash + Eq + Display> Budget<K> {
    fn new(name: &'static str, per_minute: u32, redis: Option<&Redis>) -> Option<Budget<K>> {
        let every = Duration::from_secs(60).checked_div(per_minute)?;
        let quota = Quota { burst: per_minute, every };
        let shared = redis.map(|redis| (redis.clone(), Script::new(TAKE)));
        Some(Budget { name, per_minute, quota, buckets: Buckets::new(quota), shared })
    }

    async fn spend(&self, key: K) -> Spent {
        let left = match self.shared_left(&key).await {
            Some(left) => left,
            None => self.buckets.take(key, Instant::now()),
        };
        Spent { name: self.name, per_minute: self.per_minute, left }
    }

    /// What is left by the shared count of all ingress processes. `None` if Redis does not answer.
    async fn shared_left(&self, key: &K) -> Option<Left> {
        let (redis, script) = self.shared.as_ref()?;
        let Quota { burst, every } = self.quota;
        let name = redis.key(&format!("requests:{}:{key}", self.name));
        let arguments = [every.as_micros().to_string(), (every * burst).as_micros().to_string()];
        let full_in: u64 = redis.run(script, &[name], &arguments).await.ok()?;
        Some(self.quota.left(Duration::from_micros(full_in)))
    }
}

/// One budget after a request has used it.
struct Spent {
    name: &'static str,
    per_minute: u32,
    left: Left,
}

impl Spent {
    fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let Spent { name, per_minute, left } = self;
        let (tokens, seconds) = (left.tokens.unwrap_or_default(), seconds(left.full_in));
        let policy = (POLICY, format!("\"{name}\";q={per_minute};w=60"));
        let limit = (LIMIT, format!("\"{name}\";r={tokens};t={seconds}"));
        [policy, limit].into_iter().filter_map(|(name, value)| Some((name, value.try_into().ok()?)))
    }
}

/// Lets a request through if all budgets have room for it, and states in the answer what is left. A caller with a valid
/// token is added to the request for the handler.
pub async fn limit(
    State((limits, tokens)): State<(Arc<Limits>, Tokens)>,
    Extension(ClientIp(address)): Extension<ClientIp>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut spent = Vec::new();
    let holder_of_key = match tokens.key_holder(request.headers(), address) {
        Ok(holder) => holder,
        // Before any budget: the backend must not be counted as its address.
        Err(unavailable) => return unavailable.into_response(),
    };
    match holder_of_key {
        // The backend sends the requests of many buyers from one address.
        Some(caller) => {
            if let Some(budget) = &limits.keys {
                spent.push(budget.spend(caller.identity.to_string()).await);
            }
            request.extensions_mut().insert(caller);
        }
        None => {
            if let Some(budget) = &limits.addresses {
                spent.push(budget.spend(holder(address)).await);
            }
            if let (Some(budget), Some(network)) = (&limits.networks, network(address)) {
                spent.push(budget.spend(network).await);
            }
            if fits(&spent)
                && let Some(caller) = tokens.identify(request.headers())
            {
                if let Some(budget) = &limits.users {
                    spent.push(budget.spend(caller.identity.to_string()).await);
                }
                request.extensions_mut().insert(caller);
            }
        }
    }
    let mut response = match spent.iter().find(|spent| spent.left.tokens.is_none()) {
        None => next.run(request).await,
        Some(over) => {
            metrics::counter!("requests_limited_total", "budget" => over.name).increment(1);
            ApiError::TooManyRequests { wait: seconds(over.left.wait) }.into_response()
        }
    };
    for (name, value) in spent.iter().flat_map(Spent::headers) {
        response.headers_mut().append(name, value);
    }
    response
}

fn fits(spent: &[Spent]) -> bool {
    spent.iter().all(|spent| spent.left.tokens.is_some())
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
