//! Every row about one order, and the laws that hold for every fact about it.

use std::collections::HashSet;

use domain::{Money, OrderId, REFUND_TRANSITIONS, RefundStatus, TRANSITIONS, Verdict, status_by_refunds};
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::orders::{self, Order};
use store::tables::refunds::{self, Refund};

/// Every row about one order.
pub struct Books {
    pub order: Order,
    pub refunds: Vec<Refund>,
    rows: Value,
}

/// How one fact changed the books, and how its repeat changed them.
pub struct Cell {
    pub before: Books,
    pub verdict: Verdict,
    pub after: Books,
    pub again: Verdict,
    pub last: Books,
    /// It is only a hint to query the gateway.
    pub hint: bool,
}

impl Books {
    pub async fn read(db: &PgPool, id: OrderId) -> Books {
        let sql = "select jsonb_build_object(
            'orders', (select jsonb_agg(to_jsonb(o)) from payment_orders o where id = $1),
            -- What the gateway states of all returns is remembered; it moves nothing.
            'transactions', (select jsonb_agg(to_jsonb(t) - 'returned_amount' order by id) from payment_transactions t where order_id = $1),
            'refunds', (select jsonb_agg(to_jsonb(r) order by id) from refund_records r where order_id = $1),
            'events', (select jsonb_agg(to_jsonb(e) order by seq) from events e where order_id = $1),
            'cases', (select jsonb_agg(to_jsonb(c) order by id) from cases c where order_id = $1),
            'jobs', (select jsonb_agg(to_jsonb(j) order by id) from jobs j
                     where ref_id = $1 or ref_id in (select id from refund_records where order_id = $1)))";
        Books {
            order: orders::get(db, id).await.unwrap().unwrap(),
            refunds: refunds::of_order(db, id).await.unwrap(),
            rows: sqlx::query_scalar(sql).bind(id.to_string()).fetch_one(db).await.unwrap(),
        }
    }

    pub fn rows(&self, table: &str) -> &[Value] {
        self.rows[table].as_array().map_or(&[], Vec::as_slice)
    }

    /// The rows that `before` did not have.
    pub fn new_rows(&self, before: &Books, table: &str) -> Vec<&Value> {
        let key = if table == "events" { "seq" } else { "id" };
        let old: HashSet<String> = before.rows(table).iter().map(|row| row[key].to_string()).collect();
        self.rows(table).iter().filter(|row| !old.contains(&row[key].to_string())).collect()
    }

    /// The job of this kind, of the order or of a refund.
    pub fn job(&self, kind: &str, id: &str) -> Option<&Value> {
        self.rows("jobs").iter().find(|job| job["kind"] == kind && job["ref_id"] == id)
    }

    /// Whether these rows stand in `later` as they are here.
    fn stand_in(&self, later: &Books, table: &str) -> bool {
        self.rows(table).iter().all(|row| later.rows(table).contains(row))
    }

    /// After payment the status follows from the refunds of the order's own payment.
    fn follows_its_refunds(&self) -> bool {
        let order = &self.order;
        let own: Vec<&Refund> = self.refunds.iter().filter(|r| Some(&r.trade_no) == order.trade_no.as_ref()).collect();
        let fen = own.iter().filter(|r| r.status == RefundStatus::Succeeded).map(|r| r.amount.fen()).sum();
        let returned = Money::from_fen(fen).unwrap();
        let in_flight = own.iter().any(|r| r.status.in_flight());
        (order.status, order.refunded_amount) == (status_by_refunds(in_flight, returned, order.amount), returned)
    }
}

impl Books {
    /// The orders without what they show of money that they were not owed, which follows from other tables.
    pub fn own_orders(&self) -> Vec<Value> {
        let mut orders = self.rows("orders").to_vec();
        for order in orders.iter_mut().filter_map(Value::as_object_mut) {
            for shown in ["extra_state", "extra_amount", "version", "updated_at"] {
                order.remove(shown);
            }
        }
        orders
    }
}

impl Cell {
    /// What holds in every cell.
    pub fn obeys_the_laws(&self, place: &str) {
        self.moves_are_in_the_tables(place);
        self.only_settled_moves(place);
        self.twice_is_once(place);
        for kind in ["order.paid", "order.closed", "order.refunded"] {
            let reported = self.last.rows("events").iter().filter(|event| event["type"] == kind).count();
            assert!(reported <= 1, "{place}: {kind} is told {reported} times");
        }
        self.open_cases_are_reported(place);
    }

    fn moves_are_in_the_tables(&self, place: &str) {
        let (from, to) = (self.before.order.status, self.after.order.status);
        if to.was_paid() {
            assert!(self.after.follows_its_refunds(), "{place}: {to} does not follow from the refunds");
        }
        let allowed = from == to || from.was_paid() && to.was_paid();
        assert!(allowed || TRANSITIONS.iter().any(|(f, _, t)| (*f, *t) == (from, to)), "{place}: {from} to {to}");
        for old in &self.before.refunds {
            let new = self.after.refunds.iter().find(|new| new.id == old.id).expect("no refund is ever deleted");
            let allowed = old.status == new.status || refund_moves(old.status).contains(&new.status);
            assert!(allowed, "{place}: a refund from {} to {}", old.status, new.status);
        }
    }

