//! Who may call which route, as the description of the API says it. The layer that refuses everybody else reads this
//! table, so the description and the check cannot differ.

use std::collections::HashMap;

use axum::http::Method;
use domain::Scope;
use serde_json::Value;
use utoipa::openapi::OpenApi;

use crate::access::caller::{Caller, Identity};
use crate::answer::problem::ApiError;

/// The scheme of buyers' tokens in the description.
pub const BUYER: &str = "bearer";
/// The scheme of API keys, tokens of services, and tokens of staff.
pub const BACKEND: &str = "backend";
/// The scheme of staff tokens alone.
pub const STAFF: &str = "staff";
/// The scheme of tokens that show one order.
pub const VIEW_TOKEN: &str = "view_token";

/// The rights of every route.
#[derive(Debug, Default)]
pub struct Rights(HashMap<(Method, String), Vec<Right>>);

/// One way to be let in. A route has several.
#[derive(Debug, PartialEq, Eq)]
enum Right {
    /// Every client.
    Open,
    /// A buyer.
    Buyer,
    /// The holder of a token that shows one order.
    Holder,
    /// A caller with the scope.
    Scoped(Scope),
    /// A person with the scope.
    Person(Scope),
}

/// How a request is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// By no token.
    Open,
    /// By a token of a caller.
    Caller,
    /// By the token of a caller, or by one that shows an order.
    CallerOrHolder,
    /// Nothing is described here: closed.
    Closed,
}

impl Rights {
    /// Reads the table from the description. A scheme or a scope that this service does not know gives no right, and a
    /// description that cannot be written as JSON gives none at all.
    pub fn of(description: &OpenApi) -> Rights {
        let document = serde_json::to_value(description).unwrap_or_default();
        let mut rights = HashMap::new();
        for (path, operations) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in operations.as_object().into_iter().flatten() {
                let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) else { continue };
                rights.insert((method, path.clone()), read(&operation["security"]));
            }
        }
        Rights(rights)
    }

    fn of_route(&self, method: &Method, route: &str) -> &[Right] {
        // axum answers HEAD with the handler of GET.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.0.get(&(method.clone(), route.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// The methods that are described for this route, as the header `Allow` lists them. Empty: the route is not
    /// described.
    pub fn methods(&self, route: &str) -> String {
        let mut methods: Vec<&str> =
            self.0.keys().filter(|(_, path)| path == route).map(|(method, _)| method.as_str()).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.sort_unstable();
        methods.join(",")
    }

    /// How requests to this route are let in.
    pub fn door(&self, method: &Method, route: &str) -> Door {
        let rights = self.of_route(method, route);
        match rights {
            [] => Door::Closed,
            _ if rights.contains(&Right::Open) => Door::Open,
            _ if rights.contains(&Right::Holder) => Door::CallerOrHolder,
            _ => Door::Caller,
        }
    }

    /// Lets the caller in, or names what it lacks.
    ///
    /// # Errors
    /// [`ApiError::ScopeMissing`] with the scopes of which one is needed, or [`ApiError::PersonRequired`].
    pub fn check(&self, caller: &Caller, method: &Method, route: &str) -> Result<(), ApiError> {
        let rights = self.of_route(method, route);
        if rights.iter().any(|right| right.admits(caller)) {
            return Ok(());
        }
        let scopes: Vec<Scope> = rights.iter().filter_map(Right::scope).collect();
        if scopes.is_empty() {
            return Err(ApiError::BuyersOnly);
        }
        if caller.has_one_of(&scopes) { Err(ApiError::PersonRequired) } else { Err(ApiError::ScopeMissing(scopes)) }
    }
}

impl Right {
    fn admits(&self, caller: &Caller) -> bool {
        match self {
            Right::Open => true,
            Right::Buyer => matches!(caller.identity, Identity::Buyer(_)),
            Right::Holder => false,
            Right::Scoped(scope) => caller.has_one_of(&[*scope]),
            Right::Person(scope) => caller.person().is_ok() && caller.has_one_of(&[*scope]),
        }
    }

