//! Reads the witnesses, the ones outside the database first: the database must know what they have seen.

use serde_json::Value;
use sqlx::FromRow;
use sqlx::postgres::PgRow;

use super::{Delivered, History, Trade};
use crate::World;

impl World {
    /// What all witnesses say about the run so far.
    pub async fn history(&self) -> History {
        let trades = self.gateways.ledger().await;
        let trades: Vec<Trade> = serde_json::from_value(Value::Array(trades)).expect("the simulator's ledger");
        let answers = self.shop.answers();
        let mut history = History { trades, answers, messages_lost: self.broker_was_wiped(), ..History::default() };
        history.orders = self.rows(ORDERS).await;
        history.payments = self.rows(PAYMENTS).await;
        history.refunds = self.rows(REFUNDS).await;
        history.callbacks = self.rows(CALLBACKS).await;
        history.waiting = self.texts(WAITING).await;
        history.events = self.rows(EVENTS).await;
        history.named_by_keys = self.texts("select ref_id::text from idempotency_keys").await;
        history.cases = self.rows(CASES).await;
        let deliveries = self.downstream.all().into_iter();
        history.deliveries = deliveries
            .map(|delivery| Delivered { id: delivery.id, kind: delivery.kind, data: delivery.data })
            .collect();
        history
    }

    async fn rows<T: Send + Unpin + for<'r> FromRow<'r, PgRow>>(&self, sql: &'static str) -> Vec<T> {
        sqlx::query_as(sql).fetch_all(&self.db).await.expect("the database answers")
    }
}

const ORDERS: &str = "
    select id::text, order_no, status, version, (amount * 100)::bigint as amount_fen,
      (refunded_amount * 100)::bigint as refunded_fen, trade_no, closed_at is not null as was_closed,
      close_requested_at is not null as close_requested
    from payment_orders order by id";

const PAYMENTS: &str = "
    select id::text, order_id::text, gateway_no as trade_no, (amount * 100)::bigint as amount_fen
    from payment_transactions where action_type = 'payment' and status = 'succeeded' order by id";

const REFUNDS: &str = "
    select r.id::text, r.order_id::text, r.transaction_id::text as payment_id, r.refund_no,
      (r.refund_amount * 100)::bigint as amount_fen, r.status,
      coalesce(to_jsonb(r) ->> 'origin', 'service') as origin, r.sent_at is not null as sent,
      exists (select from payment_orders o where o.id = r.order_id and o.user_id = r.requested_by) as of_its_user,
      (extract(epoch from r.updated_at) * 1000000)::bigint as moved_at,
      t.order_id || ' ' || (t.amount * 100)::bigint || ' ' || t.status as movement
    from refund_records r left join payment_transactions t on t.id = r.id and t.action_type = 'refund'
    order by r.id";

const CASES: &str = "
    select kind, order_id::text, subject_ref as number, status <> 'resolved' as open from cases order by id";

const CALLBACKS: &str = "select payment_method as gateway, notice_id from callbacks order by id";

const WAITING: &str = "
    select encode(decode(payload->>'body', 'base64'), 'escape') from jobs where kind = 'callback' order by id";

const EVENTS: &str = "
    select event_id, type as kind, order_id::text, data from events order by seq";
