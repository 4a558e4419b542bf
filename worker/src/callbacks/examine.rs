//! Verifies and decrypts a callback.

use domain::message::callback::Callback;
use domain::{Notification, Verdict};
use gateway::{CallbackError, Gateway, Verified};
use runtime::crash::{self, Point};
use time::OffsetDateTime;

use crate::callbacks::examined::Content;
use crate::callbacks::worker::CallbackWorker;

impl CallbackWorker {
    /// Verifies a callback again, without the clock window, and decrypts it. It queries the gateway once for a key that
    /// is unknown here.
    pub(super) async fn examine(&self, callback: &Callback) -> Content {
        let Some(gateway) = self.gateways.get(callback.method, &callback.account) else {
            return Content::NotYet(format!("no account {}", callback.account));
        };
        let now = self.clock.now();
        let mut verified = verify_and_read(gateway.as_ref(), callback, now);
        if let Err(CallbackError::UnknownKey { serial }) = &verified
            && gateway.look_for_key(serial, now).await
        {
            verified = verify_and_read(gateway.as_ref(), callback, now);
        }
        let verified =
            verified.and_then(|verified| match crash::met(Point::CallbackExamined, &verified.get().order_no) {
                Ok(()) => Ok(verified),
                Err(planted) => Err(CallbackError::Undecodable(planted.to_string())),
            });
        match verified {
            Ok(verified) => Content::Authentic(Box::new(verified)),
            Err(
                error @ (CallbackError::UnknownKey { .. }
                | CallbackError::KeyNotInForce { .. }
                | CallbackError::Unopened(_)),
            ) => Content::NotYet(error.to_string()),
            Err(error @ (CallbackError::BadSignature | CallbackError::Probe | CallbackError::Stale)) => {
                Content::Bad { verdict: Verdict::BadSignature, reason: error.to_string() }
            }
            Err(error @ (CallbackError::Malformed(_) | CallbackError::Undecodable(_))) => {
                Content::Bad { verdict: Verdict::Undecodable, reason: error.to_string() }
            }
        }
    }
}

/// Verifies a callback and decrypts it into a notification.
fn verify_and_read(
    gateway: &dyn Gateway,
    callback: &Callback,
    now: OffsetDateTime,
) -> Result<Verified<Notification>, CallbackError> {
    gateway.verify(callback.clone(), None).and_then(|verified| gateway.read(&verified, now))
}
