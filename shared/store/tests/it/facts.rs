//! What the database itself refuses to every role: moves that the state table lacks, and events without matching rows.

use domain::OrderStatus::{self, Closed, Paid, PartiallyRefunded, Pending, Refunded, Refunding};
use domain::message::event::{Event, kind};
use domain::{
    CaseId, CaseKind, Money, OrderId, REFUND_TRANSITIONS, RefundId, RefundNo, RefundStatus, TRANSITIONS, TradeNo,
    TransactionId,
};
use runtime::clock::Clock;
use runtime::service::Service;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use store::settle::events;
use store::tables::case_facts::Opened;
use store::tables::cases::NewCase;
use store::tables::orders::Order;
use store::tables::{case_facts, events as outbox, orders, refunds};
use store::upkeep::grants;
use store::{DbError, MIGRATOR};

/// An order that is not paid yet, and its id.
async fn placed(db: &PgPool) -> String {
    let new = testkit::new_order();
    orders::create(db, std::slice::from_ref(&new)).await.unwrap();
    new.id.to_string()
}

/// As a hand writes it.
async fn set(db: impl sqlx::PgExecutor<'_>, order: &str, status: OrderStatus) -> Result<(), DbError> {
    let sql = "update payment_orders set status = $2, closed_at = coalesce(closed_at, now()), trade_no = coalesce(trade_no, 't'),
        paid_at = coalesce(paid_at, now()) where id = $1";
    sqlx::query(sql).bind(order).bind(status.as_str()).execute(db).await?;
    Ok(())
}

fn constraint(done: Result<(), DbError>) -> Option<String> {
    match done {
        Ok(()) => None,
        Err(DbError::Constraint(name)) => Some(name),
        Err(other) => panic!("{other:?}"),
    }
}

/// The states between which an order moves with its refunds.
const WITH_MONEY: [OrderStatus; 4] = [Paid, Refunding, PartiallyRefunded, Refunded];

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_order_makes_the_moves_of_the_state_table_and_no_other(db: PgPool) {
    let order = placed(&db).await;
    let mut refused = 0;
    for from in OrderStatus::ALL {
        for to in OrderStatus::ALL {
            let mut tx = db.begin().await.unwrap();
            sqlx::query("alter table payment_orders disable trigger user").execute(&mut *tx).await.unwrap();
            set(&mut *tx, &order, *from).await.unwrap();
            sqlx::query("alter table payment_orders enable trigger user").execute(&mut *tx).await.unwrap();
            let listed = TRANSITIONS.iter().any(|(a, _, b)| (a, b) == (from, to));
            let by_refunds = WITH_MONEY.contains(from) && WITH_MONEY.contains(to);
            let refusal = constraint(set(&mut *tx, &order, *to).await);
            let may = listed || by_refunds || from == to;
            assert_eq!(refusal.as_deref(), (!may).then_some("payment_orders_moves"), "{from} -> {to}");
            refused += usize::from(!may);
        }
    }
    // From the two unpaid states to three others each, and back: closed -> pending and four times two from the paid
    // ones.
    assert_eq!(refused, 3 + 3 + 1 + 8);
}

/// Whether the database refuses the event; nothing is kept.
async fn refused(db: &PgPool, event: &Event) -> bool {
    let mut tx = db.begin().await.unwrap();
    let refusal = constraint(outbox::append(&mut tx, std::slice::from_ref(event), Clock::system().now()).await);
    match refusal.as_deref() {
        None => false,
        Some("events_tell_facts") => true,
        Some(other) => panic!("{other}"),
    }
}

/// The same event with one member of its data changed, for each member that a consumer goes by; under ids that name
/// more than the row; and about another order.
fn distorted(event: &Event, members: &[&str]) -> Vec<Event> {
    let mut all: Vec<Event> = members
        .iter()
        .map(|member| {
            let mut other = event.clone();
            assert!(other.data[member].is_string(), "{member}");
            other.data[member] = "9.99".into();
            other
        })
        .collect();
    let other = OrderId::from_u128(99);
    all.push(Event { order_id: Some(other), ..event.clone() });
    all.push(Event { order_id: None, ..event.clone() });
    all.push(Event { event_id: format!("{}:2", event.event_id), ..event.clone() });
    all.push(Event { event_id: format!("{} ", event.event_id), ..event.clone() });
    all.push(Event { event_id: event.event_id.replacen(':', "::", 1), ..event.clone() });
    all.push(Event { data: serde_json::json!({}), ..event.clone() });
    all.push(Event { kind: "order.delivered", ..event.clone() });
    // A case's event under the id of another one would keep the true one from being inserted.
    all.push(Event { kind: kind::CASE_OPENED, ..event.clone() });
    all.push(Event { kind: kind::CASE_REOPENED, data: serde_json::json!({ "case_id": "1" }), ..event.clone() });
    all
}

