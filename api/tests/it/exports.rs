//! Exports through the API: what is refused, whose they are, and that the file is the one that was described.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::callers::{now, of_service, of_staff, send, with_services};
use crate::support::Who;
use crate::world::{Answer, PATIENCE, World};

const A: Who = Who::Admin("a1");
const PATH: &str = "/v1/admin/exports";

/// A range of creation times around now.
fn month() -> Value {
    json!({ "created_from": "2026-01-01", "created_to": "2026-12-31" })
}

async fn begun(world: &World, body: &Value) -> String {
    let answer = world.post(A, PATH, body).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.body);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("{PATH}/{id}"));
    assert!(["running", "done"].contains(&answer.json()["state"].as_str().unwrap()));
    id
}

async fn get(world: &World, who: Who, path: &str) -> Answer {
    world.request(who, Method::GET, &format!("{PATH}/{path}"), None).await
}

async fn ended(world: &World, id: &str) -> Value {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let view = get(world, A, id).await.json();
        if view["state"] != "running" {
            return view;
        }
        assert!(tokio::time::Instant::now() < until, "{view}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn what_an_export_cannot_be_is_named(db: PgPool) {
    let world = World::new(db).await;
    let orders = |filters: Value| json!({ "kind": "orders", "format": "csv", "filters": filters });
    let refunds = |filters: Value| json!({ "kind": "refunds", "format": "xlsx", "filters": filters });
    for (body, field) in [
        (json!({ "format": "csv" }), "kind"),
        (json!({ "kind": "callbacks", "format": "csv" }), "kind"),
        (json!({ "kind": "orders" }), "format"),
        (json!({ "kind": "orders", "format": "pdf" }), "format"),
        (json!({ "kind": "orders", "format": 1 }), "format"),
        (json!({ "kind": "orders", "format": "csv", "rows": 5 }), "rows"),
        (orders(json!("paid")), "filters"),
        (orders(json!({ "status": "PAID" })), "filters.status"),
        (orders(json!({ "status": ["paid"] })), "filters.status"),
        (orders(json!({ "amount_from": 1.5 })), "filters.amount_from"),
        (orders(json!({ "limit": "5" })), "filters.limit"),
        (orders(json!({ "cursor": "x" })), "filters.cursor"),
        (orders(json!({ "origin": "outside" })), "filters.origin"),
        (orders(json!({ "created_from": "2026-02-01", "created_to": "2026-01-01" })), "filters.created_to"),
        (orders(json!({ "has_case": "maybe" })), "filters.has_case"),
        (refunds(json!({ "order_id": "ORDER_1" })), "filters.order_id"),
        (refunds(json!({ "scene": "native" })), "filters.scene"),
    ] {
        let answer = world.post(A, PATH, &body).await;
        answer.is(400, "invalid_fields");
        assert_eq!(answer.json()["errors"][0]["field"], field, "{body}: {}", answer.body);
    }
    for filters in [
        json!({}),
        json!({ "status": "paid" }),
        json!({ "created_to": "2026-01-01" }),
        json!({ "created_from": "2024-01-01", "created_to": "2025-01-02" }),
        json!({ "created_from": "2020-01-01" }),
    ] {
        world.post(A, PATH, &orders(filters)).await.is(400, "range_required");
    }
    for filters in [
        json!({ "user_id": "u1" }),
        json!({ "has_case": true }),
        json!({ "created_from": "2024-01-01", "created_to": "2024-12-31" }),
    ] {
        let id = begun(&world, &orders(filters)).await;
        assert_eq!(ended(&world, &id).await["state"], "done");
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_export_is_described_and_fetched_by_its_maker_alone(db: PgPool) {
    let world = with_services(db.clone()).await;
    let order = world.paid("u1").await;
    world.placed("u2").await;
    world.refund("u1", &order, "k1", &json!({ "amount": "1.00", "reason": "=1+1" })).await;
    for (kind, format, count, amount, media) in [
        ("orders", "csv", 2, "24.68", "text/csv; charset=utf-8"),
        ("refunds", "xlsx", 1, "1.00", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    ] {
        let id = begun(&world, &json!({ "kind": kind, "format": format, "filters": month() })).await;
        let view = ended(&world, &id).await;
        assert_eq!((&view["state"], &view["error"]), (&json!("done"), &Value::Null));
        assert_eq!(
            (&view["rows_written"], &view["rows_total"], &view["filters"]),
            (&json!(count), &json!(count), &month())
        );
        assert_eq!((&view["sums"]["count"], &view["sums"]["amount"]), (&json!(count), &json!(amount)));
        assert_eq!(view["sums"]["groups"].as_array().unwrap().len(), count);
        let file = world.opened(A, Method::GET, &format!("{PATH}/{id}/file"), None).await;
        let header = |name: &str| file.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((header("content-type"), header("cache-control")), (media.to_owned(), "no-store".to_owned()));
        assert_eq!(header("content-length"), view["bytes"].to_string());
        let name = header("content-disposition");
        assert!(name.starts_with(&format!("attachment; filename=\"{kind}-2")), "{name}");
        assert!(name.ends_with(&format!("-{}.{format}\"", &id[26..])), "{name}");
        let bytes = axum::body::to_bytes(file.into_body(), usize::MAX).await.unwrap();
        assert_eq!(bytes.len().to_string(), view["bytes"].to_string());
        assert!(bytes.starts_with(if format == "csv" { "\u{feff}订单号".as_bytes() } else { b"PK" }));

        let strangers = [of_staff("a2", "payments:read", now()), of_service("payments:read")];
        for token in strangers {
            for path in [format!("{PATH}/{id}"), format!("{PATH}/{id}/file")] {
                send(&world, &token, Method::GET, &path, None).await.is(404, "export_not_found");
            }
        }
    }
    for id in ["0".repeat(32), "x".to_owned(), "..%2f..%2fetc".to_owned()] {
        get(&world, A, &id).await.is(404, "export_not_found");
        get(&world, A, &format!("{id}/file")).await.is(404, "export_not_found");
    }
    let acts: Vec<String> = sqlx::query_scalar(
        "select subject || ' ' || (detail ->> 'rows') from audit_log where act = 'export.made' order by id",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    assert_eq!(acts, ["a1 2", "a1 1"]);
    world.app.exports.close().await;
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_third_at_once_waits_and_one_that_runs_has_no_file(db: PgPool) {
    let world = World::new(db.clone()).await;
    world.placed("u1").await;
    let body = json!({ "kind": "orders", "format": "xlsx", "filters": month() });
    let mut table = db.begin().await.unwrap();
    sqlx::query("lock table payment_orders in access exclusive mode").execute(&mut *table).await.unwrap();
    let ids = [begun(&world, &body).await, begun(&world, &body).await];
    let refused = world.post(A, PATH, &body).await;
    refused.is(429, "too_many_exports");
    assert_eq!(refused.header("retry-after"), "10");
    let view = get(&world, A, &ids[0]).await.json();
    assert_eq!(
        (&view["state"], &view["rows_total"], &view["expires_at"]),
        (&json!("running"), &Value::Null, &Value::Null)
    );
    get(&world, A, &format!("{}/file", ids[0])).await.is(409, "export_not_ready");
    table.rollback().await.unwrap();
    for id in &ids {
        assert_eq!(ended(&world, id).await["state"], "done");
    }
    // A day later the process knows neither.
    world.app.exports.purge(world.app.clock.now() + time::Duration::hours(25));
    get(&world, A, &ids[0]).await.is(404, "export_not_found");
    get(&world, A, &format!("{}/file", ids[1])).await.is(404, "export_not_found");
    world.app.exports.close().await;
}

/// The limit of this world is six rows.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn too_many_rows_are_named_and_nothing_is_cut(db: PgPool) {
    let world = World::new(db).await;
    for _ in 0..7 {
        world.placed("u1").await;
    }
    let id = begun(&world, &json!({ "kind": "orders", "format": "csv", "filters": { "user_id": "u1" } })).await;
    let view = ended(&world, &id).await;
    let message = "7 rows match, and an export has at most 6: narrow the filters";
    assert_eq!(view["error"], json!({ "code": "too_many_rows", "message": message }));
    assert_eq!((&view["state"], &view["bytes"], &view["sha256"]), (&json!("failed"), &Value::Null, &Value::Null));
    get(&world, A, &format!("{id}/file")).await.is(409, "export_not_ready");
}
