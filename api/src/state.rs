//! The state that every handler works with.

use std::net::IpAddr;
use std::sync::Arc;

use domain::{OrderId, UserId};
use runtime::clock::Clock;
use runtime::http_server::shares::{AddressShare, AddressShares, Share, Shares};
use runtime::seal::SealKeys;
use sqlx::PgPool;
use store::cache::Cache;
use store::connect::in_time;
use store::tables::orders::Order;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::access::auth::Authenticator;
use crate::access::callers::KnownCallers;
use crate::access::limits::Limits;
use crate::access::strikes::Strikes;
use crate::access::view_token::ViewTokens;
use crate::answer::problem::ApiError;
use crate::answer::rarely::Rarely;
use crate::config::Settings;
use crate::create::accounts::Accounts;
use crate::create::idempotency::Turns;
use crate::create::intake::Intake;
use crate::create::refused_accounts::RefusedAccounts;
use crate::create::writer::OrderWriter;
use crate::watch::hints::Hints;
use crate::watch::hub::Hub;
use crate::watch::joined::Joined;
use crate::watch::synced::Synced;

/// The state of the whole process; handlers share it behind an `Arc`.
pub struct App {
    /// The database, which is the source of truth.
    pub db: PgPool,
    /// Copies of orders and of the payment rules. Copies of orders are for display only: a decision about an order
    /// reads the database.
    pub cache: Cache,
    /// The merchant's accounts.
    pub accounts: Arc<dyn Accounts>,
    /// The clock and the source of new ids.
    pub clock: Clock,
    /// Writes new orders.
    pub writer: OrderWriter,
    /// Makes callbacks durable.
    pub intake: Intake,
    /// Authenticates bearer tokens.
    pub authenticator: Authenticator,
    /// Creates and verifies the tokens that let their holder watch one order.
    pub view_tokens: ViewTokens,
    /// The open pages and the orders that they watch.
    pub hub: Hub,
    /// Brings the checks of orders forward whose buyers wait for a payment to appear.
    pub hints: Hints,
    /// The keys that encrypt stored credentials. `None`: no credential is stored.
    pub seal: Option<SealKeys>,
    /// The refusals of our accounts that were reported recently.
    pub refused_accounts: RefusedAccounts,
    /// The requests in flight that create something.
    pub turns: Arc<Turns>,
    /// Counts refused callbacks by address.
    pub strikes: Strikes,
    /// The networks that the gateways call from.
    pub callers: KnownCallers,
    /// Limits the warning that callbacks come through a proxy that is not trusted.
    pub unknown_proxy: Rarely,
    /// The rate limits of frontend requests.
    pub limits: Limits,
    /// The limits on concurrent work.
    pub in_hand: InHand,
    /// The orders that are being closed.
    pub closing: Joined<OrderId, Arc<Order>>,
    /// The orders that are being synced.
    pub syncing: Joined<OrderId, Arc<Synced>>,
    /// The operator's settings.
    pub settings: Settings,
}

/// The limits on concurrent work, for the whole process and for each client.
pub struct InHand {
    /// Frontend requests of the whole process.
    pub requests: Arc<Semaphore>,
    /// Frontend requests of one client. Each counts from before its body is read.
    pub of_client: Shares<Client>,
    /// Frontend requests of one address, with or without a user: a few users together must not use all slots.
    pub of_address: AddressShares,
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

/// The client whose share a request uses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Client {
    /// A user with a valid token.
    User(UserId),
    /// Any other client, by its IPv4 address or IPv6 /64.
    Address(IpAddr),
}

/// Callback bodies that one address may send at once. They hold no slot, so this limits memory only.
const BODIES: usize = 64;
/// One address may open this many times more streams with view tokens than one user may: many buyers share an address.
const BUYERS: usize = 20;

impl InHand {
    /// The limits from these settings.
    pub fn new(settings: &Settings) -> InHand {
        let unless_off = |most: usize| if most == 0 { usize::MAX } else { most };
        let (of_client, streams) = (unless_off(settings.requests_in_hand), unless_off(settings.streams_per_user));
        InHand {
            requests: Arc::new(Semaphore::new(settings.requests)),
            of_client: Shares::new(of_client),
            of_address: AddressShares::new(of_client.max(settings.requests / 4)),
            waiting: Semaphore::new((settings.requests / 4).max(1)),
            callbacks: Semaphore::new(settings.callbacks),
            bodies: AddressShares::new(BODIES),
            streams_of_user: Shares::new(streams),
            streams_of_address: AddressShares::new(streams.saturating_mul(BUYERS)),
        }
    }
}

/// What a request holds while it is processed. Work that outlives its request continues to hold it.
pub struct Held {
    _slot: OwnedSemaphorePermit,
    _shares: ClientShares,
}

/// The shares that a request holds for its client and its address.
pub struct ClientShares {
    _client: Share<Client>,
    _address: AddressShare,
}

impl InHand {
    /// Takes one share for the client and one for the address. `None` when one of them is at its limit.
    pub fn take(&self, client: Client, address: IpAddr) -> Option<ClientShares> {
        Some(ClientShares { _client: self.of_client.take(client)?, _address: self.of_address.take(address)? })
    }
}

impl Held {
    /// Combines a slot of the process with the shares of the client.
    pub fn new(slot: OwnedSemaphorePermit, shares: ClientShares) -> Arc<Held> {
        Arc::new(Held { _slot: slot, _shares: shares })
    }
}

tokio::task_local! {
    /// What the request of this task holds.
    pub static HELD: Arc<Held>;
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
