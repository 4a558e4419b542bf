//! Every route, called by two users, by an admin, and without a token.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::Who::{self, Admin, Nobody, User};
use crate::world::{Answer, World};

/// A route, and the rights that its description requires.
struct Route {
    method: Method,
    path: String,
    /// Whether it needs no token.
    public: bool,
}

/// The routes as the API describes them, so a new route is tested automatically.
async fn described(world: &World) -> Vec<Route> {
    let document = Request::get("/openapi.json").body(Body::empty()).unwrap();
    let document = world.send(document).await.json();
    let mut routes = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_uppercase().parse().unwrap();
            let public = operation["security"].as_array().is_none_or(|kinds| kinds.contains(&json!({})));
            routes.push(Route { method, path: path.clone(), public });
        }
    }
    routes
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn every_route_lets_in_whom_it_should(db: PgPool) {
    let world = World::new(db).await;
    let order = world.paid("u1").await;
    let refund = world.refund("u1", &order, "k1", &json!({})).await.json();
    let refund = refund["id"].as_str().unwrap();
    let case = world.case("dead_letter", None, "1").await;
    let mut table = String::new();
    for route in described(&world).await {
        let id = match route.path.as_str() {
            path if path.starts_with("/v1/admin/orders/") => "0".repeat(32),
            path if path.starts_with("/v1/orders/") => order.clone(),
            path if path.starts_with("/v1/refunds/") => refund.to_owned(),
            path if path.starts_with("/v1/admin/config/") => "alipay".to_owned(),
            _ => case.clone(),
        };
        let body = match route.path.rsplit('/').next() {
            Some("resolve") => json!({ "note": "n" }),
            Some("propose") => json!({ "action": "fulfil" }),
            Some("confirm" | "{method}") => json!({ "version": 1 }),
            _ => json!({}),
        };
        table.push_str(&format!("{} {}\n", route.method, route.path));
        let path = route.path.replace("{id}", &id).replace("{number}", &id).replace("{method}", &id);
        for who in [Nobody, User("u2"), User("u1"), Admin("a1")] {
            let outcome = outcome_of(&world, who, (&route.method, &path, &body)).await;
            table.push_str(&format!("    {:12} {outcome}\n", format!("{who:?}")));
            let must = match who {
                Nobody if !route.public => Some("401 token_missing"),
                User(_) if path.starts_with("/v1/admin/") => Some("403 scope_missing"),
                _ => None,
            };
            assert!(must.is_none_or(|must| must == outcome), "{} {path} as {who:?}: {outcome}", route.method);
        }
    }
    insta::assert_snapshot!(table);
}

async fn outcome_of(world: &World, who: Who, (method, path, body): (&Method, &str, &Value)) -> String {
    let body = (*method != Method::GET).then_some(body);
    let answer = world.opened(who, method.clone(), path, body).await;
    if answer.status().is_success() {
        // The body of a stream has no end.
        return answer.status().as_u16().to_string();
    }
    let answer = Answer::of(answer).await;
    let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
    if code == "scope_missing" {
        assert!(answer.header("www-authenticate").contains("insufficient_scope"));
    }
    format!("{} {code}", answer.status.as_u16())
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_scope_is_a_whole_word(db: PgPool) {
    let world = World::new(db).await;
    let now = runtime::clock::Clock::system().now().unix_timestamp();
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
        let claims = json!({ "sub": "a1", "iss": "staff", "aud": "payment-api", "iat": now, "exp": now + 300, "auth_time": now, "scope": scope });
        let token = crate::world::minted(&claims, crate::world::STAFF_SECRET);
        let request = axum::http::Request::get("/v1/admin/cases").header("authorization", format!("Bearer {token}"));
        let answer = world.send(request.body(axum::body::Body::empty()).unwrap()).await;
        assert_eq!(answer.status.as_u16(), status, "{scope}");
    }
}

/// Each route with each scope, in a token of the service issuer and of the staff issuer: who is let in.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn every_scope_opens_its_routes_and_no_other(db: PgPool) {
    let world = crate::callers::with_services(db).await;
    let mut table = String::new();
    for route in described(&world).await {
        let path = route.path.replace("{id}", &"0".repeat(32)).replace("{number}", &"0".repeat(32));
        let path = path.replace("{method}", "alipay");
        let open = async |token: String| {
            let request = Request::builder().method(route.method.clone()).uri(&path);
            let request = request.header("authorization", format!("Bearer {token}")).body(Body::empty()).unwrap();
            let answer = world.open(request).await;
            !matches!(answer.status().as_u16(), 401 | 403)
        };
        let (mut services, mut staff) = (Vec::new(), Vec::new());
        for scope in domain::Scope::ALL {
            if open(crate::callers::of_service(scope.as_str())).await {
                services.push(scope.as_str());
            }
            if open(crate::callers::of_staff("a1", scope.as_str(), crate::callers::now())).await {
                staff.push(scope.as_str());
            }
        }
        assert!(services.iter().all(|scope| staff.contains(scope)), "{path}: what a service may, staff may");
        let lacking = crate::callers::of_service("");
        assert!(route.public || !open(lacking).await, "{path}: a scope is needed");
        table.push_str(&format!("{} {}\n", route.method, route.path));
        table.push_str(&format!("    services {}\n    staff    {}\n", services.join(" "), staff.join(" ")));
    }
    insta::assert_snapshot!(table);
}