const OF_ORDER: [&str; 4] = ["order_id", "order_no", "user_id", "amount"];

/// Writes a state by hand, as the owner of the tables.
async fn make_up(db: &PgPool, sql: &str, order: &str, status: &str) {
    let mut tx = db.begin().await.unwrap();
    sqlx::query("alter table payment_orders disable trigger user").execute(&mut *tx).await.unwrap();
    sqlx::query(AssertSqlSafe(sql.to_owned())).bind(order).bind(status).execute(&mut *tx).await.unwrap();
    sqlx::query("alter table payment_orders enable trigger user").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

async fn read(db: &PgPool, order: &str) -> Order {
    orders::get(db, OrderId::parse(order).unwrap()).await.unwrap().unwrap()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_about_an_order_tells_how_it_stands(db: PgPool) {
    let order = placed(&db).await;
    let (trade, now) = (TradeNo::parse("t").unwrap(), Clock::system().now());
    for status in [Pending, Closed, Paid, Refunding, PartiallyRefunded, Refunded] {
        let sql = "update payment_orders set status = $2, closed_at = case $2 when 'closed' then now() end,
            trade_no = 't', paid_at = now() where id = $1";
        make_up(&db, sql, &order, status.as_str()).await;
        let row = read(&db, &order).await;
        let (paid, closed) = (events::order_paid(&row, &trade, now), events::order_closed(&row, now));
        assert_eq!(refused(&db, &paid).await, !status.was_paid(), "{status}");
        assert_eq!(refused(&db, &closed).await, status != Closed, "{status}");
        for (event, members) in [(paid, &[&OF_ORDER[..], &["trade_no"]].concat()), (closed, &OF_ORDER.to_vec())] {
            for distorted in distorted(&event, members) {
                assert!(refused(&db, &distorted).await, "{status}: {distorted:?}");
            }
        }
    }
}

/// Writes the state of every refund by hand, as the owner of the tables.
async fn set_refund(db: &PgPool, status: &str) {
    let mut tx = db.begin().await.unwrap();
    sqlx::query("alter table refund_records disable trigger user").execute(&mut *tx).await.unwrap();
    sqlx::query("update refund_records set status = $1").bind(status).execute(&mut *tx).await.unwrap();
    sqlx::query("alter table refund_records enable trigger user").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

/// A paid order with a refund of 0.01 yuan in this state.
async fn refund_in(db: &PgPool, status: &str) -> String {
    let order = placed(db).await;
    set(db, &order, Paid).await.unwrap();
    let refund = "insert into refund_records (id, order_id, transaction_id, refund_no, refund_amount, status, requested_by, created_at, updated_at)
        values (lpad('8', 32, '0'), $1, $1, 'R', 0.01, $2, 'u', now(), now())";
    sqlx::query(refund).bind(&order).bind(status).execute(db).await.unwrap();
    order
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_makes_the_moves_of_the_state_table_and_no_other(db: PgPool) {
    refund_in(&db, "pending").await;
    for from in RefundStatus::ALL {
        for to in RefundStatus::ALL {
            set_refund(&db, from.as_str()).await;
            let moved = sqlx::query("update refund_records set status = $1").bind(to.as_str()).execute(&db).await;
            let refusal = constraint(moved.map(drop).map_err(DbError::from));
            let may = from == to || REFUND_TRANSITIONS.iter().any(|(a, _, b)| (a, b) == (from, to));
            assert_eq!(refusal.as_deref(), (!may).then_some("refund_records_moves"), "{from} -> {to}");
        }
    }
}

/// The ingress may call this function, so it must make no other move for any caller.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_function_of_the_ingress_moves_refunds_that_were_not_sent_and_no_other(db: PgPool) {
    use RefundStatus::{Declined, Pending, Requested, Withdrawn};
    refund_in(&db, "requested").await;
    let allowed = [
        (Requested, Requested),
        (Requested, Pending),
        (Requested, Declined),
        (Requested, Withdrawn),
        (Pending, Withdrawn),
    ];
    for is in RefundStatus::ALL {
        for from in RefundStatus::ALL {
            for to in RefundStatus::ALL {
                set_refund(&db, is.as_str()).await;
                let moved: i64 =
                    sqlx::query_scalar("select move_unsent_refund(lpad('8', 32, '0'), $1, $2, 'a', null, now())")
                        .bind(from.as_str())
                        .bind(to.as_str())
                        .fetch_one(&db)
                        .await
                        .unwrap();
                let may = is == from && allowed.contains(&(*from, *to));
                assert_eq!(moved, i64::from(may), "{is}: {from} -> {to}");
            }
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_order_has_one_open_request(db: PgPool) {
    let order = refund_in(&db, "requested").await;
    let second = "select create_refund_request(lpad('9', 32, '0'), $1, $1, 'R2', 0.01, null, 'u', now())";
    let done = sqlx::query(second).bind(&order).execute(&db).await.map(drop).map_err(DbError::from);
    assert_eq!(constraint(done).as_deref(), Some("refund_records_one_request"));
    set_refund(&db, "declined").await;
    sqlx::query(second).bind(&order).execute(&db).await.unwrap();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_about_a_refund_tells_how_it_stands(db: PgPool) {
    let order = placed(&db).await;
    set(&db, &order, Paid).await.unwrap();
    sqlx::query("update payment_transactions set status = 'succeeded', gateway_no = 't'").execute(&db).await.unwrap();
    let (id, now) = (RefundId::from_u128(8), Clock::system().now());
    let new = refunds::NewRefund {
        id,
        order_id: OrderId::parse(&order).unwrap(),
        // The payment of an order has its id.
        transaction_id: TransactionId::parse(&order).unwrap(),
        refund_no: RefundNo::parse("RF_1").unwrap(),
        amount: Money::from_yuan("12.34").unwrap(),
        reason: None,
        requested_by: "u1".to_owned(),
    };
    refunds::create(&mut db.acquire().await.unwrap(), &new, now).await.unwrap();
    let members = [&OF_ORDER[..], &["refund_id", "refund_no", "refund_amount", "trade_no"]].concat();
    let reported = |row: &Order, refund: &refunds::Refund| {
        [
            ("requested", events::refund_requested(row, refund)),
            ("declined", events::refund_declined(row, refund, "why")),
            ("withdrawn", events::refund_withdrawn(row, refund)),
            ("abnormal", events::refund_abnormal(row, refund, "why")),
        ]
    };
    for status in ["requested", "pending", "processing", "failed", "declined", "withdrawn", "abnormal", "succeeded"] {
        set_refund(&db, status).await;
        let refund = refunds::get(&db, id).await.unwrap().unwrap();
        let row = read(&db, &order).await;
        let failed = events::refund_failed(&row, &refund, "why");
        let succeeded = events::refund_succeeded(&row, &refund, now);
        assert_eq!(refused(&db, &failed).await, status != "failed", "{status}");
        assert_eq!(refused(&db, &succeeded).await, status != "succeeded", "{status}");
        for event in distorted(&failed, &members).iter().chain(&distorted(&succeeded, &members)) {
            assert!(refused(&db, event).await, "{status}: {event:?}");
        }
        for (of, event) in reported(&row, &refund) {
            assert_eq!(refused(&db, &event).await, status != of, "{status}: {of}");
            for event in distorted(&event, &members) {
                assert!(refused(&db, &event).await, "{status}: {event:?}");
            }
        }
        assert!(refused(&db, &events::order_refunded(&row, &refund)).await, "the order is paid");
    }
    set(&db, &order, Refunded).await.unwrap();
    sqlx::query("update payment_orders set refunded_amount = amount").execute(&db).await.unwrap();
    let refund = refunds::get(&db, id).await.unwrap().unwrap();
    let whole = events::order_refunded(&read(&db, &order).await, &refund);
    assert!(!refused(&db, &whole).await);
    for event in distorted(&whole, &members) {
        assert!(refused(&db, &event).await, "{event:?}");
    }
    sqlx::query("update payment_orders set refunded_amount = 1.00").execute(&db).await.unwrap();
    assert!(refused(&db, &whole).await, "a part went back");
}

/// A payment that its order was not owed has events of its own, and none of them tells of the order's own payment.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_about_an_extra_payment_tells_of_no_own_one(db: PgPool) {
    let order = placed(&db).await;
    set(&db, &order, Paid).await.unwrap();
    sqlx::query("update payment_transactions set status = 'succeeded', gateway_no = 't2'").execute(&db).await.unwrap();
    let now = Clock::system().now();
    let new = refunds::NewRefund {
        id: RefundId::from_u128(8),
        order_id: OrderId::parse(&order).unwrap(),
        transaction_id: TransactionId::parse(&order).unwrap(),
        refund_no: RefundNo::parse("RF_1").unwrap(),
        amount: Money::from_yuan("12.34").unwrap(),
        reason: None,
        requested_by: "u1".to_owned(),
    };
    refunds::create(&mut db.acquire().await.unwrap(), &new, now).await.unwrap();
    let members = [&OF_ORDER[..], &["refund_id", "refund_no", "refund_amount", "trade_no"]].concat();
    for status in ["pending", "failed", "succeeded"] {
        set_refund(&db, status).await;
        let refund = refunds::get(&db, new.id).await.unwrap().unwrap();
        let row = read(&db, &order).await;
        let failed = events::refund_failed(&row, &refund, "why");
        let succeeded = events::refund_succeeded(&row, &refund, now);
        assert_eq!((failed.kind, succeeded.kind), (kind::EXTRA_PAYMENT_REFUND_FAILED, kind::EXTRA_PAYMENT_REFUNDED));
        assert_eq!(refused(&db, &failed).await, status != "failed", "{status}");
        assert_eq!(refused(&db, &succeeded).await, status != "succeeded", "{status}");
        for event in distorted(&failed, &members).iter().chain(&distorted(&succeeded, &members)) {
            assert!(refused(&db, event).await, "{status}: {event:?}");
        }
    }
    let row = read(&db, &order).await;
    let data = serde_json::json!({
        "order_id": row.id.to_string(), "order_no": row.order_no.as_str(), "user_id": row.user_id.as_str(),
        "amount": row.amount.to_string(), "payment_id": row.id.to_string(), "trade_no": "t2",
        "payment_amount": "12.34",
    });
    let received = kind::EXTRA_PAYMENT_RECEIVED;
    let received = Event { event_id: format!("{received}:{}", row.id), kind: received, order_id: Some(row.id), data };
    let refund = refunds::get(&db, new.id).await.unwrap().unwrap();
    let returned = events::refund_succeeded(&row, &refund, now);
    assert!(!refused(&db, &received).await);
    for event in distorted(&received, &[&OF_ORDER[..], &["payment_id", "trade_no", "payment_amount"]].concat()) {
        assert!(refused(&db, &event).await, "{event:?}");
    }
    // The trade becomes the order's own.
    let own = "update payment_orders set trade_no = 't2' where id = $1 and $2 <> ''";
    make_up(&db, own, &order, "paid").await;
    assert!(refused(&db, &received).await && refused(&db, &returned).await);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_about_a_case_names_a_case(db: PgPool) {
    let order = placed(&db).await;
    let case = NewCase {
        id: CaseId::from_u128(7),
        kind: CaseKind::LatePayment,
        order_id: Some(OrderId::parse(&order).unwrap()),
        subject_ref: "t".to_owned(),
        evidence: serde_json::json!({}),
    };
    let now = Clock::system().now();
    let opened = case_facts::open(&mut db.acquire().await.unwrap(), &[case], now).await.unwrap();
    let again = Opened { reopened_as: Some(3), ..opened[0].clone() };
    for event in [events::case_opened(&opened[0]), events::case_opened(&again)] {
        assert!(!refused(&db, &event).await, "{event:?}");
        let unknown = Event { event_id: event.event_id.replacen("000", "001", 1), ..event.clone() };
        let of_none = Event { order_id: None, ..event.clone() };
        let longer = Event { event_id: format!("{}:9:9", event.event_id), ..event.clone() };
        let other = Event { data: serde_json::json!({ "case_id": order }), ..event.clone() };
        for event in [unknown, of_none, longer, other] {
            assert!(refused(&db, &event).await, "{event:?}");
        }
    }
}

/// A returned amount that no refund returned would close an order to further refunds, or make it look returned.
#[sqlx::test(migrator = "MIGRATOR")]
async fn no_more_went_back_than_refunds_returned_and_versions_rise_one_by_one(db: PgPool) {
    let order = placed(&db).await;
    set(&db, &order, Paid).await.unwrap();
    let returned = "update payment_orders set refunded_amount = 0.01 where id = $1";
    let done = sqlx::query(returned).bind(&order).execute(&db).await.map(drop).map_err(DbError::from);
    assert_eq!(constraint(done).as_deref(), Some("payment_orders_returned"));
    let refund = "insert into refund_records (id, order_id, transaction_id, refund_no, refund_amount, status, requested_by, created_at, updated_at)
        values (lpad('8', 32, '0'), $1, $1, 'R', 0.01, 'succeeded', 'u', now(), now())";
    sqlx::query(refund).bind(&order).execute(&db).await.unwrap();
    sqlx::query(returned).bind(&order).execute(&db).await.unwrap();
    let jump = "update payment_orders set version = 9223372036854775807 where id = $1";
    let done = sqlx::query(jump).bind(&order).execute(&db).await.map(drop).map_err(DbError::from);
    assert_eq!(constraint(done).as_deref(), Some("payment_orders_moves"));
}

/// A role that may create temporary tables cannot replace ours with them.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_temporary_table_is_no_fact(db: PgPool) {
    let order = placed(&db).await;
    let row = read(&db, &order).await;
    let paid = events::order_paid(&row, &TradeNo::parse("t").unwrap(), Clock::system().now());
    let mut connection = PgConnection::connect_with(&db.connect_options()).await.unwrap();
    for sql in [
        "create temporary table payment_orders as select * from payment_orders",
        "update pg_temp.payment_orders set status = 'paid', trade_no = 't'",
        "set search_path = pg_temp, public",
    ] {
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }
    let data = serde_json::to_string(&paid.data).unwrap();
    let insert = "insert into public.events (event_id, type, order_id, data, occurred_at) values ($1, 'order.paid', $2, $3::jsonb, now())";
    let done = sqlx::query(insert).bind(&paid.event_id).bind(&order).bind(data).execute(&mut connection).await;
    assert_eq!(constraint(done.map(drop).map_err(DbError::from)).as_deref(), Some("events_tell_facts"));
}

/// What a stolen role of the ingress could do before: deliver without a payment, and mark an order paid without a
/// gateway.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_role_of_the_ingress_makes_no_order_paid(db: PgPool) {
    let order = placed(&db).await;
    let mut connection = PgConnection::connect_with(&db.connect_options()).await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    grants::apply(&mut tx, Service::PaymentApi, Service::PaymentApi.database_role()).await.unwrap();
    tx.commit().await.unwrap();
    let columns =
        "id, user_id, order_no, product_type, subject, amount, payment_method, scene, account, expires_at, prepay,
        created_at, updated_at";
    let row = "'ff', 'u', 'n', 'p', 's', 1, 'alipay', 'page', 'main', now(), '{}', now(), now()";
    let deliver = format!(
        "insert into events (event_id, type, order_id, data, occurred_at) values ('order.paid:{order}', 'order.paid', '{order}', '{{}}', now())"
    );
    let attempts = [
        (deliver, "23514"),
        (format!("update payment_orders set status = 'paid' where id = '{order}'"), "23514"),
        (format!("update payment_orders set status = 'closed' where id = '{order}'"), "23514"),
        (
            format!("update payment_orders set status = 'paid', trade_no = 't', paid_at = now() where id = '{order}'"),
            "42501",
        ),
        (format!("update payment_orders set refunded_amount = 12.34 where id = '{order}'"), "23514"),
        (
            format!(
                "insert into payment_orders ({columns}, status, trade_no, paid_at) values ({row}, 'paid', 't', now())"
            ),
            "42501",
        ),
        ("alter table payment_orders disable trigger user".to_owned(), "42501"),
        ("set session_replication_role = replica".to_owned(), "42501"),
    ];
    for (sql, code) in attempts {
        let mut tx = connection.begin().await.unwrap();
        sqlx::query("set local role payment_api").execute(&mut *tx).await.unwrap();
        let error = sqlx::query(AssertSqlSafe(sql.clone())).execute(&mut *tx).await.unwrap_err();
        let found = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        assert_eq!(found.as_deref(), Some(code), "{sql}: {error}");
    }
}
