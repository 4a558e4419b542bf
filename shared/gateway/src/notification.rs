//! Turns the answer to an order query into a notification.

use domain::{Notification, OrderNo, Source};

use crate::adapter::Gateway;
use crate::query::Trade;
use crate::verified::Verified;

impl Verified<Trade> {
    /// Turns the answer to an order query into the notification that a callback would have brought. The proof carries
    /// over: the gateway signed the answer, and this account queried its own order by number.
    pub fn notification(&self, gateway: &dyn Gateway, order_no: &OrderNo, notice_id: String) -> Verified<Notification> {
        Verified::new(Notification {
            method: gateway.method(),
            account: gateway.account().clone(),
            notice_id,
            source: Source::Query,
            merchant: self.get().merchant.clone(),
            order_no: order_no.to_string(),
            fact: self.get().fact.clone(),
            doubt: self.get().doubt.clone(),
        })
    }
}
