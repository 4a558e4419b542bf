//! Limits the work that is done at once, for the whole process and for each client. A request takes a slot only after
//! its body has arrived: slow clients hold no slot.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use domain::UserId;
use runtime::http_server::shares::{AddressShare, AddressShares, Share, Shares, holder};
use store::connect::in_time;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::access::caller::{Caller, Identity};
use crate::access::guard::ClientIp;
use crate::answer::layers::unread;
use crate::answer::problem::ApiError;

/// The limits on concurrent work, for the whole process and for each client.
pub struct InHand {
    /// Frontend requests of the whole process.
    requests: Arc<Semaphore>,
    /// Frontend requests of one client. Each counts from before its body is read.
    of_client: Shares<Client>,
    /// Frontend requests of one address, with or without a user: a few users together must not use all slots.
    of_address: AddressShares,
    /// Requests that wait for an order to close. They hold slots while they wait, so at most a quarter of the slots may
    /// wait. Beyond that, a request is answered at once.
    pub waiting: Semaphore,
    /// Callbacks whose body has arrived.
    pub callbacks: Semaphore,
    /// Callbacks of one address whose body has not arrived yet.
    pub bodies: AddressShares,
    /// Streams of one user.
    pub streams_of_user: Shares<UserId>,
    /// Streams that were opened with a view token from one address.
    pub streams_of_address: AddressShares,
}

/// The limits that the operator sets.
pub struct Most {
    /// Frontend requests of the whole process.
    pub requests: usize,
    /// Frontend requests of one client; 0 means no limit.
    pub of_client: usize,
    /// Callbacks of the whole process.
    pub callbacks: usize,
    /// Streams of one user; 0 means no limit.
    pub streams_of_user: usize,
}

/// The client whose share a request uses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Client {
    /// A caller with a valid token.
    Caller(Identity),
    /// Any other client, by its IPv4 address or IPv6 /64.
    Address(IpAddr),
}

/// Callback bodies that one address may send at once. They hold no slot, so this limits memory only.
const BODIES: usize = 64;
/// One address may open this many times more streams with view tokens than one user may: many buyers share an address.
const BUYERS: usize = 20;

impl InHand {
    /// The limits that follow from those of the operator.
    pub fn new(most: &Most) -> InHand {
        let unless_off = |most: usize| if most == 0 { usize::MAX } else { most };
        let (of_client, streams) = (unless_off(most.of_client), unless_off(most.streams_of_user));
        InHand {
            requests: Arc::new(Semaphore::new(most.requests)),
            of_client: Shares::new(of_client),
            of_address: AddressShares::new(of_client.max(most.requests / 4)),
            waiting: Semaphore::new((most.requests / 4).max(1)),
            callbacks: Semaphore::new(most.callbacks),
            bodies: AddressShares::new(BODIES),
            streams_of_user: Shares::new(streams),
            streams_of_address: AddressShares::new(streams.saturating_mul(BUYERS)),
        }
    }

    /// Takes one share for the client and one for the address. `None` when one of them is at its limit.
    fn take(&self, client: Client, address: IpAddr) -> Option<ClientShares> {
        Some(ClientShares { _client: self.of_client.take(client)?, _address: self.of_address.take(address)? })
    }
}

/// What a request holds while it is processed. Work that outlives its request continues to hold it.
struct Held {
    _slot: OwnedSemaphorePermit,
    _shares: ClientShares,
}

/// The shares that a request holds for its client and its address.
struct ClientShares {
    _client: Share<Client>,
    _address: AddressShare,
}

tokio::task_local! {
    /// What the request of this task holds.
    static HELD: Arc<Held>;
}

/// The layer around the frontends' handlers: takes a share for the client, reads the whole body, then takes a slot.
pub async fn slot(State(in_hand): State<Arc<InHand>>, request: Request, next: Next) -> Response {
    let Some(shares) = client(&request).and_then(|(client, address)| in_hand.take(client, address)) else {
        metrics::counter!("requests_limited_total", "budget" => "in_hand").increment(1);
        return ApiError::TooManyRequests { wait: 1 }.into_response();
    };
    let request = match whole(request).await {
        Ok(request) => request,
        Err(status) => return status.into_response(),
    };
    match in_hand.requests.clone().try_acquire_owned() {
        Ok(slot) => HELD.scope(Arc::new(Held { _slot: slot, _shares: shares }), next.run(request)).await,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn client(request: &Request) -> Option<(Client, IpAddr)> {
    let ClientIp(address) = *request.extensions().get::<ClientIp>()?;
    let client = match request.extensions().get::<Caller>() {
        Some(caller) => Client::Caller(caller.identity.clone()),
        None => Client::Address(holder(address)),
    };
    Some((client, address))
}

/// Reads the whole body of a request into memory.
async fn whole(request: Request) -> Result<Request, StatusCode> {
    if request.body().is_end_stream() {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    match Bytes::from_request(Request::new(body), &()).await {
        Ok(body) => Ok(Request::from_parts(parts, Body::from(body))),
        Err(rejection) => Err(unread(&rejection)),
    }
}

/// Runs work on its own task, so that a client that hangs up cannot stop it halfway. Work that takes longer than any
/// gateway and database may is stopped ([`in_time`]). The work continues to hold what its request holds, so clients
/// that hang up leave no uncounted work behind.
///
/// # Errors
/// The work's own error, or [`ApiError::Internal`] when the work panicked.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let held = HELD.try_with(Arc::clone).ok();
    let work = async move {
        let ended = in_time(work).await;
        drop(held);
        ended
    };
    let ended = tokio::spawn(work.in_current_span()).await;
    ended.unwrap_or_else(|panic| Err(ApiError::Internal(panic.into())))
}
