//! What a gateway states about one refund, in a notice or in an answer.

use time::OffsetDateTime;

use crate::money::Money;

/// The state of a refund at the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefundState {
    /// The gateway knows no such refund: the caller may send the request. Alipay also answers this about a refund that
    /// is less than ten seconds old.
    Absent,
    /// Accepted, but not done, or the message does not say: query again.
    Processing,
    /// The money was returned to the buyer.
    Succeeded,
    /// The money will not be returned under this number.
    Closed,
    /// It could not be delivered; a person has to act.
    Abnormal,
}

/// What a gateway states about one refund. `None`: the message does not state it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundReport {
    /// The state.
    pub state: RefundState,
    /// The amount of this refund. It may differ from the amount that we requested: settling compares them.
    pub amount: Option<Money>,
    /// The total refunded on this trade so far (Alipay, when it accepts the refund).
    pub returned: Option<Money>,
    /// The gateway's number of the refund.
    pub gateway_refund_no: Option<String>,
    /// When the money was returned, by the gateway's clock.
    pub at: Option<OffsetDateTime>,
}

impl RefundReport {
    /// A report that states nothing but the state.
    pub const fn of(state: RefundState) -> RefundReport {
        RefundReport { state, amount: None, returned: None, gateway_refund_no: None, at: None }
    }
}
