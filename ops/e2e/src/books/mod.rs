//! Four independent records, compared: the gateways' ledger, the database, what downstream got, and the client's view.

mod refunds;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::{World, eventually};

/// Payments by order number: how often paid, and how much in fen.
type Paid = BTreeMap<String, (i64, i64)>;

impl World {
    /// Waits until nothing is on the road any more: no callback as a job, no refund in flight, no event unpublished or
    /// undelivered.
    pub async fn wait_quiet(&self, within: Duration) {
        eventually("no callback, no refund and no event is on its way", within, async || {
            let waiting = "select (select count(*) from jobs where kind = 'callback')
                + (select count(*) from refund_records where status in ('pending', 'processing'))
                + (select count(*) from events where published_at is null)";
            if self.number(waiting).await? > 0 {
                return None;
            }
            let told = self.downstream.times();
            let known = self.texts("select event_id from events").await;
            known.iter().all(|id| told.contains_key(id)).then_some(())
        })
        .await;
    }

    /// The records agree: what was paid at the gateways is paid here, in fen, per order and in total; each paid order
    /// has one `order.paid`, delivered; no order moved more often than its payment and its refunds move it; nothing wrong
    /// was answered with success; and refunds agree likewise.
    pub async fn books_agree(&self) {
        let trades = self.gateways.ledger().await;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let mut paid_there = Paid::new();
        for trade in trades.iter().filter(|trade| trade["state"] == "paid") {
            let (count, fen) = paid_there.entry(text(&trade["out_trade_no"])).or_default();
            (*count, *fen) = (*count + 1, *fen + trade["amount_fen"].as_i64().expect("an amount"));
        }
        let wrong: Vec<_> = trades.iter().filter(|trade| trade["wrong_accepted"] != 0).collect();
        assert!(wrong.is_empty(), "answered with success though wrong: {wrong:?}");

        let rows: Vec<(String, i64, i64)> = sqlx::query_as(
            "select o.order_no, count(*), sum(t.amount * 100)::bigint
             from payment_transactions t join payment_orders o on o.id = t.order_id
             where t.action_type = 'payment' and t.status = 'succeeded'
             group by o.order_no",
        )
        .fetch_all(&self.db)
        .await
        .expect("the database answers");
        let paid_here: Paid = rows.into_iter().map(|(order_no, count, fen)| (order_no, (count, fen))).collect();
        assert_eq!(paid_there, paid_here, "paid at the gateways, and paid in the database");
        let total = |paid: &Paid| paid.values().map(|(_, fen)| fen).sum::<i64>();
        assert_eq!(total(&paid_there), total(&paid_here));

        let moved = self.texts(MOVED).await;
        assert!(moved.is_empty(), "moved more often than there was reason to: {moved:?}");
        self.events_agree(paid_here.keys().cloned().collect()).await;
        self.refunds_agree(&trades).await;
    }

    /// Each of these orders, and no other, is paid and has exactly one `order.paid`, delivered at least once.
    async fn events_agree(&self, paid: BTreeSet<String>) {
        let orders: BTreeSet<String> = self
            .texts("select order_no from payment_orders where status not in ('pending', 'closed')")
            .await
            .into_iter()
            .collect();
        assert_eq!(paid, orders, "orders with a payment, and paid orders");
        let told = self.texts("select data->>'order_no' from events where type = 'order.paid' order by 1").await;
        assert_eq!(told, paid.iter().cloned().collect::<Vec<_>>(), "one order.paid for each paid order");

        let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for delivery in self.downstream.all().into_iter().filter(|delivery| delivery.kind == "order.paid") {
            let order_no = delivery.data["order_no"].as_str().unwrap_or_default().to_owned();
            ids.entry(order_no).or_default().insert(delivery.id);
        }
        let several: Vec<_> = ids.iter().filter(|(_, ids)| ids.len() != 1).collect();
        assert!(several.is_empty(), "told under several ids: {several:?}");
        assert_eq!(ids.into_keys().collect::<BTreeSet<_>>(), paid, "orders that downstream heard of, and paid orders");
    }
}

/// Paid orders that moved otherwise than to `paid` once, and to `refunding` and away from it once for each refund. What
/// became a case may move by a person's decision as well.
const MOVED: &str = "
    select order_no || ': version ' || version from payment_orders o
    where status in ('paid', 'partially_refunded', 'refunded')
      and version <> 2 + 2 * (select count(*) from refund_records r where r.order_id = o.id)
      and not exists (select 1 from cases c where c.order_id = o.id)";
