//! What a gateway limits, as far as we must know it before a call.

use domain::PaymentMethod;
use time::Duration;

use crate::{alipay, wechat};

/// The limits of one gateway. The texts are what a caller of our API reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The least time between two refunds of one order.
    pub between_refunds: Duration,
    /// For how long a payment can be refunded. `None`: the contract says, and the gateway refuses later ones itself.
    pub refundable_for: Option<(Duration, &'static str)>,
    /// The largest number of refunds of one payment.
    pub refunds_of_a_payment: Option<(usize, &'static str)>,
}

impl Limits {
    /// The reason that the gateway refuses one more refund of a payment of this age, which has so many already.
    pub fn refuses(&self, age: Duration, refunds: usize) -> Option<&'static str> {
        let too_old = self.refundable_for.filter(|(period, _)| age > *period).map(|(_, text)| text);
        too_old.or(self.refunds_of_a_payment.filter(|(most, _)| refunds >= *most).map(|(_, text)| text))
    }
}

/// The limits of a gateway.
pub const fn limits(gateway: PaymentMethod) -> Limits {
    match gateway {
        PaymentMethod::Alipay => alipay::LIMITS,
        PaymentMethod::Wechat => wechat::LIMITS,
    }
}
