//! The state that every handler works with. It is made of parts of `access`, `answer`, `create` and `watch`, and none
//! of them names it: each function there takes what it uses.

use std::sync::Arc;

use axum::extract::FromRef;
use domain::OrderId;
use export::desk::Desk;
use runtime::clock::Clock;
use runtime::seal::SealKeys;
use sqlx::PgPool;
use store::cache::Cache;
use store::tables::orders::Order;

use crate::access::callers::KnownCallers;
use crate::access::in_hand::InHand;
use crate::access::limits::Limits;
use crate::access::strikes::Strikes;
use crate::access::tokens::Tokens;
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
    /// Verifies the tokens of requests.
    pub tokens: Tokens,
    /// The open pages and the orders that they watch.
    pub hub: Hub,
    /// Brings the checks of orders forward whose buyers wait for a payment to appear.
    pub hints: Hints,
    /// The keys that encrypt stored credentials. `None`: no credential is stored.
    pub seal: Option<Arc<SealKeys>>,
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
    pub limits: Arc<Limits>,
    /// The limits on concurrent work.
    pub in_hand: Arc<InHand>,
    /// The orders that are being closed.
    pub closing: Joined<OrderId, Arc<Order>>,
    /// The orders that are being synced.
    pub syncing: Joined<OrderId, Arc<Synced>>,
    /// The exports of this process.
    pub exports: Desk,
    /// The operator's settings.
    pub settings: Settings,
}

impl FromRef<Arc<App>> for Tokens {
    fn from_ref(app: &Arc<App>) -> Tokens {
        app.tokens.clone()
    }
}
