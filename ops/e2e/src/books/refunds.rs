//! The refunds' part of the comparison: per refund, per payment, per order and in total.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::World;

/// Fen that went back, by order number and refund number.
type Returned = BTreeMap<(String, String), i64>;

impl World {
    /// What the gateways returned is what we hold for returned; no payment is returned beyond its amount, no limit of a
    /// gateway was run into; orders stand as their refunds make them; each end was told, once.
    pub(super) async fn refunds_agree(&self, trades: &[Value]) {
        let (there, here) = (returned_there(trades), self.returned_here().await);
        let only = |one: &Returned, other: &Returned| -> Vec<_> {
            one.iter()
                .filter(|(refund, fen)| other.get(refund) != Some(fen))
                .map(|(r, fen)| format!("{r:?}: {fen}"))
                .collect()
        };
        let (only_there, only_here) = (only(&there, &here), only(&here, &there));
        assert!(
            only_there.is_empty() && only_here.is_empty(),
            "refunded at the gateways {only_there:?}, and here {only_here:?}"
        );
        let told: i64 = trades.iter().map(|trade| trade["refunded_fen"].as_i64().expect("fen")).sum();
        let total = self.number("select coalesce(sum(refunded_amount) * 100, 0)::bigint from payment_orders").await;
        assert_eq!(there.values().sum::<i64>(), told, "the gateways' own totals");
        self.no_rows(OVER_PAID, "returned or reserved beyond what was paid").await;
        self.no_rows(MOVEMENTS, "refunds and their movements differ").await;
        self.no_rows(STATUSES, "orders do not stand as their refunds make them").await;
        let extra = self.number(RETURNED_EXTRA).await;
        assert_eq!(total.zip(extra).map(|(own, extra)| own + extra), Some(told), "returned in total, in fen");
        self.refund_events_agree().await;
    }

    async fn returned_here(&self) -> Returned {
        let rows: Vec<(String, String, i64)> = sqlx::query_as(
            "select o.order_no, r.refund_no, (r.refund_amount * 100)::bigint
             from refund_records r join payment_orders o on o.id = r.order_id
             where r.status = 'succeeded'",
        )
        .fetch_all(&self.db)
        .await
        .expect("the database answers");
        rows.into_iter().map(|(order_no, refund_no, fen)| ((order_no, refund_no), fen)).collect()
    }

    /// Each refund at its end, and each order returned whole, has its one event, delivered at least once; no other has.
    async fn refund_events_agree(&self) {
        let ended =
            "select 'refund.' || status || ':' || id from refund_records where status in ('succeeded', 'failed')";
        let events = "select event_id from events where type in ('refund.succeeded', 'refund.failed')";
        self.told_once(ended, events, &["refund.succeeded", "refund.failed"]).await;
        // Under the id of the refund that completed it, which is the last to have succeeded.
        let returned = "select 'order.refunded:' || (
                select r.id from refund_records r join payment_transactions p on p.id = r.transaction_id
                where r.order_id = o.id and r.status = 'succeeded' and p.gateway_no = o.trade_no
                order by r.updated_at desc limit 1)
            from payment_orders o where o.status = 'refunded'";
        let events = "select event_id from events where type = 'order.refunded'";
        self.told_once(returned, events, &["order.refunded"]).await;
        self.no_rows(TOLD, "events that tell of a refund what is not so").await;
    }

    /// Three lists of ids are one: what has happened, what was written for sending, what downstream heard.
    async fn told_once(&self, happened: &'static str, written: &'static str, kinds: &[&str]) {
        let set = |ids: Vec<String>| ids.into_iter().collect::<BTreeSet<String>>();
        let (happened, written) = (set(self.texts(happened).await), set(self.texts(written).await));
        let all = self.downstream.all().into_iter();
        let heard = set(all.filter(|told| kinds.contains(&told.kind.as_str())).map(|told| told.id).collect());
        for (what, other) in [("written", &written), ("heard downstream", &heard)] {
            let differ: Vec<_> = happened.symmetric_difference(other).collect();
            assert!(differ.is_empty(), "{kinds:?} that have happened or are {what}, not both: {differ:?}");
        }
    }

    async fn no_rows(&self, sql: &'static str, what: &str) {
        let rows = self.texts(sql).await;
        assert!(rows.is_empty(), "{what}: {rows:?}");
    }
}