    /// Another verdict leaves evidence and cases. `not_pending` notes the money too, and what the policy gives back of
    /// it; `unknown_refund` has a refund that was given up asked about, should it be the one.
    fn only_settled_moves(&self, place: &str) {
        let (before, after) = (&self.before, &self.after);
        match self.verdict {
            Verdict::Settled => return assert!(before.rows != after.rows, "{place}: settled, and nothing was"),
            Verdict::Ignored => return assert_eq!(before.rows, after.rows, "{place}"),
            _ => {}
        }
        assert_eq!(before.own_orders(), after.own_orders(), "{place}");
        for table in ["transactions", "refunds", "jobs", "cases", "events"] {
            let queried =
                table == "jobs" && (self.verdict == Verdict::UnknownRefund || self.queries_before_fulfilling());
            assert!(queried || before.stand_in(after, table), "{place}: {table} that were there have changed");
        }
        let reported = after.new_rows(before, "events");
        let new_payments = after.new_rows(before, "transactions");
        let is_new = |event: &Value| new_payments.iter().any(|payment| payment["id"] == event["data"]["payment_id"]);
        let allowed = |event: &&Value| match event["type"].as_str() {
            Some("case.opened") => true,
            Some("extra_payment.received") => is_new(event),
            _ => false,
        };
        assert!(reported.iter().all(allowed), "{place}: {reported:?}");
        let noted = ["transactions", "refunds", "jobs"].map(|table| after.new_rows(before, table).len());
        assert!(self.verdict == Verdict::NotPending || noted == [0; 3], "{place}: {noted:?}");
    }

    /// The policy is `fulfil`, and a notice alone is no proof that the money is still there: the check is brought
    /// forward.
    fn queries_before_fulfilling(&self) -> bool {
        let policy = |case: &&Value| case["evidence"]["policy"] == "fulfil" && case["status"] == "open";
        self.verdict == Verdict::NotPending && self.after.new_rows(&self.before, "cases").iter().any(policy)
    }

    fn twice_is_once(&self, place: &str) {
        if self.hint && self.verdict == Verdict::Settled {
            // A hint asks each time; the job is brought forward, and nothing else.
            let tables = ["orders", "transactions", "refunds", "cases", "events"];
            assert!(tables.iter().all(|table| self.before.rows[table] == self.last.rows[table]), "{place}");
            return assert_eq!(self.again, Verdict::Settled, "{place}");
        }
        let tables = ["orders", "transactions", "refunds", "cases", "events", "jobs"];
        for table in tables.iter().filter(|table| **table != "jobs" || self.verdict != Verdict::UnknownRefund) {
            let (after, last) = (&self.after.rows[table], &self.last.rows[table]);
            assert_eq!(after, last, "{place}: the second time changed {table}");
        }
        let no_news = matches!(self.again, Verdict::Duplicate | Verdict::Ignored);
        assert!(no_news || (self.again == self.verdict && self.verdict != Verdict::Settled), "{place}: {}", self.again);
    }

    /// Each case that waits for a person has one event; one that a rule has decided has none.
    fn open_cases_are_reported(&self, place: &str) {
        let (before, after) = (&self.before, &self.after);
        let open = after.new_rows(before, "cases").into_iter().filter(|case| case["status"] == "open");
        let open: Vec<Value> = open.map(|case| json!([case["id"], case["kind"]])).collect();
        let reported = after.new_rows(before, "events").into_iter().filter(|event| event["type"] == "case.opened");
        let reported: Vec<Value> =
            reported.map(|event| json!([event["data"]["case_id"], event["data"]["kind"]])).collect();
        assert_eq!(open, reported, "{place}");
    }

    /// The new events but those of cases, then the new cases.
    pub fn news(&self) -> Vec<String> {
        let events =
            self.after.new_rows(&self.before, "events").into_iter().map(|event| event["type"].as_str().unwrap());
        let mut lines: Vec<String> = events.filter(|kind| *kind != "case.opened").map(str::to_owned).collect();
        for case in self.after.new_rows(&self.before, "cases") {
            lines.push(format!("case {}", case["kind"].as_str().unwrap()));
            if case["status"] == "resolved" {
                lines.push("(resolved)".to_owned());
            }
        }
        lines
    }

    /// The second verdict, where it is another.
    pub fn again(&self) -> Option<String> {
        (self.again != self.verdict).then(|| format!("again: {}", self.again))
    }
}

/// Where one fact can bring a refund: by one move, or by two when it proves that the refund was sent.
fn refund_moves(from: RefundStatus) -> Vec<RefundStatus> {
    let one = |from: RefundStatus| REFUND_TRANSITIONS.iter().filter(move |(f, ..)| *f == from).map(|(_, _, to)| *to);
    match from {
        RefundStatus::Pending => one(from).flat_map(one).collect(),
        _ => one(from).collect(),
    }
}
