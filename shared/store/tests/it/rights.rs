//! The rights at the database: they are written down for every table, the granted rights are those that are written
//! down, and they are not wider. The end-to-end tests prove that they suffice: there every process logs in as itself.

use std::collections::BTreeSet;

use domain::{CaseId, OrderId};
use runtime::clock::Clock;
use runtime::service::Service::{self, CallbackWorker, CheckWorker, PaymentApi, PaymentCtl, RefundWorker, Relay};
use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection, PgPool};
use store::MIGRATOR;
use store::tables::hints::{Hint, hint};
use store::tables::{credentials, dead_letters, extra, orders};
use store::upkeep::{grants, retention};

/// A database in which every role has its rights.
pub async fn granted(db: &PgPool) -> PgConnection {
    let mut connection = PgConnection::connect_with(&db.connect_options()).await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    grants::take_turns(&mut tx).await.unwrap();
    for service in Service::ALL {
        grants::apply(&mut tx, *service, service.database_role()).await.unwrap();
    }
    tx.commit().await.unwrap();
    connection
}

/// A migration that creates a table must list here which roles may use it; otherwise no role may.
#[sqlx::test(migrator = "MIGRATOR")]
async fn every_table_has_its_line_and_every_column_that_is_named_exists(db: PgPool) {
    let columns = grants::columns(&mut db.acquire().await.unwrap()).await.unwrap();
    let listed: Vec<&str> = grants::TABLES.iter().map(|table| table.name).collect();
    let tables: BTreeSet<&str> = columns.keys().map(String::as_str).collect();
    assert_eq!(listed.iter().copied().collect::<BTreeSet<_>>(), tables);
    assert_eq!(listed.len(), tables.len(), "one line each");
    for table in grants::TABLES {
        for column in table.grants.iter().flat_map(|grant| grant.columns.unwrap_or_default()) {
            assert!(columns[table.name].iter().any(|known| known == column), "{}.{column}", table.name);
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_role_may_do_what_is_written_down_and_nothing_else(db: PgPool) {
    let mut connection = granted(&db).await;
    for service in Service::ALL {
        let found = grants::compare(&mut connection, *service, service.database_role()).await.unwrap();
        assert_eq!(found, grants::Difference::default(), "{service}");
    }
}

/// Rights that were granted by hand or by an earlier release are revoked.
#[sqlx::test(migrator = "MIGRATOR")]
async fn rights_that_are_no_longer_written_down_are_taken_away(db: PgPool) {
    let mut connection = granted(&db).await;
    connection.execute("grant all on payment_orders, idempotency_keys to payment_relay").await.unwrap();
    connection.execute("grant update (body) on callbacks to payment_relay").await.unwrap();
    let role = Relay.database_role();
    assert!(!grants::compare(&mut connection, Relay, role).await.unwrap().exceeding.is_empty());
    grants::apply(&mut connection, Relay, role).await.unwrap();
    assert_eq!(grants::compare(&mut connection, Relay, role).await.unwrap(), grants::Difference::default());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_start_without_the_rights_names_what_is_missing(db: PgPool) {
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect_with((*db.connect_options()).clone());
    let pool = pool.await.unwrap();
    let excess = grants::check(&pool, Relay).await.expect("the owner may do everything");
    let excess = excess.expect("and that is more than the relay needs").to_string();
    assert!(excess.contains("may also ") && excess.contains("more"), "{excess}");
    pool.execute("set role payment_relay").await.unwrap();
    let error = grants::check(&pool, Relay).await.unwrap_err().to_string();
    assert!(error.contains("user payment_relay may not delete callbacks") && error.contains("more"), "{error}");
    drop(granted(&db).await);
    assert_eq!(grants::check(&pool, Relay).await.unwrap(), None, "no more and no less");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_relay_may_remove_and_measure_what_it_has_to(db: PgPool) {
    let mut relay = granted(&db).await;
    relay.execute("set role payment_relay").await.unwrap();
    let (now, none) = (Clock::system().now(), CaseId::from_u128(0));
    retention::step_aside(&mut relay).await.unwrap();
    retention::idempotency_keys(&mut relay, now, 1).await.unwrap();
    retention::events(&mut relay, now, 1).await.unwrap();
    retention::credentials(&mut relay, now, 1).await.unwrap();
    retention::dead_letters(&mut relay, now, 1).await.unwrap();
    dead_letters::move_bytes(&mut relay, |_| None, 1).await.unwrap();
    retention::oldest(&mut relay, now).await.unwrap();
    assert_eq!(retention::sizes(&mut relay).await.unwrap().len(), grants::TABLES.len());
    // Their second half runs only where there is something.
    let filled = "reset role;
        insert into callbacks (payment_method, account, notice_id, verdict, headers, body, received_at, last_seen_at)
          values ('wechat', 'main', 'n', 'settled', '{}', '', '2020-01-01', '2020-01-01');
        insert into cases (id, kind, subject_ref, evidence, status, created_at, updated_at)
          values (lpad('1', 32, '0'), 'dead_letter', 'g', '{\"body\": \"QQ==\"}', 'resolved', '2020-01-01', '2020-01-01');
        set role payment_relay";
    relay.execute(filled).await.unwrap();
    assert_eq!(retention::callbacks(&mut relay, now, 0, 1).await.unwrap().removed, 1);
    dead_letters::move_bytes(&mut relay, |_| None, 1).await.unwrap();
    assert_eq!(retention::dead_letters(&mut relay, now, 1).await.unwrap().removed, 1);
    let step = retention::cases(&mut relay, now, none, 1).await;
    assert_eq!(step.unwrap().removed, 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_role_may_do_what_buyers_need(db: PgPool) {
    let mut connection = granted(&db).await;
    let (now, order) = (Clock::system().now(), OrderId::from_u128(7));
    for service in [PaymentApi, CallbackWorker, CheckWorker, RefundWorker, PaymentCtl] {
        let mut tx = connection.begin().await.unwrap();
        tx.execute(AssertSqlSafe(format!("set local role {}", service.database_role()))).await.unwrap();
        extra::lock(&mut tx, order).await.unwrap_or_else(|error| panic!("{service}: {error:?}"));
        extra::follow(&mut tx, &[order], now).await.unwrap_or_else(|error| panic!("{service}: {error:?}"));
    }
    connection.execute("set role payment_api").await.unwrap();
    for kind in [Hint::Back, Hint::Watched] {
        assert_eq!(hint(&mut connection, &[order], kind).await.unwrap(), []);
    }
    orders::request_close(&mut connection, order, now).await.unwrap();
    assert!(credentials::last(&mut connection, order, now).await.unwrap().is_none());
    // There is no such order, and that is what it fails for.
    let stored = credentials::StoredCredential { sealed: vec![1], obtained_at: now, valid_until: now };
    let error = credentials::store(&mut connection, order, &stored).await.unwrap_err();
    assert!(format!("{error:?}").contains("order_credentials_order_fkey"), "{error:?}");
}

/// The processes, without the operators' tool.
const PROCESSES: &[Service] = &[PaymentApi, CallbackWorker, CheckWorker, RefundWorker, Relay];

/// Statements, each with the roles that may run it. The rows make no difference, because PostgreSQL checks rights
/// first.
const STATEMENTS: &[(&str, &[Service])] = &[
    ("create table mine (id int)", &[]),
    ("create temporary table mine (id int)", &[]),
    ("create schema mine", &[]),
    ("alter table jobs add column mine int", &[]),
    ("drop table cases", &[]),
    ("truncate jobs", &[]),
    ("create index on events (type)", &[]),
    // Who bought what for how much, and where the money goes.
    ("update payment_orders set amount = 1", &[]),
    ("update payment_orders set account = 'b'", &[]),
    ("update payment_orders set user_id = 'b'", &[]),
    ("update payment_orders set prepay = '{}'", &[]),
    ("delete from payment_orders", &[]),
    ("select id from payment_orders", Service::ALL),
    ("update payment_orders set status = status where false", &[PaymentApi, CallbackWorker, CheckWorker, RefundWorker]),
    ("update payment_orders set closed_at = null where false", &[CallbackWorker, CheckWorker]),
    ("update payment_orders set trade_no = null, paid_at = null where false", &[CallbackWorker, CheckWorker]),
    ("update payment_transactions set returned_amount = 0 where false", &[CallbackWorker, CheckWorker, RefundWorker]),
    ("insert into payment_orders (id) select 'a' where false", &[PaymentApi]),
    // An order begins as pending, or closed by a function where no buyer placed it.
    ("insert into payment_orders (status) select 'paid' where false", &[]),
    ("insert into payment_orders (trade_no) select 'a' where false", &[]),
    ("insert into payment_orders (paid_at) select now() where false", &[]),
    ("insert into payment_orders (closed_at) select now() where false", &[]),
    ("insert into payment_orders (refunded_amount) select 1 where false", &[]),
    ("select create_unplaced_order('a', 'a', 1, 'wechat', 'native', 'main', now())", &[PaymentApi]),
    ("insert into payment_transactions (returned_amount) select 1 where false", &[]),
    ("update payment_transactions set amount = 1 where false", &[RefundWorker]),
    ("delete from payment_transactions", &[]),
    ("update payment_transactions set status = status where false", &[CallbackWorker, CheckWorker, RefundWorker]),
    ("update refund_records set refund_amount = 1 where false", &[RefundWorker]),
    ("update refund_records set order_id = 'b'", &[]),
    ("delete from refund_records", &[]),
    // Evidence and the outbox: written once, then only counted and marked.
    ("update callbacks set body = ''", &[]),
    ("select body from callbacks", &[]),
    ("delete from callbacks", &[Relay]),
    ("select headers from callbacks", &[]),
    ("insert into callbacks (body) select '' where false", &[CallbackWorker]),
    ("update events set data = '{}'", &[]),
    ("delete from events", &[Relay]),
    ("select data from events", &[Relay, PaymentCtl]),
    ("select event_id, published_at from events", &[PaymentApi, Relay, PaymentCtl]),
    ("select published_at from event_republishes", &[PaymentApi, PaymentCtl]),
    ("update events set published_at = null where false", &[Relay]),
    ("select republish_events('{}', 'a')", &[PaymentCtl]),
    ("insert into event_republishes (event_id) select 'a' where false", &[]),
    ("insert into events (event_id) select 'a' where false", PROCESSES),
    ("insert into events (published_at) select now() where false", &[]),
    ("insert into events (retry_at) select now() where false", &[]),
    ("insert into cases (kind) select 'a' where false", PROCESSES),
    ("insert into cases (status) select 'resolved' where false", &[CallbackWorker, CheckWorker, RefundWorker]),
    ("insert into cases (history) select '[]'::jsonb where false", &[]),
    ("insert into cases (proposed_by) select 'bob' where false", &[]),
    ("update cases set kind = 'late_payment'", &[]),
    ("delete from cases", &[Relay]),
    // A new fact reopens a case and drops what was proposed before it.
    ("update cases set proposed_by = null where false", PROCESSES),
    ("update cases set history = '[]' where false", PROCESSES),
    ("update cases set status = 'resolved' where false", PROCESSES),
    ("select end_case('a', 1, 'a', 'a', '{}')", &[PaymentCtl]),
    ("update cases set evidence = '{}' where false", PROCESSES),
    // An operator's tool looks at everything but what names the payer, and adds work; what moves money is beyond it.
    ("select prepay from payment_orders", PROCESSES),
    ("select client_ip, metadata from payment_orders", PROCESSES),
    ("select verdict from callbacks", &[PaymentApi, CallbackWorker, PaymentCtl]),
    ("select note from callbacks", &[PaymentApi, PaymentCtl]),
    ("select id from callbacks", &[PaymentApi, Relay]),
    ("select payload from jobs", PROCESSES),
    ("insert into jobs (kind) select 'callback' where false", &[PaymentApi, CallbackWorker, CheckWorker, RefundWorker]),
    // The bytes of dead letters name payers; a replay never shows them.
    ("select body from dead_letters", &[]),
    ("select job from dead_letters", &[]),
    ("select case_id from dead_letters", &[Relay, PaymentCtl]),
    ("insert into dead_letters (case_id) select 'a' where false", &[Relay]),
    ("update dead_letters set body = ''", &[]),
    ("delete from dead_letters where false", &[Relay]),
    ("select replay_dead_letter('a')", &[PaymentCtl]),
    ("update jobs set due_at = now() where false", PROCESSES),
    (
        "insert into refund_records (id) select 'a' where false",
        &[PaymentApi, CallbackWorker, CheckWorker, RefundWorker],
    ),
    (
        "insert into refund_records (status) select 'succeeded' where false",
        &[CallbackWorker, CheckWorker, RefundWorker],
    ),
    ("insert into refund_records (attempts) select 1 where false", &[]),
    // The ingress writes no state of a refund but those in front of the gateway, by functions.
    ("update refund_records set status = 'pending' where false", &[CallbackWorker, CheckWorker, RefundWorker]),
    ("update refund_records set approved_by = 'bob'", &[]),
    ("update refund_records set short_attempt = 1 where false", &[RefundWorker]),
    ("select create_refund_request('a', 'b', 'c', 'R', 1, null, 'u', now()) where false", &[PaymentApi]),
    ("select move_unsent_refund('a', 'requested', 'pending', 'bob', null, now())", &[PaymentApi]),
    ("update payment_config set buyer_refunds = 'auto' where false", &[PaymentApi]),
    ("insert into refunds_of_a_day (caller, day, amount) select 'a', now(), 1 where false", &[PaymentApi]),
    ("update refunds_of_a_day set amount = 1 where false", &[PaymentApi]),
    ("update refunds_of_a_day set caller = 'b'", &[]),
    ("delete from refunds_of_a_day", &[]),
    (
        "select count(*), min(created_at) from refund_records where status = 'requested'",
        &[PaymentApi, CallbackWorker, CheckWorker, RefundWorker, Relay, PaymentCtl],
    ),
    ("delete from jobs where false", PROCESSES),
    ("update jobs set kind = 'check'", &[]),
    // What people did is written once.
    ("insert into audit_log (subject, detail) select 'a', '{}'::jsonb where false", &[PaymentApi]),
    ("insert into audit_log (at) select now() where false", &[]),
    ("insert into audit_log (database_user) select 'a' where false", &[]),
    ("select detail from audit_log", &[PaymentApi, Relay, PaymentCtl]),
    ("update audit_log set subject = 'bob'", &[]),
    ("delete from audit_log", &[]),
    ("insert into audit_chain (n) select 1 where false", &[Relay]),
    ("update audit_chain set hash = ''", &[]),
    ("delete from audit_chain", &[]),
    // Operators make and end the keys of the merchant's backend; what a key may do stays as it was made.
    ("select digest from api_keys", &[PaymentApi, PaymentCtl]),
    ("select version from api_keys_version", &[PaymentApi, PaymentCtl]),
    ("insert into api_keys (id, state) select 'a', 'active' where false", &[PaymentCtl]),
    ("insert into api_keys (confirmed_by) select 'a' where false", &[]),
    ("insert into api_keys (last_used_at) select now() where false", &[]),
    ("update api_keys set state = 'active' where false", &[PaymentCtl]),
    ("update api_keys set digest = '' where false", &[PaymentCtl]),
    ("update api_keys set scopes = '{payments:refund}'", &[]),
    ("update api_keys set networks = '{}'", &[]),
    ("update api_keys set expires_at = null", &[]),
    ("update api_keys set proposed_by = 'bob'", &[]),
    ("update api_keys set last_used_at = now() where false", &[PaymentApi]),
    ("delete from api_keys", &[]),
    ("truncate api_keys", &[]),
    ("update api_keys_version set version = 0", &[]),
    ("insert into api_keys_version (version) values (0)", &[]),
    ("delete from api_keys_version", &[]),
    ("select record_operator_act('a', 'a', 'a', '{}')", &[PaymentCtl]),
    // The requests of frontends are the ingress's alone.
    ("select key from idempotency_keys", &[PaymentApi, Relay]),
    ("select request_hash from idempotency_keys", &[PaymentApi]),
    ("select answer from idempotency_keys", &[PaymentApi]),
    ("select route from idempotency_keys", &[PaymentApi, PaymentCtl]),
    ("delete from idempotency_keys", &[Relay]),
    // A credential is kept sealed, by the ingress alone; hints as well.
    ("select sealed from order_credentials", &[PaymentApi]),
    ("delete from order_credentials", &[Relay]),
    ("update order_credentials set order_id = 'b'", &[]),
    ("update jobs set hint_step = 0 where false", &[PaymentApi]),
    ("update payment_orders set close_requested_at = now() where false", &[PaymentApi]),
    (
        "update payment_orders set extra_state = null where false",
        &[PaymentApi, CallbackWorker, CheckWorker, RefundWorker, PaymentCtl],
    ),
    // What buyers may choose: a person decides through the ingress, and every change stays written down.
    ("update payment_config set enabled = true where false", &[PaymentApi]),
    ("update payment_config set payment_method = 'alipay'", &[]),
    ("delete from payment_config", &[]),
    ("select id from payment_config_changes", &[PaymentApi]),
    ("update payment_config_changes set changed_by = 'nobody'", &[]),
    ("delete from payment_config_changes", &[]),
    ("select paid from hourly_stats", &[PaymentApi, Relay]),
    ("update hourly_stats set paid = 0 where false", &[Relay]),
    ("delete from _sqlx_migrations", &[]),
    ("select version from _sqlx_migrations", Service::ALL),
];

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_role_is_refused_what_is_not_its_business(db: PgPool) {
    let mut connection = granted(&db).await;
    let mut wrong = Vec::new();
    for service in Service::ALL {
        for (statement, allowed) in STATEMENTS {
            let mut tx = connection.begin().await.unwrap();
            tx.execute(AssertSqlSafe(format!("set local role {}", service.database_role()))).await.unwrap();
            let done = tx.execute(*statement).await;
            let refused = done.as_ref().is_err_and(|error| {
                error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42501")
            });
            match (allowed.contains(service), &done) {
                (true, Ok(_)) => {}
                (false, Err(_)) if refused => {}
                _ => wrong.push(format!("{service}: {statement}: {done:?}")),
            }
            tx.rollback().await.unwrap();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
