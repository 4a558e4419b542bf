//! What every handler works with.

use std::sync::Arc;

use shared::cache::Cache;
use shared::clock::Clock;
use shared::db::in_time;
use shared::domain::{AccountName, PaymentMethod, Scene};
use shared::gateway::{Gateway, Gateways, NoAccount};
use shared::seal::SealKeys;
use sqlx::PgPool;
use tracing::Instrument;

use crate::auth::Authenticator;
use crate::callers::KnownCallers;
use crate::config::Settings;
use crate::hints::Hints;
use crate::hub::Hub;
use crate::idempotency::Turns;
use crate::intake::Intake;
use crate::limits::Limits;
use crate::problem::ApiError;
use crate::rarely::Rarely;
use crate::refused_accounts::RefusedAccounts;
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
    /// What the operator has set.
    pub settings: Settings,
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
/// and database may is given up ([`in_time`]).
///
/// # Errors
/// The work's own, or [`ApiError::Internal`] when it panicked.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let ended = tokio::spawn(in_time(work).in_current_span()).await;
    ended.unwrap_or_else(|panic| Err(ApiError::Internal(panic.into())))
}
