//! Delivers each notification on its gateway's own schedule until the merchant answers with success.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::callback::{Overrides, Wrong};
use crate::calls::At;
use crate::clock;
use crate::deliveries::Delivered;
use crate::faults::CallbackFaults;
use crate::ledger::{Event, Gateway, Notice, Refusal, Trade, TradeKey};
use crate::state::Sim;

const MINUTE: u64 = 60;
const HOUR: u64 = 3_600;

/// Pauses in seconds after the first delivery. Source: 异步通知说明, P:00dn7l.
pub const ALIPAY_SCHEDULE: &[u64] = &[4 * MINUTE, 10 * MINUTE, 10 * MINUTE, HOUR, 2 * HOUR, 6 * HOUR, 15 * HOUR];

/// Pauses in seconds after the first delivery. Source: 支付成功回调通知, D:4012791861.
pub const WECHAT_SCHEDULE: &[u64] = &[
    15,
    15,
    30,
    3 * MINUTE,
    10 * MINUTE,
    20 * MINUTE,
    30 * MINUTE,
    30 * MINUTE,
    30 * MINUTE,
    60 * MINUTE,
    3 * HOUR,
    3 * HOUR,
    3 * HOUR,
    6 * HOUR,
    6 * HOUR,
];

/// A payment's notification waits at most this long for a refund's notification.
const REFUND_FIRST: Duration = Duration::from_secs(MINUTE);

impl Sim {
    /// The buyer pays, and the callbacks begin.
    pub(crate) fn pay(self: &Arc<Self>, key: &TradeKey) -> Result<Trade, Refusal> {
        let trade = self.ledger.pay(key, clock::now())?;
        info!(out_trade_no = trade.out_trade_no, amount_fen = trade.amount_fen, "{} was paid", trade.out_trade_no);
        self.deliver(&trade);
        Ok(trade)
    }

    /// Starts the deliveries of a trade's last notification.
    pub(crate) fn deliver(self: &Arc<Self>, trade: &Trade) {
        let (Some(notice), Some(_)) = (trade.notices.last(), trade.callback_url()) else { return };
        self.deliveries.spawn(run(Arc::clone(self), trade.key(), notice.id.clone()));
    }
}

/// Delivers one notification until it is accepted or the schedule ends.
async fn run(sim: Arc<Sim>, key: TradeKey, notice_id: String) {
    let schedule = match key.gateway {
        Gateway::Alipay => ALIPAY_SCHEDULE,
        Gateway::Wechat => WECHAT_SCHEDULE,
    };
    let delay_ms = sim.faults.callbacks(&key.out_trade_no).delay_ms;
    if delay_ms > 0 {
        sim.faults.count("delay");
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }
    wait_for_refund(&sim, &key, &notice_id).await;
    for (attempt, pause) in std::iter::once(&0).chain(schedule).enumerate() {
        tokio::time::sleep(sim.deliveries.scaled(Duration::from_secs(*pause))).await;
        let Some(trade) = sim.ledger.get(&key, clock::now()) else { return };
        let trade = trade.reported_by(&notice_id);
        let delivery = Delivery { sim: &sim, trade, notice_id: &notice_id };
        if delivery.attempt(attempt).await {
            return;
        }
    }
    warn!(out_trade_no = key.out_trade_no, "No more notifications for {}: the schedule is over", key.out_trade_no);
}

