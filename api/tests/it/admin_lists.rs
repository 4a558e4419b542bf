//! The lists of callbacks, jobs, API keys and acts: each filter, each wrong one, and pages that follow each other.

use axum::http::Method;
use domain::{Scope, Scopes};
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use time::Duration;
use time::format_description::well_known::Rfc3339;

use crate::callers::{key, now, of_staff, send, with_services};
use crate::support::Who;
use crate::world::{Answer, World};

const A: Who = Who::Admin("a1");

async fn get(world: &World, path: &str) -> Answer {
    world.request(A, Method::GET, &format!("/v1/admin/{path}"), None).await
}

/// One member of each row of a list.
async fn listed(world: &World, path: &str, member: &str) -> Vec<String> {
    let list = path.split('?').next().unwrap().replace("audit", "acts");
    let answer = get(world, path).await;
    assert_eq!(answer.status.as_u16(), 200, "{path}: {}", answer.body);
    let rows = answer.json()[&list].as_array().unwrap().clone();
    rows.iter().map(|row| row[member].as_str().map_or_else(|| row[member].to_string(), str::to_owned)).collect()
}

/// All rows of a list, page by page.
async fn walked(world: &World, list: &str, member: &str) -> Vec<String> {
    let (mut seen, mut path) = (Vec::new(), format!("{list}?limit=2"));
    loop {
        let rows = listed(world, &path, member).await;
        assert!(rows.len() <= 2);
        seen.extend(rows);
        let page = get(world, &path).await.json();
        let Some(cursor) = page["next_cursor"].as_str() else { return seen };
        path = format!("{list}?limit=2&cursor={cursor}");
    }
}