/// What went back, refund by refund. Money moved once for each of them and for no other.
fn returned_there(trades: &[Value]) -> Returned {
    let mut returned = Returned::new();
    let limits = |trade: &Value| trade["violations"].as_object().expect("an object").clone();
    let broken = trades.iter().filter(|trade| !limits(trade).is_empty());
    let broken: Vec<_> = broken.map(|trade| (&trade["gateway"], &trade["out_trade_no"], limits(trade))).collect();
    assert!(broken.is_empty(), "limits of a gateway were broken: {broken:?}");
    for trade in trades {
        for refund in trade["refunds"].as_array().expect("a list") {
            let done = refund["state"] == "success";
            assert_eq!(refund["effects"], i64::from(done), "how often money moved: {trade}");
            if done {
                let text = |name: &str| refund[name].as_str().expect("a number").to_owned();
                let name = (text("out_trade_no"), text("out_refund_no"));
                returned.insert(name, refund["amount_fen"].as_i64().expect("an amount"));
            }
        }
    }
    returned
}

/// Payments of which more goes back, or may still go back, than they brought.
const OVER_PAID: &str = "
    select p.gateway_no || ': ' || sum(r.refund_amount) || ' of ' || p.amount
    from payment_transactions p join refund_records r on r.transaction_id = p.id
    where r.status <> 'failed' group by p.id having sum(r.refund_amount) > p.amount";

/// Refunds whose row among the movements of money does not say the same.
const MOVEMENTS: &str = "
    select r.refund_no || ': ' || r.status || ', ' || coalesce(t.status, 'no movement')
    from refund_records r left join payment_transactions t on t.id = r.id and t.action_type = 'refund'
    where t.id is null or t.amount <> r.refund_amount or t.order_id <> r.order_id
      or t.status <> case when r.status in ('succeeded', 'failed') then r.status else 'pending' end";

/// Orders whose status or returned amount does not follow from the refunds of their own payment.
const STATUSES: &str = "
    select o.order_no || ': ' || o.status || ', ' || o.refunded_amount || ' of ' || o.amount || ' returned'
    from payment_orders o
    cross join lateral (
      select coalesce(sum(r.refund_amount) filter (where r.status = 'succeeded'), 0) as returned,
             count(*) filter (where r.status in ('pending', 'processing')) as in_flight
      from refund_records r join payment_transactions p on p.id = r.transaction_id
      where r.order_id = o.id and p.gateway_no = o.trade_no
    ) own
    where o.status not in ('pending', 'closed') and (o.refunded_amount <> own.returned or o.status <> case
      when own.in_flight > 0 then 'refunding'
      when own.returned = o.amount then 'refunded'
      when own.returned > 0 then 'partially_refunded'
      else 'paid' end)";

/// Events of refunds that name another refund, another order or another amount than their id.
const TOLD: &str = "
    select e.event_id from events e join refund_records r on r.id = split_part(e.event_id, ':', 2)
    where e.type in ('refund.succeeded', 'refund.failed', 'order.refunded')
      and (e.order_id, e.data->>'refund_no', e.data->>'refund_amount')
        is distinct from (r.order_id, r.refund_no, r.refund_amount::text)";

/// What went back of payments that are not their order's own, in fen.
const RETURNED_EXTRA: &str = "
    select coalesce(sum(r.refund_amount) * 100, 0)::bigint
    from refund_records r
    join payment_transactions p on p.id = r.transaction_id
    join payment_orders o on o.id = r.order_id
    where r.status = 'succeeded' and p.gateway_no is distinct from o.trade_no";
