//! What every handler works with.

use std::net::IpAddr;
use std::sync::Arc;

use domain::{AccountName, OrderId, PaymentMethod, Scene, UserId};
use gateway::{Gateway, Gateways, NoAccount};
use runtime::clock::Clock;
use runtime::http_server::shares::{AddressShare, AddressShares, Share, Shares};
use runtime::seal::SealKeys;
use sqlx::PgPool;
use store::cache::Cache;
use store::connect::in_time;
use store::tables::orders::Order;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use crate::auth::Authenticator;
use crate::callers::KnownCallers;
use crate::config::Settings;
use crate::hints::Hints;
use crate::hub::Hub;
use crate::idempotency::Turns;
use crate::intake::Intake;
use crate::joined::Joined;
use crate::limits::Limits;
use crate::problem::ApiError;
use crate::rarely::Rarely;
use crate::refused_accounts::RefusedAccounts;
use crate::routes::admin::sync::SyncView;
use crate::strikes::Strikes;
use crate::view_token::ViewTokens;
use crate::writer::OrderWriter;

/// The state of the whole process; handlers share it behind an `Arc`.
pub struct App {
    /// The truth.
    pub db: PgPool,
    /// Copies of it, for showing; what decides asks the database.
    pub cache: Cache,
    /// The merchant's accounts.
    pub accounts: Arc<dyn Accounts>,
    /// Time and fresh ids.
    pub clock: Clock,
    /// Where new orders are written.
    pub writer: OrderWriter,
    /// Where callbacks become durable.
    pub intake: Intake,
    /// Who asks.
    pub authenticator: Authenticator,
    /// Who may watch one order.
    pub view_tokens: ViewTokens,
    /// Open pages and what they wait for.
    pub hub: Hub,
    /// Who waits for a payment to show.
    pub hints: Hints,
    /// Seals what is kept; `None`: nothing is kept that has to be sealed.
    pub seal: Option<SealKeys>,
    /// What gateways refuse us for, as far as people were called.
    pub refused_accounts: RefusedAccounts,
    /// Creating requests in flight.
    pub turns: Arc<Turns>,
    /// Refused callbacks by address.
    pub strikes: Strikes,
    /// Where the gateways call from.
    pub callers: KnownCallers,
    /// When it was last said that callbacks come by a proxy that is not trusted.
    pub unknown_proxy: Rarely,
    /// How often frontends may ask.
    pub limits: Limits,
    /// What is in hand at once.
    pub in_hand: InHand,
    /// What the operator has set.
    pub settings: Settings,
}

/// How much is worked on at once: by the whole process, and for one client.
pub struct InHand {
    /// Frontend requests.
    pub requests: Arc<Semaphore>,
    /// Frontend requests of one client, their bodies included.
    pub of_client: Shares<Client>,
    /// Those of one address, whoever asks from there: a few users together must not have all of them.
    pub of_address: AddressShares,
    /// Requests that wait for an order's end. They hold slots, so there are no more of them than a quarter of the slots; beyond that
    /// the answer comes at once.
    pub waiting: Semaphore,
    /// Callbacks whose body has come.
    pub callbacks: Semaphore,
    /// Callbacks of one address whose body has not come.
    pub bodies: AddressShares,
    /// Streams of one user.
    pub streams_of_user: Shares<UserId>,
    /// Streams by view token from one address.
    pub streams_of_address: AddressShares,
    /// Orders that are being closed.
    pub closing: Joined<OrderId, Arc<Order>>,
    /// Orders that are being synced.
    pub syncing: Joined<OrderId, Arc<SyncView>>,
}

/// Whose request it is, as far as shares go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Client {
    /// A user whose token was good.
    User(UserId),
    /// Anybody else: the holder of the address.
    Address(IpAddr),
}

/// Bodies of callbacks that one address may send at once. They hold no slot, so this bounds memory alone.
const BODIES: usize = 64;
/// So many times more streams come by view tokens from one address than from one user: many buyers share an address.
const BUYERS: usize = 20;

impl InHand {
    /// The bounds of these settings.
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
            closing: Joined::default(),
            syncing: Joined::default(),
        }
    }
}

/// What a request holds while it is worked on. Work that outlives its request goes on holding it.
pub struct Held {
    _slot: OwnedSemaphorePermit,
    _shares: ClientShares,
}

/// What a request holds of its client's shares.
pub struct ClientShares {
    _client: Share<Client>,
    _address: AddressShare,
}

impl InHand {
    /// A share of the client and of the address; `None` when one of them has all that it may have.
    pub fn take(&self, client: Client, address: IpAddr) -> Option<ClientShares> {
        Some(ClientShares { _client: self.of_client.take(client)?, _address: self.of_address.take(address)? })
    }
}

impl Held {
    /// A slot of the process and shares of the client.
    pub fn new(slot: OwnedSemaphorePermit, shares: ClientShares) -> Arc<Held> {
        Arc::new(Held { _slot: slot, _shares: shares })
    }
}

tokio::task_local! {
    /// What the request of this task holds.
    pub static HELD: Arc<Held>;
}

/// The accounts of `gateways.toml`, seen as a trait so that a test can put a gateway of its own in their place.
pub trait Accounts: Send + Sync {
    /// See [`Gateways::get`].
    fn get(&self, method: PaymentMethod, account: &AccountName) -> Option<Arc<dyn Gateway>>;

    /// See [`Gateways::for_new_order`].
    ///
    /// # Errors
    /// See [`NoAccount`].
    fn for_new_order(
        &self,
        method: PaymentMethod,
        scene: Scene,
        account: Option<&AccountName>,
    ) -> Result<Arc<dyn Gateway>, NoAccount>;

    /// See [`Gateways::scenes`].
    fn scenes(&self, method: PaymentMethod) -> Vec<Scene>;
}

impl Accounts for Gateways {
    fn get(&self, method: PaymentMethod, account: &AccountName) -> Option<Arc<dyn Gateway>> {
        Gateways::get(self, method, account)
    }

    fn for_new_order(
        &self,
        method: PaymentMethod,
        scene: Scene,
        account: Option<&AccountName>,
    ) -> Result<Arc<dyn Gateway>, NoAccount> {
        Gateways::for_new_order(self, method, scene, account)
    }

    fn scenes(&self, method: PaymentMethod) -> Vec<Scene> {
        Gateways::scenes(self, method)
    }
}

/// Runs work on a task of its own, so that a client who hangs up cannot stop it halfway; what takes longer than any gateway
/// and database may is given up ([`in_time`]). The work keeps what its request holds: clients who hang up leave no work that
/// is not counted.
///
/// # Errors
/// The work's own, or [`ApiError::Internal`] when it panicked.
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
