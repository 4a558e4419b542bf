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
    Told(Box<Verified<Notification>>),
    /// Forged or unreadable: it can never be settled.
    Bad(Verdict),
    /// The key or the account is unknown here. A new configuration can correct that.
    NotYet(String),
}

impl Examined {
    /// Its subject, for the log: the order number, or else the digest of its bytes.
    pub(super) fn subject(&self) -> String {
        self.told().map_or_else(|| digest(&self.callback.body), |told| told.get().order_no.clone())
    }

    /// The ack that its verdict requires, once the verdict is recorded.
    pub(super) fn ack(&self) -> Ack {
        if matches!(self.content, Content::Bad(_)) { Ack::Dead } else { Ack::Done }
    }

    pub(super) fn told(&self) -> Option<&Verified<Notification>> {
        match &self.content {
            Content::Told(told) => Some(told.as_ref()),
            _ => None,
        }
    }

    pub(super) fn evidence(&self, verdict: Verdict) -> Evidence<'_> {
        let told = self.told().map(Verified::get);
        Evidence {
            callback: &self.callback,
            notice_id: told.map_or_else(|| essence(&self.callback), |told| told.notice_id.clone()),
            order_no: told.map(|told| told.order_no.as_str()).filter(|order_no| !order_no.is_empty()),
            verdict,
            note: told.and_then(|told| told.doubt.as_deref()),
        }
    }
}
