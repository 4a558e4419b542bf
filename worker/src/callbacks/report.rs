//! Reports callbacks that are committed: metrics, log, copies, and a nudge for the relay.

use domain::Verdict;
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use runtime::panics::caught_now;
use store::cache::Changed;
use store::tables::events as outbox;
use time::OffsetDateTime;
use tracing::{error, info, warn};

use crate::callbacks::examined::{Content, Examined};
use crate::callbacks::worker::CallbackWorker;
use crate::deferred::WORKER;

impl CallbackWorker {
    /// Updates the metrics and the log, and notifies the relay, once a batch is committed. A panic here cannot undo the
    /// settled callbacks.
    pub(super) async fn report(&self, examined: &[Examined], verdicts: &[Option<Verdict>]) {
        let now = self.clock.now();
        let mut news = false;
        for (item, verdict) in examined.iter().zip(verdicts) {
            let reported = caught_now(|| report_one(item, *verdict, now));
            news |= reported.unwrap_or_else(|panic| {
                panic.noted(WORKER, "report", &item.subject());
                true
            });
        }
        // The orders of settled callbacks, and those that now show money that was not owed.
        let changed = examined.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_some_and(Verdict::changes_order));
        let changed =
            changed.filter_map(|(item, _)| item.notification()).map(|notification| notification.get().order_no.clone());
        let changed = changed.collect();
        if let Err(panic) = caught_now(|| self.copies.renew(&self.db, Changed::Numbers(changed))) {
            panic.noted(WORKER, "report", &"copies");
        }
        // With a time limit: a database whose machine vanishes now must not block the lane permanently.
        if news && let Err(error) = store::connect::in_time(outbox::nudge(&self.db)).await {
            warn!(error = chain(&error), "The relay was not nudged; it will poll");
        }
    }
}

/// Counts and logs one callback. Returns whether the relay has something new to publish.
fn report_one(item: &Examined, verdict: Option<Verdict>, now: OffsetDateTime) -> bool {
    let gateway = item.callback.method.as_str();
    let opens_case = verdict.is_some_and(Verdict::opens_case);
    let verdict = verdict.map_or("unknown_key", Verdict::as_str);
    metrics::counter!("callbacks_total", "gateway" => gateway, "verdict" => verdict).increment(1);
    let took = (now - item.callback.received_at).as_seconds_f64();
    metrics::histogram!("callback_settle_seconds", "gateway" => gateway).record(took.max(0.0));
    // Everything is committed, so a planted error has no effect here.
    let _ = crash::met(Point::CallbackCommitted, &item.subject());
    match &item.content {
        Content::Authentic(notification) if !matches!(verdict, "duplicate" | "ignored") => {
            let (order_no, duration_ms) = (&notification.get().order_no, took * 1e3);
            if opens_case {
                warn!(%order_no, gateway, verdict, duration_ms, "Callback for order {order_no}: {verdict}; a case waits for people, or a policy decides");
            } else {
                info!(%order_no, gateway, verdict, duration_ms, "Callback for order {order_no}: {verdict}");
            }
            return true;
        }
        Content::Authentic(_) => {}
        Content::Bad { reason, .. } => {
            error!(gateway, account = %item.callback.account, verdict, error = reason, "Callback refused: {reason}");
        }
        Content::NotYet(reason) => {
            warn!(gateway, account = %item.callback.account, error = reason, "Callback postponed")
        }
    }
    false
}
