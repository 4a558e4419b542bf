//! The last credential of an order. It is stored encrypted. It is returned again while it is valid and the gateway
//! gives no fresh one.

use gateway::Payment;
use runtime::seal::SealKeys;
use sqlx::PgPool;
use store::connect::in_time;
use store::tables::credentials::{self, StoredCredential, place};
use store::tables::orders::Order;
use time::{Duration, OffsetDateTime};
use tracing::warn;

use crate::answer::problem::ApiError;

/// Stores a credential that the gateway has just given. The buyer gets it even if it cannot be stored. `keys`: `None`
/// stores nothing.
pub async fn store(
    db: &PgPool,
    keys: Option<&SealKeys>,
    order: &Order,
    payment: &Payment,
    (now, lives): (OffsetDateTime, Duration),
) {
    let Some(keys) = keys else { return };
    let id = order.id.to_string();
    let sealed = serde_json::to_vec(payment).map_err(ApiError::internal);
    let sealed = sealed.and_then(|text| keys.seal(&place(&id), &text).map_err(ApiError::internal));
    let stored = match sealed {
        Ok(sealed) => {
            let stored =
                StoredCredential { sealed, obtained_at: now, valid_until: (now + lives).min(order.expires_at) };
            in_time(credentials::store(db, order.id, &stored)).await.map_err(ApiError::from)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = stored {
        warn!(error = ?error, order_id = %order.id, "A credential was not stored");
    }
}

/// The last credential of an order, if it is still valid.
///
/// # Errors
/// [`ApiError::Db`]. A credential that no key can decrypt counts as none.
pub async fn last(
    db: &PgPool,
    keys: Option<&SealKeys>,
    order: &Order,
    now: OffsetDateTime,
) -> Result<Option<Payment>, ApiError> {
    let Some(keys) = keys else { return Ok(None) };
    let Some(stored) = credentials::last(db, order.id, now).await? else { return Ok(None) };
    let opened = keys.open(&place(&order.id.to_string()), &stored.sealed).map_err(ApiError::internal);
    let payment = opened.and_then(|text| serde_json::from_slice(&text).map_err(ApiError::internal));
    if let Err(error) = &payment {
        warn!(error = ?error, order_id = %order.id, "A stored credential cannot be read");
    }
    Ok(payment.ok())
}
