//! How often a frontend may ask: a budget for each address, and one for each user whose token proves who he is.
//!
//! Every answer says what is left (`RateLimit` and `RateLimit-Policy`, draft-ietf-httpapi-ratelimit-headers-10); one that
//! comes too early is 429 with `Retry-After`. Callbacks have no budget: there only refusals count, see [`crate::strikes`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use shared::domain::UserId;
use tokio::time::Instant;

use crate::auth;
use crate::buckets::{Buckets, Left, Quota};
use crate::guard::{ClientIp, network};
use crate::problem::ApiError;
use crate::state::App;

const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Both budgets; an absent one is off.
pub struct Limits {
    addresses: Option<Budget<IpAddr>>,
    users: Option<Budget<UserId>>,
}

/// So many requests a minute for each key, all at once or evenly.
struct Budget<K> {
    /// As the headers call it.
    name: &'static str,
    per_minute: u32,
    buckets: Buckets<K>,
}

impl Limits {
    /// Requests a minute for each address and for each user; 0: no limit.
    pub fn new(per_address: u32, per_user: u32) -> Limits {
        Limits { addresses: Budget::new("address", per_address), users: Budget::new("user", per_user) }
    }
}

impl<K: std::hash::Hash + Eq> Budget<K> {
    fn new(name: &'static str, per_minute: u32) -> Option<Budget<K>> {
        let every = Duration::from_secs(60).checked_div(per_minute)?;
        Some(Budget { name, per_minute, buckets: Buckets::new(Quota { burst: per_minute, every }) })
    }

    fn spend(&self, key: K) -> Spent {
        let left = self.buckets.take(key, Instant::now());
        Spent { name: self.name, per_minute: self.per_minute, left }
    }
}

/// What a request has cost one budget.
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

/// Lets a request through if both budgets have room for it, and says on the answer what is left. The caller whose token
/// was good is kept for the handler.
pub async fn limit(
    State(app): State<Arc<App>>,
    Extension(ClientIp(address)): Extension<ClientIp>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut spent: Vec<Spent> = app.limits.addresses.iter().map(|budget| budget.spend(network(address))).collect();
    if fits(&spent)
        && let Some(caller) = auth::identify(request.headers(), &app)
    {
        spent.extend(app.limits.users.as_ref().map(|budget| budget.spend(caller.user.clone())));
        request.extensions_mut().insert(caller);
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
