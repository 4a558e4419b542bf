//! Orders that no buyer placed. People create one to return a payment whose order number is unknown.

use domain::{AccountName, Money, OrderId, OrderNo, PaymentMethod};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::tables::orders::{self, Order};

/// The user of an order that no buyer placed. No token names this user.
pub const NO_USER: &str = "-";

impl Order {
    /// Whether a buyer placed it. Otherwise people created it, to return a payment of an unknown order number.
    pub fn was_placed(&self) -> bool {
        self.user_id.as_str() != NO_USER
    }
}

/// An order that no buyer placed. With it, a payment that names its number can be returned.
#[derive(Debug, Clone)]
pub struct UnplacedOrder {
    /// A new UUIDv7.
    pub id: OrderId,
    /// The number that the gateway has.
    pub order_no: OrderNo,
    /// The gateway where it was paid.
    pub payment_method: PaymentMethod,
    /// The account that received the money.
    pub account: AccountName,
    /// The amount that was paid.
    pub amount: Money,
}

/// Inserts a closed order that no buyer placed, if no order has its number. Returns the order of this number, locked.
///
/// # Errors
/// [`DbError`].
pub async fn create(tx: &mut PgConnection, new: &UnplacedOrder, now: OffsetDateTime) -> Result<Order, DbError> {
    let scene = new.payment_method.scenes().first().map_or("", |scene| scene.as_str());
    sqlx::query!(
        "select from create_unplaced_order($1, $2, $3, $4, $5, $6, $7)",
        new.id as OrderId,
        new.order_no.as_str(),
        new.amount as Money,
        new.payment_method.as_str(),
        scene,
        new.account.as_str(),
        now,
    )
    .execute(&mut *tx)
    .await?;
    orders::lock(tx, &[new.order_no.as_str()]).await?.pop().ok_or(DbError::Moved)
}
