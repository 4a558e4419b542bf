//! Every route as the API describes it, with requests that no client would send on purpose. No answer is a defect, and
//! each answer is in the description.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::{Method, Request};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};
use sqlx::PgPool;

use crate::support::Who;
use crate::world::{World, alipay_order, minted_for};

/// Requests to each operation.
const REQUESTS: usize = 150;

/// One operation of the description.
struct Operation {
    method: Method,
    path: String,
    /// Names and places of its parameters.
    parameters: Vec<(String, String)>,
    /// The properties of its body, each with its schema.
    body: Option<Map<String, Value>>,
    /// Each answer: its status, and the media types that it may have; none: it has no body.
    answers: BTreeMap<u16, Vec<String>>,
}

fn operations(document: &Value) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let schema = operation.pointer("/requestBody/content/application~1json/schema/$ref");
            let properties = schema.map(|schema| {
                let pointer = format!("{}/properties", schema.as_str().unwrap().trim_start_matches('#'));
                document.pointer(&pointer).and_then(Value::as_object).cloned().unwrap_or_default()
            });
            operations.push(Operation {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                parameters: parameters.iter().map(|one| (text(&one["name"]), text(&one["in"]))).collect(),
                body: properties,
                answers: operation["responses"].as_object().unwrap().iter().map(answer).collect(),
            });
        }
    }
    operations
}

fn answer((status, described): (&String, &Value)) -> (u16, Vec<String>) {
    let media = described["content"].as_object().map(|content| content.keys().cloned().collect());
    (status.parse().unwrap(), media.unwrap_or_default())
}

/// Any JSON, now and then deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(any_text(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Text that means something somewhere.
const TELLING: [&str; 38] = [
    "",
    "0",
    "-1",
    "0.001",
    "1e9",
    "99999999.99",
    "100000000.00",
    "null",
    "NaN",
    "' or 1=1 --",
    "../../etc/passwd",
    "\u{0}",
    "\u{feff}",
    "\u{202e}",
    "🀄",
    "%00",
    "alipay",
    "wechat",
    "page",
    "native",
    "jsapi",
    "main",
    "paid",
    "open",
    "2026-01-01",
    "2026-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "-0001-01-01",
    "1",
    "100",
    "101",
    "https://shop.example.com/x",
    "javascript:alert(1)",
    "refund",
    "fulfil",
    "book_refund",
    "note",
    "18446744073709551616",
];

/// Any text, often one that means something somewhere.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(&TELLING[..]).prop_map(str::to_owned).boxed(),
        any::<String>().boxed(),
        ".{0,300}".boxed()
    ]
}

/// The values of one request.
#[derive(Debug, Clone)]
struct Filling {
    who: u8,
    /// A valid request.
    good: bool,
    /// For parameters in the order of the description: absent, a text, or an id that exists.
    parameters: Vec<Option<String>>,
    /// For properties of the body: absent, as in a good request, or anything.
    properties: Vec<Option<Option<Value>>>,
    extra: Option<(String, Value)>,
    /// Replaces the whole body.
    raw: Option<Vec<u8>>,
    media: bool,
}

