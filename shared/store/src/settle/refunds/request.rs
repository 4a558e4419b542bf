//! Begins a refund, if the order allows it: what people or a policy have decided, without a rule for its caller.

use domain::{Money, OrderId, RefundId, RefundNo, TradeNo};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::room::{RefundRefusal, Room};
use crate::error::{DbError, NotDone};
use crate::tables::refunds::{self, NewRefund, Refund};

/// A request for a refund.
#[derive(Debug, Clone)]
pub struct RequestedRefund {
    /// A new id.
    pub id: RefundId,
    /// The order to refund.
    pub order_id: OrderId,
    /// The trade, if it is not the order's own payment but a late or second one.
    pub extra_trade: Option<TradeNo>,
    /// A new number, or one derived from the trade.
    pub refund_no: RefundNo,
    /// The amount. `None`: everything that is left.
    pub amount: Option<Money>,
    /// The reason that the buyer reads.
    pub reason: Option<String>,
    /// Who requests the refund.
    pub requested_by: String,
}

impl RequestedRefund {
    /// The new row.
    pub(super) fn row(&self, room: &Room, amount: Money) -> NewRefund {
        NewRefund {
            id: self.id,
            order_id: room.order.id,
            transaction_id: room.payment.id,
            refund_no: self.refund_no.clone(),
            amount,
            reason: self.reason.clone(),
            requested_by: self.requested_by.clone(),
        }
    }
}

/// Writes the refund, its transaction, its job and the order's new state, if the order allows a refund.
///
/// # Errors
/// [`NotDone`], with the reason if the order does not allow it.
pub async fn request(
    tx: &mut PgConnection,
    request: &RequestedRefund,
    now: OffsetDateTime,
) -> Result<Refund, NotDone<RefundRefusal>> {
    let room = Room::read(tx, request.order_id, request.extra_trade.as_ref(), now).await?;
    let amount = room.amount(request.amount).map_err(NotDone::Refused)?;
    begin(tx, &room, &request.row(&room, amount), now).await.map_err(NotDone::Db)
}

/// Writes a refund that begins now.
pub(super) async fn begin(
    tx: &mut PgConnection,
    room: &Room,
    new: &NewRefund,
    now: OffsetDateTime,
) -> Result<Refund, DbError> {
    refunds::create(tx, new, now).await?;
    room.follow(tx, now).await?;
    refunds::get(&mut *tx, new.id).await?.ok_or(DbError::Moved)
}
