//! The database and the code agree: names under checks, migrations, indexes.

use std::str::FromStr;

use domain::{
    ApiKeyId, ApiKeyState, BuyerRefunds, CaseId, CaseKind, CaseStatus, KeyEnvironment, OrderId, OrderStatus,
    PaymentMethod, RefundId, RefundOrigin, RefundStatus, Scene, Scope, TransactionId, Verdict,
};
use sqlx::postgres::PgHasArrayType;
use sqlx::{Encode, PgPool, Postgres, Type};
use store::MIGRATOR;
use store::upkeep::schema::{MigrationError, SchemaError};

use crate::pool::url_of;

/// The quoted names in a check constraint, in the order of the definition.
async fn names_under(db: &PgPool, constraint: &str) -> Vec<String> {
    let definition: String =
        sqlx::query_scalar("select pg_get_constraintdef(oid) from pg_constraint where conname = $1")
            .bind(constraint)
            .fetch_one(db)
            .await
            .unwrap();
    definition.split('\'').skip(1).step_by(2).map(str::to_owned).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_checks_of_the_database_name_what_the_enums_name(db: PgPool) {
    let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let statuses: Vec<_> = OrderStatus::ALL.iter().map(|s| s.as_str()).collect();
    assert_eq!(names_under(&db, "payment_orders_status").await, names(&statuses));
    let refunds: Vec<_> = RefundStatus::ALL.iter().map(|s| s.as_str()).collect();
    assert_eq!(names_under(&db, "refund_records_status").await, names(&refunds));
    let origins: Vec<_> = RefundOrigin::ALL.iter().map(|origin| origin.as_str()).collect();
    assert_eq!(names_under(&db, "refund_records_origin").await, names(&origins));
    let modes: Vec<_> = BuyerRefunds::ALL.iter().map(|mode| mode.as_str()).collect();
    assert_eq!(names_under(&db, "payment_config_buyer_refunds").await, names(&modes));
    let methods: Vec<_> = PaymentMethod::ALL.iter().map(|m| m.as_str()).collect();
    assert_eq!(names_under(&db, "payment_orders_method").await, names(&methods));
    assert_eq!(names_under(&db, "payment_config_method").await, names(&methods));
    let scenes: Vec<_> = Scene::ALL.iter().map(|s| s.as_str()).collect();
    assert_eq!(names_under(&db, "payment_config_scenes").await, names(&scenes));
    let verdicts: Vec<_> = Verdict::ALL.iter().map(|v| v.as_str()).collect();
    assert_eq!(names_under(&db, "callbacks_verdict").await, names(&verdicts));
    let kinds: Vec<_> = CaseKind::ALL.iter().map(|k| k.as_str()).collect();
    assert_eq!(names_under(&db, "cases_kind").await, names(&kinds));
    let stages: Vec<_> = CaseStatus::ALL.iter().map(|s| s.as_str()).collect();
    assert_eq!(names_under(&db, "cases_status").await, names(&stages));
    let environments: Vec<_> = KeyEnvironment::ALL.iter().map(|environment| environment.as_str()).collect();
    assert_eq!(names_under(&db, "api_keys_environment").await, names(&environments));
    let stages: Vec<_> = ApiKeyState::ALL.iter().map(|state| state.as_str()).collect();
    assert_eq!(names_under(&db, "api_keys_state").await, names(&stages));
    let scopes: Vec<_> = Scope::ALL.iter().filter(|scope| !scope.of_people()).map(|scope| scope.as_str()).collect();
    assert_eq!(names_under(&db, "api_keys_scopes").await, names(&scopes));
    assert!(OrderStatus::from_str("PAID").is_err());
}

/// A later release has migrated this database.
async fn is_migrated_further(db: &PgPool, version: i64, description: &str) {
    let sql = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values ($1, $2, true, '', 0)";
    sqlx::query(sql).bind(version).bind(description).execute(db).await.unwrap();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_database_that_is_newer_is_used_until_it_says_that_this_build_is_too_old(db: PgPool) {
    assert_eq!(store::upkeep::schema::check_schema(&db).await.unwrap(), 0);
    is_migrated_further(&db, 9997, "a column more").await;
    is_migrated_further(&db, 9998, "contract from 0001 drop what nobody used").await;
    assert_eq!(store::upkeep::schema::check_schema(&db).await.unwrap(), 2);
    assert_eq!(
        store::upkeep::schema::migrate(&url_of(&db)).await.unwrap(),
        2,
        "the command of a build that was rolled back does nothing"
    );

    is_migrated_further(&db, 9999, "contract from 9997 drop the old column").await;
    let newest = MIGRATOR.iter().last().unwrap().version;
    let error = store::upkeep::schema::check_schema(&db).await.unwrap_err();
    assert!(
        matches!(error, SchemaError::TooOld { migration: 9999, needs: 9997, newest: known } if known == newest),
        "{error:?}"
    );
    let refused = store::upkeep::schema::migrate(&url_of(&db)).await.unwrap_err();
    assert!(matches!(refused, MigrationError::Schema(SchemaError::TooOld { .. })), "{refused:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_database_that_is_older_or_another_is_named(db: PgPool) {
    is_migrated_further(&db, 0, "of something else").await;
    assert!(matches!(store::upkeep::schema::check_schema(&db).await, Err(SchemaError::Unknown(0))));
    sqlx::query("delete from _sqlx_migrations where version in (0, 1)").execute(&db).await.unwrap();
    assert!(matches!(store::upkeep::schema::check_schema(&db).await, Err(SchemaError::Missing(1))));
    sqlx::query("drop table _sqlx_migrations").execute(&db).await.unwrap();
    assert!(matches!(store::upkeep::schema::check_schema(&db).await, Err(SchemaError::Missing(1))));
}

#[sqlx::test]
async fn an_empty_database_is_migrated_once(db: PgPool) {
    for _ in 0..2 {
        assert_eq!(store::upkeep::schema::migrate(&url_of(&db)).await.unwrap(), 0);
    }
    assert_eq!(store::upkeep::schema::check_schema(&db).await.unwrap(), 0);
}

/// A release from before migration 0031 writes the old name alone, a newer one the new name.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_case_of_either_release_has_both_names_of_its_subject(db: PgPool) {
    let older = "insert into cases (id, kind, gateway_no, evidence, created_at, updated_at)
                 values ('older', 'dead_letter', 'about older', '{}', now(), now())";
    let newer = "insert into cases (id, kind, subject_ref, evidence, created_at, updated_at)
                 values ('newer', 'dead_letter', 'about newer', '{}', now(), now())";
    for insert in [older, newer] {
        sqlx::raw_sql(insert).execute(&db).await.unwrap();
    }
    let names = "select gateway_no || ', ' || subject_ref from cases order by id desc";
    let names: Vec<String> = sqlx::query_scalar(names).fetch_all(&db).await.unwrap();
    assert_eq!(names, ["about older, about older", "about newer, about newer"]);

    let nameless = "insert into cases (id, kind, evidence, created_at, updated_at)
                    values ('n', 'dead_letter', '{}', now(), now())";
    assert!(sqlx::raw_sql(nameless).execute(&db).await.is_err(), "a case names its subject");
    let parted = "update cases set gateway_no = 'another' where id = 'newer'";
    assert!(sqlx::raw_sql(parted).execute(&db).await.is_err(), "both names hold the same text");
}

/// Runs some of the migrations.
async fn migrated(db: &PgPool, versions: std::ops::RangeInclusive<i64>) {
    for migration in MIGRATOR.iter().filter(|migration| versions.contains(&migration.version)) {
        sqlx::raw_sql(migration.sql.clone()).execute(db).await.unwrap();
    }
}

/// Longer user ids change the catalogue alone. The functions that had to be emptied for it are as before, with their rights.
#[sqlx::test]
async fn user_ids_grow_without_a_rewrite_and_every_function_stays(db: PgPool) {
    let files = "select string_agg(relname || ' ' || relfilenode, ', ' order by relname) from pg_class
                 where relkind in ('r', 'i') and relnamespace = current_schema()::regnamespace and relname <> '_sqlx_migrations'";
    let functions = "select string_agg(pg_get_functiondef(oid) || coalesce(proacl::text, ''), E'\n' order by proname)
                     from pg_proc where pronamespace = current_schema()::regnamespace";
    let read = async |what: &'static str| sqlx::query_scalar::<_, String>(what).fetch_one(&db).await.unwrap();
    migrated(&db, 1..=35).await;
    let (files_before, functions_before) = (read(files).await, read(functions).await);
    assert!(functions_before.contains("create_unplaced_order") && functions_before.contains("BEGIN ATOMIC"));
    migrated(&db, 36..=36).await;
    assert_eq!(read(files).await, files_before);
    assert_eq!(read(functions).await, functions_before);
    migrated(&db, 37..=i64::MAX).await;
    let new = testkit::new_order();
    let longest = domain::UserId::parse("x".repeat(64)).unwrap();
    store::tables::orders::create(&db, &[store::tables::orders::NewOrder { user_id: longest, ..new }]).await.unwrap();
}

/// The release that still runs updates rows from before migration 0031, also before 0032 has filled them.
#[sqlx::test]
async fn an_older_release_goes_on_while_cases_get_their_new_name(db: PgPool) {
    let run = async |versions: std::ops::RangeInclusive<i64>| migrated(&db, versions).await;
    run(1..=30).await;
    let older = "insert into cases (id, kind, gateway_no, evidence, created_at, updated_at)
                 values ('older', 'dead_letter', 'a', '{}', now(), now()), ('left', 'dead_letter', 'b', '{}', now(), now())";
    sqlx::raw_sql(older).execute(&db).await.unwrap();
    run(31..=31).await;
    sqlx::raw_sql("update cases set status = 'resolved' where id = 'older'").execute(&db).await.unwrap();
    let names = "select id || ' ' || coalesce(subject_ref, '-') from cases order by id";
    let read = async || sqlx::query_scalar::<_, String>(names).fetch_all(&db).await.unwrap();
    assert_eq!(read().await, ["left -", "older a"]);
    run(32..=32).await;
    assert_eq!(read().await, ["left b", "older a"]);
}

/// What a broken `create index concurrently` leaves behind.
#[sqlx::test(migrator = "MIGRATOR")]
async fn no_index_is_invalid(db: PgPool) {
    let invalid = "select indexrelid::regclass::text from pg_index where not (indisvalid and indisready and indislive)";
    let invalid: Vec<String> = sqlx::query_scalar(invalid).fetch_all(&db).await.unwrap();
    assert_eq!(invalid, [""; 0]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_query_of_a_page_or_a_worker_has_its_index(db: PgPool) {
    // With sequential scans forbidden, a plan that still has one has no index to use.
    let plans = [
        "select 1 from payment_orders where order_no = any('{a,b}') order by id for update",
        "select 1 from payment_orders where user_id = 'u' and id < 'f' order by id desc limit 20",
        "select 1 from payment_orders where merchant_order_no = 'a' and not is_closed",
        "select 1 from payment_orders where voucher = 'a' and offer_id = 'b' and not is_closed",
        "select 1 from refund_records where order_id = any(array(select id from payment_orders where user_id = 'u')) and id::text < 'f' order by id::text desc limit 20",
        "select 1 from refund_records where refund_no = 'a' for update",
        "select 1 from cases where id < 'f' and status = 'open' order by id desc limit 20",
        "select 1 from cases where id < 'f' and kind = 'dead_letter' order by id desc limit 20",
        "select 1 from cases where order_id = 'a' and kind = 'late_payment' and status <> 'resolved'",
        "select 1 from cases where kind = 'dead_letter' and order_id is null and subject_ref = 'a'",
        "select 1 from cases where kind = 'refunded_elsewhere' and subject_ref = any('{a}')",
        "select 1 from hourly_stats where hour >= now() and hour < now()",
        "select order_id from events where seq > 7",
        "select 1 from payment_transactions where order_id = 'a'",
        "select 1 from payment_transactions where action_type = 'payment' and payment_method in ('alipay', 'wechat') and gateway_no = any('{a}')",
        "select id from jobs where kind = 'callback' and due_at <= now() order by due_at limit 10",
        "select id from jobs where kind = 'check' and due_at <= now() and (lease_until is null or lease_until <= now()) order by due_at limit 500 for update skip locked",
        "select 1 from jobs where kind = 'check' and ref_id = any('{a}'::bpchar[])",
        "delete from jobs where kind = 'refund' and ref_id = 'a'",
        "select 1 from refund_records where outside_key = 'a'",
        "select 1 from events where published_at is null order by seq limit 500",
        "select 1 from events where published_at is null and retry_at > now()",
        "select 1 from events where published_at >= now()",
        "select 1 from callbacks where order_no = 'a'",
        "select user_id, key from idempotency_keys where expires_at < now() and held_until is null order by expires_at limit 500 for update skip locked",
        "select seq from events where published_at < now() order by published_at limit 500 for update skip locked",
        "select max(id) from (select id from callbacks where id > 7 order by id limit 500) as oldest",
        "select 1 from cases where status <> 'resolved' and evidence ->> 'order_no' = 'a'",
        "select max(id) from (select id from cases where status = 'resolved' and id > '0' and id < 'f' order by id limit 500) as oldest",
        "select 1 from payment_orders where order_no ~>=~ '26010512' and order_no ~<~ '26010513' order by order_no using ~>~ limit 500",
        "select 1 from payment_transactions where action_type = 'payment' and gateway_no ~>=~ '42000022' and gateway_no ~<~ '42000023' order by gateway_no using ~>~ limit 500",
        "select 1 from payment_transactions where action_type = 'payment' and gateway_no = 'a'",
        "select 1 from refund_records where refund_no ~>=~ '26010512' and refund_no ~<~ '26010513' order by refund_no using ~>~ limit 500",
        "select 1 from refund_records where gateway_refund_no ~>=~ '50300000' and gateway_refund_no ~<~ '50300001' order by gateway_refund_no using ~>~ limit 500",
        "select 1 from cases where subject_ref = 'a' limit 500",
        "select 1 from events where event_id = 'a'",
        "select 1 from payment_orders o where o.id < 'f' and o.id >= '0' and o.account = 'main' order by o.id desc limit 20",
        "select 1 from payment_orders o where o.extra_state = 'held' and o.id < 'f' and o.id >= '0' order by o.id desc limit 20",
        "select 1 from payment_orders o where o.id = any(array(select order_id from cases where status <> 'resolved' and order_id is not null)) and o.id < 'f' and o.id >= '0' order by o.id desc limit 20",
        "select coalesce((select true from cases c where c.order_id = o.id and c.kind = 'late_payment' limit 1), false) from payment_orders o where o.id = 'a'",
        "select count(*) from payment_orders o where o.id < 'f' and o.id >= '0'",
        "select 1 from refund_records r where r.status <> 'succeeded' and r.id < 'f' and r.id >= '0' order by r.id desc limit 20",
        "select count(*), min(created_at) from refund_records where status = 'requested'",
        "select 1 from refund_records r where r.requested_by = 'a' and r.id < 'f' and r.id >= '0' order by r.id desc limit 20",
        "select 1 from refund_records r where r.order_id = 'a' and r.id < 'f' and r.id >= '0' order by r.id desc limit 20",
        "select 1 from callbacks where (received_at, id) < (now(), 7) and received_at >= '1970-01-01' order by received_at desc, id desc limit 20",
        "select 1 from callbacks where (received_at, id) < (now(), 7) and received_at >= '1970-01-01' and order_no = 'a' order by received_at desc, id desc limit 20",
        "select 1 from audit_log where (at, id) < (now(), 7) and at >= '1970-01-01' order by at desc, id desc limit 20",
        "select 1 from audit_log where (at, id) < (now(), 7) and at >= '1970-01-01' and object = 'a' order by at desc, id desc limit 20",
        "select 1 from jobs where kind = 'check' and (due_at, id) > ('1970-01-01', 7) and due_at < now() order by due_at, id limit 20",
        "select 1 from idempotency_keys where ref_id = any('{a}'::text[]::bpchar[])",
    ];
    let mut connection = db.acquire().await.unwrap();
    sqlx::query("set enable_seqscan = off").execute(&mut *connection).await.unwrap();
    for sql in plans {
        let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("explain {sql}")))
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        let plan = plan.join("\n");
        assert!(!plan.contains("Seq Scan") && plan.contains("Index"), "{sql}\n{plan}");
    }
}

/// A parameter of another type than its column makes PostgreSQL convert the column, and then no index of it serves.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_id_is_bound_as_what_its_column_is(db: PgPool) {
    async fn bound<T>(db: &PgPool, id: T, ids: Vec<T>) -> (String, String)
    where
        T: for<'a> Encode<'a, Postgres> + Type<Postgres> + PgHasArrayType + Send + 'static,
    {
        let query = sqlx::query_as("select pg_typeof($1)::text, pg_typeof($2)::text").bind(id).bind(ids);
        query.fetch_one(db).await.unwrap()
    }
    let column = ("character".to_owned(), "character[]".to_owned());
    assert_eq!(bound(&db, OrderId::from_u128(1), vec![OrderId::from_u128(2)]).await, column);
    assert_eq!(bound(&db, RefundId::from_u128(1), vec![]).await, column);
    assert_eq!(bound(&db, TransactionId::from_u128(1), vec![]).await, column);
    assert_eq!(bound(&db, CaseId::from_u128(1), vec![]).await, column);
    assert_eq!(bound(&db, ApiKeyId::from_bytes([1; 8]), vec![]).await, column);

    let mut connection = db.acquire().await.unwrap();
    sqlx::query("set enable_seqscan = off").execute(&mut *connection).await.unwrap();
    let plan = "explain select from payment_orders where id = $1";
    let plan: Vec<String> =
        sqlx::query_scalar(plan).bind(OrderId::from_u128(1)).fetch_all(&mut *connection).await.unwrap();
    assert!(plan.join("\n").contains("Index Cond"), "{plan:?}");
}

/// A shop with orders goes on as before the rules, and a new one begins with requests. The release that still runs
/// writes refunds and rules as it always did.
#[sqlx::test]
async fn a_shop_that_was_there_lets_buyers_refund_as_before(db: PgPool) {
    let rules = "select string_agg(buyer_refunds || ' ' || num_nonnulls(window_days, auto_max_amount, staff_limit, \
                 service_daily_limit), ', ') from payment_config";
    let read = async || sqlx::query_scalar::<_, String>(rules).fetch_one(&db).await.unwrap();
    migrated(&db, 1..=62).await;
    let new = testkit::new_order();
    store::tables::orders::create(&db, std::slice::from_ref(&new)).await.unwrap();
    migrated(&db, 63..=65).await;
    assert_eq!(read().await, "auto 0, auto 0");
    let older = format!(
        "insert into refund_records (id, order_id, transaction_id, refund_no, refund_amount, requested_by, created_at, updated_at)
           values ('r', '{0}', '{0}', 'R', 1, 'u', now(), now());
         update refund_records set status = 'processing', attempts = attempts + 1 where id = 'r' and status = 'pending';
         update refund_records set status = 'failed' where id = 'r' and status = 'processing';
         update payment_config set enabled = true, version = version + 1 where payment_method = 'alipay'",
        new.id
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(older)).execute(&db).await.unwrap();
    assert_eq!(read().await, "auto 0, auto 0");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_new_shop_lets_buyers_request_refunds(db: PgPool) {
    let all = store::tables::refund_rules::all(&db).await.unwrap();
    let rules: Vec<_> = all.into_iter().map(|of_method| of_method.rules).collect();
    assert_eq!(rules, [domain::RefundRules::default(), domain::RefundRules::default()]);
}