fn filling() -> impl Strategy<Value = Filling> {
    let parameters = prop::collection::vec(prop::option::of(any_text()), 8);
    let property = prop::option::weighted(0.8, prop::option::weighted(0.4, any_json()));
    let properties = prop::collection::vec(property, 16);
    let extra = prop::option::weighted(0.1, (any_text(), any_json()));
    let raw = prop::option::weighted(0.1, prop::collection::vec(any::<u8>(), 0..200));
    let (good, media) = (prop::bool::weighted(0.2), prop::bool::weighted(0.9));
    (any::<u8>(), good, parameters, properties, extra, raw, media).prop_map(
        |(who, good, parameters, properties, extra, raw, media)| {
            if good {
                let (parameters, properties) = (vec![None; parameters.len()], vec![Some(None); properties.len()]);
                return Filling { who, good, parameters, properties, extra: None, raw: None, media: true };
            }
            Filling { who, good, parameters, properties, extra, raw, media }
        },
    )
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// The request, as far as HTTP can carry it.
fn request(operation: &Operation, filling: &Filling, ids: &[String]) -> Option<Request<Body>> {
    let (mut path, mut query, mut headers) = (operation.path.clone(), Vec::new(), Vec::new());
    for ((name, place), (n, value)) in operation.parameters.iter().zip(filling.parameters.iter().enumerate()) {
        // Every second id exists.
        let known = filling.good || (usize::from(filling.who) + n).is_multiple_of(2);
        match (place.as_str(), value) {
            ("path", _) if known => {
                path = path.replace(&format!("{{{name}}}"), &ids[usize::from(filling.who) % ids.len()])
            }
            ("path", value) => {
                // Without text it would be another path.
                let text = value.as_deref().filter(|text| !text.is_empty()).unwrap_or("x");
                path = path.replace(&format!("{{{name}}}"), &encoded(text));
            }
            ("query", Some(value)) => query.push(format!("{name}={}", encoded(value))),
            ("header", None) if filling.good => headers.push((name.clone(), format!("k-{}", filling.who))),
            ("header", Some(value)) => headers.push((name.clone(), value.clone())),
            _ => {}
        }
    }
    let uri = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
    let mut request = Request::builder().method(&operation.method).uri(uri);
    let scope = match filling.who % 4 {
        0 => None,
        1 => Some(""),
        _ => Some("payments:admin"),
    };
    if let Some(scope) = scope {
        request = request.header("authorization", format!("Bearer {}", minted_for("u1", scope)));
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let body = match (&filling.raw, &operation.body) {
        (Some(raw), _) => raw.clone(),
        (None, None) => Vec::new(),
        (None, Some(properties)) => {
            let good = alipay_order();
            let mut body = Map::new();
            for ((name, _), value) in properties.iter().zip(&filling.properties) {
                match value {
                    None => {}
                    Some(None) if filling.good => {
                        body.extend(good.get(name).map(|value| (name.clone(), value.clone())));
                    }
                    Some(None) => drop(body.insert(name.clone(), good.get(name).cloned().unwrap_or(json!(1)))),
                    Some(Some(any)) => drop(body.insert(name.clone(), any.clone())),
                }
            }
            body.extend(filling.extra.clone());
            serde_json::to_vec(&body).unwrap()
        }
    };
    if filling.media && operation.body.is_some() {
        request = request.header("content-type", "application/json");
    }
    request.body(Body::from(body)).ok()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn no_request_finds_a_defect_or_an_answer_that_is_not_described(db: PgPool) {
    let world = World::new(db).await;
    let (paid, placed) = (world.paid("u1").await, world.placed("u1").await);
    let refund = world.refund("u1", &paid, "k1", &json!({})).await.json()["id"].as_str().unwrap().to_owned();
    let ids = [paid, placed, refund, world.case("dead_letter", None, "1").await];
    let document = world.request(Who::Nobody, Method::GET, "/openapi.json", None).await.json();
    let mut runner = TestRunner::deterministic();
    let mut met = BTreeMap::<String, usize>::new();
    for operation in operations(&document) {
        // There is no worker and no gateway here, so these requests wait for their time limit.
        let slow = operation.path.ends_with("/sync") || operation.path.ends_with("/close");
        for _ in 0..if slow { 4 } else { REQUESTS } {
            let filling = filling().new_tree(&mut runner).unwrap().current();
            let Some(request) = request(&operation, &filling, &ids) else { continue };
            let requested = format!("{} {}", request.method(), request.uri());
            let answer = world.open(request).await;
            let status = answer.status().as_u16();
            assert_ne!(status, 500, "{requested} {filling:?}");
            let described = operation.answers.get(&status);
            let described = described.unwrap_or_else(|| panic!("{requested}: {status} is not described; {filling:?}"));
            let media = answer.headers().get("content-type").map_or("", |value| value.to_str().unwrap());
            let fits = described.is_empty() && media.is_empty() || described.iter().any(|one| one == media);
            assert!(fits, "{requested}: {status} comes as {media:?}, described is {described:?}");
            *met.entry(format!("{status}")).or_default() += 1;
        }
    }
    // It went where it was meant to go.
    for status in ["200", "201", "400", "401", "403", "404", "409"] {
        assert!(met.contains_key(status), "only {met:?}");
    }
}