    fn scope(&self) -> Option<Scope> {
        match self {
            Right::Scoped(scope) | Right::Person(scope) => Some(*scope),
            Right::Open | Right::Buyer | Right::Holder => None,
        }
    }
}

/// The security requirements of an operation (OpenAPI 3.1, "Security Requirement Object"). Without any it is open.
fn read(security: &Value) -> Vec<Right> {
    let Some(ways) = security.as_array() else { return vec![Right::Open] };
    let mut rights = Vec::new();
    for way in ways.iter().filter_map(Value::as_object) {
        if way.is_empty() {
            rights.push(Right::Open);
        }
        // Several schemes or scopes of one object are needed together, which no route does: such an object gives no right.
        let several =
            way.len() > 1 || way.values().any(|scopes| scopes.as_array().is_some_and(|scopes| scopes.len() > 1));
        for (scheme, scopes) in way.iter().filter(|_| !several) {
            let scopes = scopes.as_array().into_iter().flatten().filter_map(|scope| scope.as_str()?.parse().ok());
            match scheme.as_str() {
                BUYER => rights.push(Right::Buyer),
                VIEW_TOKEN => rights.push(Right::Holder),
                BACKEND => rights.extend(scopes.map(Right::Scoped)),
                STAFF => rights.extend(scopes.map(Right::Person)),
                _ => {}
            }
        }
    }
    rights
}

#[cfg(test)]
mod tests {
    use domain::{Scopes, UserId};
    use serde_json::json;

    use super::*;

    fn rights(security: Value) -> Rights {
        Rights(HashMap::from([((Method::GET, "/r".to_owned()), read(&security))]))
    }

    fn callers(scopes: &str) -> [Caller; 3] {
        let (id, scopes) = (UserId::parse("a").unwrap(), Scopes::parse(scopes));
        [Identity::Service(id.clone()), Identity::Staff(id.clone()), Identity::Buyer(id)]
            .map(|identity| Caller::new(identity, scopes))
    }

    fn admitted(rights: &Rights, scopes: &str) -> [bool; 3] {
        callers(scopes).map(|caller| rights.check(&caller, &Method::GET, "/r").is_ok())
    }

    #[test]
    fn each_scheme_admits_its_callers_alone() {
        let open = rights(Value::Null);
        assert_eq!(open.door(&Method::GET, "/r"), Door::Open);
        let buyers = rights(json!([{ "bearer": [] }]));
        assert_eq!(admitted(&buyers, "payments:admin payments:read"), [false, false, true]);
        let backend = rights(json!([{ "backend": ["payments:read"] }]));
        // A buyer has no scope, whatever its token says: see `Authenticator`.
        assert_eq!(admitted(&backend, "payments:read"), [true; 3]);
        assert_eq!(admitted(&backend, "payments:refund"), [false; 3]);
        let people = rights(json!([{ "staff": ["payments:cases.confirm"] }]));
        assert_eq!(admitted(&people, "payments:cases.confirm"), [false, true, false]);
        assert_eq!(admitted(&people, "payments:cases.propose"), [false; 3]);
    }

    #[test]
    fn what_is_not_known_gives_no_right() {
        for security in [
            json!([{ "other": ["payments:read"] }]),
            json!([{ "backend": ["payments:reads"] }]),
            json!([]),
            json!([{ "backend": ["payments:read", "payments:refund"] }]),
            json!([{ "bearer": [], "backend": ["payments:read"] }]),
        ] {
            let rights = rights(security);
            assert_eq!(rights.door(&Method::GET, "/r"), Door::Closed);
            assert_eq!(admitted(&rights, "payments:read payments:admin"), [false; 3]);
        }
        let rights = rights(json!([{}]));
        assert_eq!(rights.door(&Method::POST, "/r"), Door::Closed, "another method");
        assert_eq!(rights.door(&Method::HEAD, "/r"), Door::Open);
        assert_eq!(rights.door(&Method::GET, "/other"), Door::Closed);
        assert_eq!((rights.methods("/r"), rights.methods("/other")), ("GET,HEAD".to_owned(), String::new()));
    }
}
