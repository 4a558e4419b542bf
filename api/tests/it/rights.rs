//! Two users, an admin, nobody: every route.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::Who::{self, Admin, Nobody, User};
use crate::world::World;

#[sqlx::test(migrator = "shared::db::MIGRATOR")]
async fn every_route_lets_in_whom_it_should(db: PgPool) {
    let world = World::new(db).await;
    let order = world.paid("u1").await;
    let refund = world.refund("u1", &order, "k1", &json!({})).await.json();
    let refund = refund["id"].as_str().unwrap();
    let case = world.case("dead_letter", None, "1").await;
    let note = json!({ "note": "n" });
    let propose = json!({ "action": "fulfil" });
    let confirm = json!({ "version": 1 });
    let body = json!({});
    let mut table = String::new();
    let routes: [(Method, String, Option<&Value>); 18] = [
        (Method::POST, "/v1/orders".to_owned(), Some(&body)),
        (Method::GET, "/v1/orders".to_owned(), None),
        (Method::GET, format!("/v1/orders/{order}"), None),
        (Method::POST, format!("/v1/orders/{order}/payment"), None),
        (Method::POST, format!("/v1/orders/{order}/close"), None),
        (Method::POST, format!("/v1/orders/{order}/refunds"), Some(&body)),
        (Method::GET, format!("/v1/refunds/{refund}"), None),
        (Method::GET, "/v1/refunds".to_owned(), None),
        (Method::POST, format!("/v1/admin/orders/{}/sync", "0".repeat(32)), None),
        (Method::GET, "/v1/admin/stats".to_owned(), None),
        (Method::GET, "/v1/admin/cases".to_owned(), None),
        (Method::GET, format!("/v1/admin/cases/{case}"), None),
        (Method::POST, format!("/v1/admin/cases/{case}/propose"), Some(&propose)),
        (Method::POST, format!("/v1/admin/cases/{case}/confirm"), Some(&confirm)),
        (Method::POST, format!("/v1/admin/cases/{case}/resolve"), Some(&note)),
        (Method::GET, "/v1/admin/config".to_owned(), None),
        (Method::PATCH, "/v1/admin/config/alipay".to_owned(), Some(&confirm)),
        (Method::GET, "/v1/admin/config/changes".to_owned(), None),
    ];
    for (method, path, body) in routes {
        let shown = path.replace(&order, "{order}").replace(refund, "{refund}").replace(&case, "{case}");
        table.push_str(&format!("{method} {shown}\n"));
        for who in [Nobody, User("u2"), User("u1"), Admin("a1")] {
            table.push_str(&format!(
                "    {:12} {}\n",
                format!("{who:?}"),
                told(&world, who, (&method, &path, body)).await
            ));
        }
    }
    insta::assert_snapshot!(table);
}

async fn told(world: &World, who: Who, (method, path, body): (&Method, &str, Option<&Value>)) -> String {
    let answer = world.ask(who, method.clone(), path, body).await;
    let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
    if code == "scope_missing" {
        assert!(answer.header("www-authenticate").contains("insufficient_scope"));
    }
    format!("{} {code}", answer.status.as_u16()).trim_end().to_owned()
}

#[sqlx::test(migrator = "shared::db::MIGRATOR")]
async fn a_scope_is_a_whole_word(db: PgPool) {
    let world = World::new(db).await;
    let now = shared::clock::Clock::system().now().unix_timestamp();
    for (scope, status) in [
        (json!("payments:admin"), 200),
        (json!("a payments:admin b"), 200),
        (json!("payments:administrator"), 403),
        (json!("xpayments:admin"), 403),
        (json!("payments:admin,b"), 403),
        (json!("PAYMENTS:ADMIN"), 403),
        (json!(""), 403),
        (Value::Null, 403),
        (json!(["payments:admin"]), 401),
    ] {
        let claims = json!({ "sub": "a1", "iss": "payment", "aud": "payment-api", "exp": now + 300, "scope": scope });
        let token = crate::world::minted(&claims, crate::world::SECRET);
        let request = axum::http::Request::get("/v1/admin/cases").header("authorization", format!("Bearer {token}"));
        let answer = world.send(request.body(axum::body::Body::empty()).unwrap()).await;
        assert_eq!(answer.status.as_u16(), status, "{scope}");
    }
}
