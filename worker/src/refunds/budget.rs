//! Limits how many requests for refunds are under way at once.

use std::sync::Arc;
use std::time::Duration;

use domain::PaymentMethod;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// How long a refund waits for its turn to be sent before its job is postponed.
const TURN: Duration = Duration::from_secs(5);

/// Limits the requests of this process, above all those that fail, to what a gateway allows in a second.
///
/// A request holds a turn while it is under way, and for one second more if it failed. So at most this many requests
/// fail in any second. Source: WeChat Pay APIv3, "申请退款", 6 failing calls a second for all processes of a merchant.
#[derive(Debug, Clone)]
pub struct Budget {
    alipay: Arc<Semaphore>,
    wechat: Arc<Semaphore>,
}

impl Budget {
    /// Creates this many turns for each gateway.
    pub fn new(turns: usize) -> Budget {
        let turns = || Arc::new(Semaphore::new(turns.max(1)));
        Budget { alipay: turns(), wechat: turns() }
    }

    /// A turn, if one is free within [`TURN`].
    pub(super) async fn turn(&self, gateway: PaymentMethod) -> Option<Turn> {
        let turns = match gateway {
            PaymentMethod::Alipay => &self.alipay,
            PaymentMethod::Wechat => &self.wechat,
        };
        timeout(TURN, turns.clone().acquire_owned()).await.ok()?.ok().map(|permit| Turn { _permit: permit })
    }
}

/// The right to send one request.
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    /// The request failed: no other request gets this turn for a second.
    pub(super) fn used_up(self) {
        tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            drop(self);
        });
    }
}
