//! A callback with the result of its verification.

use domain::message::callback::{Callback, digest};
use domain::{Notification, Verdict};
use gateway::{Verified, essence};
use store::tables::callbacks::Evidence;

use crate::consumer::Ack;

/// A callback and the result of its verification.
pub(super) struct Examined {
    pub(super) callback: Callback,
    pub(super) content: Content,
}

pub(super) enum Content {
    /// Authentic.
    Authentic(Box<Verified<Notification>>),
    /// Forged or unreadable: it can never be settled.
    Bad {
        /// Which of the two.
        verdict: Verdict,
        /// Why, for the log.
        reason: String,
    },
    /// The key or the account is unknown here. A new configuration can correct that.
    NotYet(String),
}

impl Examined {
    /// Its subject, for the log: the order number, or else the digest of its bytes.
    pub(super) fn subject(&self) -> String {
        self.notification()
            .map_or_else(|| digest(&self.callback.body), |notification| notification.get().order_no.clone())
    }

    /// The ack that its verdict requires, once the verdict is recorded.
    pub(super) fn ack(&self) -> Ack {
        if matches!(self.content, Content::Bad { .. }) { Ack::Dead } else { Ack::Done }
    }

    pub(super) fn notification(&self) -> Option<&Verified<Notification>> {
        match &self.content {
            Content::Authentic(notification) => Some(notification.as_ref()),
            _ => None,
        }
    }

    pub(super) fn evidence(&self, verdict: Verdict) -> Evidence<'_> {
        let notification = self.notification().map(Verified::get);
        Evidence {
            callback: &self.callback,
            notice_id: notification
                .map_or_else(|| essence(&self.callback), |notification| notification.notice_id.clone()),
            order_no: notification
                .map(|notification| notification.order_no.as_str())
                .filter(|order_no| !order_no.is_empty()),
            verdict,
            note: notification.and_then(|notification| notification.doubt.as_deref()),
        }
    }
}
