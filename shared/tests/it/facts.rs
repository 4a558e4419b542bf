//! What the database itself refuses, to every role: moves that the state table lacks, and events that the books do not hold.

use shared::clock::Clock;
use shared::db::{DbError, MIGRATOR, events, grants, orders, refunds};
use shared::domain::OrderStatus::{self, Closed, Paid, PartiallyRefunded, Pending, Refunded, Refunding};
use shared::domain::{Money, OrderId, RefundId, RefundNo, TRANSITIONS, TransactionId};
use shared::event::{Event, kind};
use shared::service::Service;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

/// An order that nobody has paid yet, and its id.
async fn placed(db: &PgPool) -> String {
    let new = testkit::new_order();
    orders::create(db, std::slice::from_ref(&new)).await.unwrap();
    new.id.to_string()
}

/// As a hand writes it.
async fn set(db: impl sqlx::PgExecutor<'_>, order: &str, status: OrderStatus) -> Result<(), DbError> {
    let sql = "update payment_orders set status = $2, closed_at = coalesce(closed_at, now()), trade_no = coalesce(trade_no, 't'),
        paid_at = coalesce(paid_at, now()), refunded_amount = case $2 when 'refunded' then amount else 0 end where id = $1";
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
    // From the two unpaid states to three others each, and back: closed -> pending and four times two from the paid ones.
    assert_eq!(refused, 3 + 3 + 1 + 8);
}

/// The event of this type about this row of this order.
fn event(kind: &'static str, named: &str, order: &str) -> Event {
    let order_id = Some(OrderId::parse(order).unwrap());
    Event { event_id: format!("{kind}:{named}"), kind, order_id, data: serde_json::json!({}) }
}

/// Which constraint refuses the event; nothing is kept.
async fn refused(db: &PgPool, event: Event) -> bool {
    let mut tx = db.begin().await.unwrap();
    match constraint(events::append(&mut tx, &[event], Clock::system().now()).await).as_deref() {
        None => false,
        Some("events_tell_facts") => true,
        Some(other) => panic!("{other}"),
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_about_an_order_tells_how_it_stands(db: PgPool) {
    let (order, other) = (placed(&db).await, placed(&db).await);
    for status in [Pending, Closed, Paid, Refunding, PartiallyRefunded, Refunded] {
        let mut tx = db.begin().await.unwrap();
        sqlx::query("alter table payment_orders disable trigger user").execute(&mut *tx).await.unwrap();
        let sql = "update payment_orders set status = $2, closed_at = case $2 when 'closed' then now() end,
            trade_no = 't', paid_at = now() where id = $1";
        sqlx::query(sql).bind(&order).bind(status.as_str()).execute(&mut *tx).await.unwrap();
        sqlx::query("alter table payment_orders enable trigger user").execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let paid = refused(&db, event(kind::ORDER_PAID, &order, &order)).await;
        assert_eq!(paid, !status.was_paid(), "{status}");
        assert_eq!(refused(&db, event(kind::ORDER_CLOSED, &order, &order)).await, status != Closed, "{status}");
    }
    // Paid, and told of under a name that makes a second delivery of it.
    let longer = Event { event_id: format!("order.paid:{order}:2"), ..event(kind::ORDER_PAID, &order, &order) };
    let of_none = Event { order_id: None, ..event(kind::ORDER_PAID, &order, &order) };
    let unknown = event("order.delivered", &order, &order);
    let wrong =
        [event(kind::ORDER_PAID, &other, &other), event(kind::ORDER_PAID, &order, &other), longer, of_none, unknown];
    for event in wrong {
        let shown = format!("{event:?}");
        assert!(refused(&db, event).await, "{shown}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_event_about_a_refund_tells_how_it_stands(db: PgPool) {
    let (order, other) = (placed(&db).await, placed(&db).await);
    set(&db, &order, Paid).await.unwrap();
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
    let id = id.to_string();
    for status in ["pending", "processing", "failed", "abnormal", "succeeded"] {
        sqlx::query("update refund_records set status = $1").bind(status).execute(&db).await.unwrap();
        let failed = refused(&db, event(kind::REFUND_FAILED, &id, &order)).await;
        let succeeded = refused(&db, event(kind::REFUND_SUCCEEDED, &id, &order)).await;
        assert_eq!((failed, succeeded), (status != "failed", status != "succeeded"), "{status}");
    }
    assert!(refused(&db, event(kind::REFUND_SUCCEEDED, &id, &other)).await, "another order's");
    assert!(refused(&db, event(kind::ORDER_REFUNDED, &id, &order)).await, "the order is paid");
    set(&db, &order, Refunded).await.unwrap();
    assert!(!refused(&db, event(kind::ORDER_REFUNDED, &id, &order)).await);
    sqlx::query("update payment_orders set refunded_amount = 1.00").execute(&db).await.unwrap();
    assert!(refused(&db, event(kind::ORDER_REFUNDED, &id, &order)).await, "a part went back");
}

/// What a stolen role of the ingress could do before: deliver without a payment, and pay without a gateway.
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
        (format!("update payment_orders set refunded_amount = 12.34 where id = '{order}'"), "42501"),
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
