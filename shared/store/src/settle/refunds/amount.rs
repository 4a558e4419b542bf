//! Changes the amount of a refund, because people have accepted what the gateway states.

use domain::Money;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;
use crate::tables::orders;
use crate::tables::refunds::{self, Refund};

/// Changes the refund's amount to `amount`, because two people have accepted what the gateway states. Nothing changes
/// if the payment does not cover that amount beside its other refunds, or if the refund is final. The fact is then an
/// amount mismatch, as before.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn accept_amount(
    tx: &mut PgConnection,
    refund: &Refund,
    amount: Money,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    orders::lock_one(tx, refund.order_id).await?;
    let all = refunds::of_order(&mut *tx, refund.order_id).await?;
    let others = all.iter().filter(|other| other.id != refund.id && other.transaction_id == refund.transaction_id);
    let reserved: i64 = others.filter(|other| other.status.reserves()).map(|other| other.amount.fen()).sum();
    if !amount.is_positive() || reserved + amount.fen() > refund.payment_amount.fen() {
        return Ok(());
    }
    refunds::note_amount(tx, refund.id, amount, now).await
}
