//! The steps of a refund at both gateways: accepted, processed for a while, ended, reported.

use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use crate::clock;
use crate::ledger::{Booked, Gateway, RefundRefusal, RefundRequest, RefundState, Trade, TradeKey};
use crate::state::Sim;

/// How long a refund is processed, unless the faults say otherwise.
const PROCESSING: Duration = Duration::from_secs(1);

impl Sim {
    /// Books a refund; a new one continues in the background.
    pub(crate) fn refund(self: &Arc<Self>, key: &TradeKey, request: &RefundRequest) -> Result<Booked, RefundRefusal> {
        let booked = self.ledger.refund(key, request, clock::now())?;
        let Booked { trade, refund, fresh } = &booked;
        if *fresh {
            let number = &refund.out_refund_no;
            info!(number, amount_fen = refund.amount_fen, "Refund {number} of {} is accepted", trade.out_trade_no);
            match refund.state {
                RefundState::Processing => self.process(key, number, self.end_of(key)),
                _ => self.tell(trade, number),
            }
        }
        Ok(booked)
    }

    /// Brings a processing refund to `end` after the processing time.
    pub(crate) fn process(self: &Arc<Self>, key: &TradeKey, out_refund_no: &str, end: RefundState) {
        let wait = match self.faults.refund(&key.out_trade_no).processing_ms {
            0 => self.deliveries.scaled(PROCESSING),
            ms => {
                self.faults.count("refund_processing");
                Duration::from_millis(ms)
            }
        };
        let (sim, key, out_refund_no) = (Arc::clone(self), key.clone(), out_refund_no.to_owned());
        self.deliveries.spawn(async move {
            tokio::time::sleep(wait).await;
            sim.end_refund(&key, &out_refund_no, end);
        });
    }

    /// Ends a processing refund now, and sends its notice. `None` if it is not processing.
    pub(crate) fn end_refund(self: &Arc<Self>, key: &TradeKey, number: &str, end: RefundState) -> Option<Trade> {
        let trade = self.ledger.end_refund(key, number, end, clock::now())?;
        info!(number, ?end, "Refund {number} of {} ended", trade.out_trade_no);
        self.tell(&trade, number);
        Some(trade)
    }

    /// The dice are thrown when a refund is accepted, so that a run can be repeated.
    fn end_of(&self, key: &TradeKey) -> RefundState {
        let faults = self.faults.refund(&key.out_trade_no);
        if key.gateway == Gateway::Alipay {
            return RefundState::Success;
        }
        if self.faults.falls("refund_abnormal", faults.abnormal) {
            return RefundState::Abnormal;
        }
        if self.faults.falls("refund_closed", faults.closed) { RefundState::Closed } else { RefundState::Success }
    }

    /// Starts the notice of a refund that has just ended, if it has one.
    fn tell(self: &Arc<Self>, trade: &Trade, out_refund_no: &str) {
        if trade.reported_refund().is_some_and(|refund| refund.notified && refund.out_refund_no == out_refund_no) {
            self.deliver(trade);
        }
    }
}