/// If the faults configure it, lets the refund's notice overtake the payment's notice.
async fn wait_for_refund(sim: &Sim, key: &TradeKey, notice_id: &str) {
    let notices = || sim.ledger.get(key, clock::now()).map(|trade| trade.notices).unwrap_or_default();
    let is_payment = |notice: &Notice| notice.id == notice_id && notice.event == Event::Paid;
    if !sim.faults.callbacks(&key.out_trade_no).refund_first || !notices().iter().any(is_payment) {
        return;
    }
    sim.faults.count("refund_first");
    let until = tokio::time::Instant::now() + REFUND_FIRST;
    while tokio::time::Instant::now() < until {
        if notices().iter().any(|notice| notice.event == Event::Refund && notice.sent > 0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One delivery of the schedule.
struct Delivery<'a> {
    sim: &'a Arc<Sim>,
    trade: Trade,
    notice_id: &'a str,
}

impl Delivery<'_> {
    /// Whether the notification was accepted.
    async fn attempt(&self, attempt: usize) -> bool {
        let faults = self.sim.faults.callbacks(&self.trade.out_trade_no);
        if self.sim.faults.falls("lose", faults.lose) {
            self.note(|notice| notice.last_answer = Some("lost on the way".to_owned()));
            return false;
        }
        if attempt == 0 && self.spoil(&faults).await {
            return false;
        }
        let overrides = self.overrides(&faults);
        let mut copies = JoinSet::new();
        for _ in 0..faults.parallel.max(1) {
            let callback = self.sim.render(&self.trade, &self.with_id(overrides.clone()));
            let (sim, gateway) = (Arc::clone(self.sim), self.trade.gateway());
            copies.spawn(async move { Some(sim.deliveries.send(gateway, callback?).await) });
        }
        if faults.parallel > 1 {
            self.sim.faults.count("parallel");
        }
        let mut accepted = false;
        while let Some(copy) = copies.join_next().await {
            let Ok(Some(delivered)) = copy else { continue };
            accepted |= delivered.accepted;
            self.record(delivered, Wanted::Accepted);
        }
        if accepted {
            for _ in 0..faults.repeat {
                self.sim.faults.count("repeat");
                self.send(&overrides, Wanted::Accepted).await;
            }
        }
        accepted
    }

    /// Sends what must be refused, if the dice decide so. Returns true if this replaced the authentic delivery.
    async fn spoil(&self, faults: &CallbackFaults) -> bool {
        let serials = self.trade.gateway() == Gateway::Wechat; // Alipay has neither serials nor probes.
        if serials && self.sim.faults.falls("probe", faults.probe) {
            self.send_wrong(Wrong::Probe).await;
        }
        let kinds = [
            ("tamper", faults.tamper, Wrong::Tamper),
            ("wrong_serial", if serials { faults.wrong_serial } else { 0.0 }, Wrong::WrongSerial),
            ("forged", faults.forged, Wrong::Forged),
        ];
        for (name, odds, wrong) in kinds {
            if self.sim.faults.falls(name, odds) {
                self.send_wrong(wrong).await;
                return true;
            }
        }
        false
    }

    async fn send_wrong(&self, wrong: Wrong) {
        self.send(&Overrides { wrong: Some(wrong), ..Overrides::default() }, Wanted::Refused).await;
    }

    /// The changes that faults make in an authentic callback.
    fn overrides(&self, faults: &CallbackFaults) -> Overrides {
        let mut overrides = Overrides { sign_with: faults.sign_with.clone(), ..Overrides::default() };
        if faults.wrong_amount_fen.is_some() {
            self.sim.faults.count("wrong_amount");
            overrides.amount_fen = faults.wrong_amount_fen;
        }
        if self.sim.faults.falls("other_merchant", faults.other_merchant) {
            let names: &[(&str, &str)] = match self.trade.gateway() {
                Gateway::Alipay => &[
                    ("app_id", "2021999999999999"),
                    ("auth_app_id", "2021999999999999"),
                    ("seller_id", "2088999999999999"),
                ],
                Gateway::Wechat => &[("/mchid", "1999999999"), ("/appid", "wxffffffffffffffff")],
            };
            overrides.fields = names.iter().map(|(name, id)| ((*name).to_owned(), Some(json!(id)))).collect();
        }
        overrides
    }

    /// The fields that faults omit or change; the caller's own values take precedence.
    fn with_odd_fields(&self, mut overrides: Overrides) -> Overrides {
        let Trade { account, out_trade_no, .. } = &self.trade;
        let at = At { gateway: self.trade.gateway(), account, out_trade_no: Some(out_trade_no) };
        for (name, value) in self.sim.faults.odd(at).notices_of(at.gateway) {
            overrides.fields.entry(name).or_insert(value);
        }
        overrides
    }

    fn with_id(&self, mut overrides: Overrides) -> Overrides {
        overrides.id.get_or_insert_with(|| self.notice_id.to_owned());
        self.with_odd_fields(overrides)
    }

    async fn send(&self, overrides: &Overrides, wanted: Wanted) -> Option<Delivered> {
        let callback = self.sim.render(&self.trade, &self.with_id(overrides.clone()))?;
        let delivered = self.sim.deliveries.send(self.trade.gateway(), callback).await;
        self.record(delivered.clone(), wanted);
        Some(delivered)
    }

    fn record(&self, Delivered { accepted, answer }: Delivered, wanted: Wanted) {
        let out_trade_no = &self.trade.out_trade_no;
        match (wanted, accepted) {
            (Wanted::Refused, true) => warn!(out_trade_no, answer, "A wrong callback of {out_trade_no} was accepted"),
            (Wanted::Accepted, false) => info!(out_trade_no, answer, "The callback of {out_trade_no} was not accepted"),
            _ => debug!(out_trade_no, answer, "The callback of {out_trade_no} was answered as it should be"),
        }
        self.note(|notice| {
            notice.sent += 1;
            match wanted {
                Wanted::Accepted => notice.accepted += u32::from(accepted),
                Wanted::Refused => notice.wrong_accepted += u32::from(accepted),
            }
            notice.last_answer = Some(answer);
        });
    }

    fn note(&self, note: impl FnOnce(&mut Notice)) {
        self.sim.ledger.note(&self.trade.key(), self.notice_id, note);
    }
}

/// The expected reaction of the merchant to a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Accepted,
    Refused,
}

/// Sends the callback of a trade's last notification now, independent of its schedule.
pub(crate) async fn once(sim: &Arc<Sim>, trade: Trade, overrides: &Overrides) -> Option<Delivered> {
    let notice_id = trade.notices.last()?.id.clone();
    trade.callback_url()?;
    let wanted = if overrides.wrong.is_some() { Wanted::Refused } else { Wanted::Accepted };
    Delivery { sim, trade, notice_id: &notice_id }.send(overrides, wanted).await
}