async fn set(db: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn ago(days: i64) -> String {
    (Clock::system().now() - Duration::days(days)).replace_nanosecond(0).unwrap().format(&Rfc3339).unwrap()
}

/// Callbacks n1 to n6, n1 the newest. n3 and n4 arrived at one moment.
const CALLBACKS: &str = "
    insert into callbacks (payment_method, account, notice_id, order_no, verdict, headers, body, received_at, last_seen_at, note)
    values
      ('alipay', 'main', 'n6', null, 'undecodable', '{}', 'secret', now() - interval '60 days', now(), null),
      ('wechat', 'main', 'n4', 'ORDER_1', 'settled', '{}', 'secret', date_trunc('hour', now()) - interval '4 days', now(), null),
      ('wechat', 'main', 'n3', 'ORDER_2', 'settled', '{}', 'secret', date_trunc('hour', now()) - interval '4 days', now(), null),
      ('wechat', 'main', 'n5', 'ORDER_1', 'duplicate', '{}', 'secret', now() - interval '5 days', now(), null),
      ('alipay', 'other', 'n2', 'ORDER_3', 'bad_signature', '{}', 'secret', now() - interval '2 days', 'infinity', 'app_id'),
      ('wechat', 'main', 'n1', null, 'bad_signature', '{\"x\": \"secret\"}', 'secret', now() - interval '1 day', now(), null)";

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn callbacks_are_found_by_each_filter_and_show_no_bytes(db: PgPool) {
    let world = World::new(db.clone()).await;
    set(&db, CALLBACKS).await;
    let month = format!("from={}", ago(30));
    for (query, expected) in [
        (String::new(), "n1 n2 n3 n4 n5 n6"),
        ("order_no=ORDER_1".to_owned(), "n4 n5"),
        ("order_no=ORDER_1&verdict=duplicate".to_owned(), "n5"),
        ("order_no=ORDER_9".to_owned(), ""),
        (format!("payment_method=alipay&{month}"), "n2"),
        (format!("verdict=bad_signature&{month}"), "n1 n2"),
        (format!("verdict=bad_signature&payment_method=wechat&{month}"), "n1"),
        (format!("from={}&to={}", ago(6), ago(3)), "n3 n4 n5"),
        (format!("to={}", ago(30)), "n6"),
    ] {
        let found = listed(&world, &format!("callbacks?{query}"), "notice_id").await;
        assert_eq!(found.join(" "), expected, "{query}");
    }
    assert_eq!(walked(&world, "callbacks", "notice_id").await.join(" "), "n1 n2 n3 n4 n5 n6");
    let answer = get(&world, "callbacks").await;
    assert!(!answer.body.contains("secret"), "{}", answer.body);
    let members: Vec<String> = answer.json()["callbacks"][1].as_object().unwrap().keys().cloned().collect();
    let expected = [
        "account",
        "id",
        "last_seen_at",
        "note",
        "notice_id",
        "order_no",
        "payment_method",
        "received_at",
        "times_seen",
        "verdict",
    ];
    assert_eq!(members, expected);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn acts_are_found_by_each_filter(db: PgPool) {
    let world = World::new(db.clone()).await;
    set(
        &db,
        "
        insert into audit_log (subject, act, object, detail, at) values
          ('alice', 'case.proposed', 'case:1', '{\"n\": 5}', now() - interval '50 days'),
          ('bob', 'case.confirmed', 'case:1', '{\"n\": 4}', date_trunc('hour', now()) - interval '4 days'),
          ('bob', 'key.made', 'key:2', '{\"n\": 3}', date_trunc('hour', now()) - interval '4 days'),
          ('paymentctl/alice', 'key.revoked', 'key:2', '{\"n\": 2}', now() - interval '2 days'),
          ('alice', 'export.made', 'export:3', '{\"n\": 1}', now() - interval '1 day'),
          ('alice', 'export.made', 'export:4', '{\"n\": 0}', 'infinity')",
    )
    .await;
    let month = format!("from={}", ago(30));
    for (query, expected) in [
        (String::new(), "export:3 key:2 key:2 case:1 case:1"),
        ("object=case:1".to_owned(), "case:1 case:1"),
        ("object=case:1&subject=alice".to_owned(), "case:1"),
        (format!("subject=alice&{month}"), "export:3"),
        (format!("subject=paymentctl/alice&{month}"), "key:2"),
        (format!("act=case.confirmed&{month}"), "case:1"),
        (format!("act=case.confirmed&subject=alice&{month}"), ""),
        (format!("from={}&to={}", ago(5), ago(3)), "key:2 case:1"),
    ] {
        assert_eq!(listed(&world, &format!("audit?{query}"), "object").await.join(" "), expected, "{query}");
    }
    assert_eq!(walked(&world, "audit", "detail").await.join(" "), r#"{"n":1} {"n":2} {"n":3} {"n":4} {"n":5}"#);
    let act = &get(&world, "audit?limit=1").await.json()["acts"][0];
    assert_eq!((&act["subject"], &act["act"], &act["key_id"]), (&json!("alice"), &json!("export.made"), &Value::Null));
    assert!(act["database_user"].is_string());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn jobs_are_listed_the_next_due_first(db: PgPool) {
    let world = World::new(db.clone()).await;
    set(
        &db,
        "
        insert into jobs (kind, ref_id, payload, due_at, created_at, attempts, last_error, lease_until) values
          ('callback', null, '{\"body\": \"secret\"}', now() - interval '3 days', now(), 7, 'busy', 'infinity'),
          ('check', lpad('2', 32, '0'), '{}', date_trunc('hour', now()), now(), 0, null, null),
          ('refund', lpad('3', 32, '0'), '{}', date_trunc('hour', now()), now(), 1, 'no balance', now()),
          ('look_back', lpad('2', 32, '0'), '{}', now() + interval '7 days', now(), 0, null, null),
          ('refund', lpad('5', 32, '0'), '{}', now() + interval '8 days', now(), 0, null, null)",
    )
    .await;
    for (query, expected) in [
        (String::new(), "callback check refund look_back refund"),
        ("kind=refund".to_owned(), "refund refund"),
        ("kind=callback".to_owned(), "callback"),
        (format!("due_to={}", ago(1)), "callback"),
        (format!("due_from={}", ago(-1)), "look_back refund"),
        (format!("kind=refund&due_from={}&due_to={}", ago(1), ago(-1)), "refund"),
        (format!("due_from={}", ago(-30)), ""),
    ] {
        assert_eq!(listed(&world, &format!("jobs?{query}"), "kind").await.join(" "), expected, "{query}");
    }
    assert_eq!(walked(&world, "jobs", "kind").await.join(" "), "callback check refund look_back refund");
    let answer = get(&world, "jobs").await;
    assert!(!answer.body.contains("secret"), "a payload holds the bytes of a callback");
    let job = &answer.json()["jobs"][0];
    assert_eq!((&job["attempts"], &job["last_error"], &job["lease_until"]), (&json!(7), &json!("busy"), &Value::Null));
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn keys_are_listed_without_what_proves_them(db: PgPool) {
    let world = with_services(db.clone()).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let (id, _) = key(&db, |new| {
            new.name = domain::ApiKeyName::parse(format!("shop {n}")).unwrap();
            new.scopes = Scopes::parse("payments:orders payments:read");
        })
        .await;
        ids.insert(0, id.to_string());
    }
    set(
        &db,
        "update api_keys set offer_secret = 'sealed', previous_offer_secret = 'sealed', previous_offer_until = now()",
    )
    .await;
    set(&db, &format!("update api_keys set state = 'revoked', revoked_at = now() where id = '{}'", ids[1])).await;
    assert_eq!(listed(&world, "keys", "id").await, ids);
    assert_eq!(walked(&world, "keys", "id").await, ids);
    assert_eq!(listed(&world, "keys?state=revoked", "id").await, ids[1..2]);
    assert_eq!(listed(&world, "keys?state=active", "name").await, ["shop 2", "shop 0"]);
    let answer = get(&world, "keys").await;
    for hidden in ["digest", "secret", "sealed", "7365616c6564"] {
        assert!(!answer.body.contains(hidden), "{}", answer.body);
    }
    assert_eq!(answer.json()["keys"][0]["scopes"], json!(["payments:orders", "payments:read"]));
    // Only payments:keys opens this list.
    for scope in Scope::ALL {
        let answer = send(&world, &of_staff("a1", scope.as_str(), now()), Method::GET, "/v1/admin/keys", None).await;
        let expected = if matches!(scope, Scope::Keys | Scope::Admin) { 200 } else { 403 };
        assert_eq!(answer.status.as_u16(), expected, "{scope}");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_a_filter_cannot_be_is_named(db: PgPool) {
    let world = World::new(db).await;
    for (path, field) in [
        ("callbacks?payment_method=paypal", "payment_method"),
        ("callbacks?verdict=SETTLED", "verdict"),
        ("callbacks?verdict=settled,ignored", "verdict"),
        ("callbacks?order_no=a%20b", "order_no"),
        ("callbacks?from=yesterday", "from"),
        ("callbacks?from=2026-01-02&to=2026-01-01T00:00:00Z", "to"),
        ("callbacks?body=x", "body"),
        ("callbacks?limit=0", "limit"),
        ("callbacks?cursor=zzz", "cursor"),
        ("jobs?kind=mail", "kind"),
        ("jobs?due_from=soon", "due_from"),
        ("jobs?due_to=1", "due_to"),
        ("jobs?due_from=2026-01-02&due_to=2026-01-01T00:00:00Z", "due_to"),
        ("jobs?attempts=1", "attempts"),
        ("keys?state=expired", "state"),
        ("keys?digest=x", "digest"),
        ("audit?subject=", "subject"),
        ("audit?subject=a%00b", "subject"),
        ("audit?act=", "act"),
        ("audit?object=%0a", "object"),
        ("audit?to=2026-13-01", "to"),
        ("audit?from=2026-01-02&to=2026-01-01T00:00:00Z", "to"),
        ("audit?limit=101", "limit"),
    ] {
        let answer = get(&world, path).await;
        answer.is(400, "invalid_fields");
        assert_eq!(answer.json()["errors"][0]["field"], field, "{path}: {}", answer.body);
    }
    let (long, longest) = ("x".repeat(161), "x".repeat(160));
    get(&world, &format!("audit?object={long}")).await.is(400, "invalid_fields");
    assert_eq!(get(&world, &format!("audit?object={longest}")).await.status.as_u16(), 200);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_filter_without_an_index_asks_for_a_range(db: PgPool) {
    let world = World::new(db).await;
    for filter in
        ["callbacks?verdict=settled", "callbacks?payment_method=wechat", "audit?subject=a", "audit?act=key.made"]
    {
        let too_long = format!("from={}", ago(32));
        for range in ["", "to=2026-01-31", "from=2026-01-01&to=2026-02-01", &too_long] {
            let answer = get(&world, &format!("{filter}&{range}")).await;
            answer.is(400, "range_required");
            assert!(answer.json()["title"].as_str().unwrap().contains("from and to, at most 31 days apart"));
        }
        for range in ["from=2026-01-01&to=2026-01-31".to_owned(), format!("from={}", ago(30))] {
            assert_eq!(get(&world, &format!("{filter}&{range}")).await.status.as_u16(), 200, "{filter} {range}");
        }
    }
    for free in [
        "callbacks?from=2020-01-01",
        "callbacks?verdict=settled&order_no=ORDER_1",
        "audit?to=2026-01-01",
        "audit?act=a&object=b",
        "jobs?kind=check&due_from=2020-01-01",
        "keys?state=active",
    ] {
        assert_eq!(get(&world, free).await.status.as_u16(), 200, "{free}");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_cursor_is_of_one_list(db: PgPool) {
    let world = World::new(db.clone()).await;
    set(&db, CALLBACKS).await;
    let page = get(&world, "callbacks?limit=1").await.json();
    let cursor = page["next_cursor"].as_str().unwrap();
    for list in ["jobs", "keys", "audit", "orders", "refunds", "cases"] {
        let answer = get(&world, &format!("{list}?cursor={cursor}")).await;
        answer.is(400, "invalid_fields");
        assert_eq!(answer.json()["errors"][0]["field"], "cursor", "{list}");
    }
    assert_eq!(listed(&world, &format!("callbacks?limit=1&cursor={cursor}"), "notice_id").await, ["n2"]);
    let old = get(&world, &format!("callbacks?to={}&cursor={cursor}", ago(30))).await.json();
    assert_eq!(old["callbacks"].as_array().unwrap().len(), 1, "a cursor never widens the range");
}
