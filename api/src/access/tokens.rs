//! Finds out who sends a request: a bearer token names a caller, a view token names one order.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{ALLOW, AUTHORIZATION};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use domain::{ApiKeyText, OrderId, UserId};
use store::tables::orders::Order;
use tracing::Span;
use tracing::field::display;

use crate::access::api_keys::ApiKeys;
use crate::access::auth::Authenticator;
use crate::access::caller::{Caller, Identity};
use crate::access::guard::ClientIp;
use crate::access::rights::{Door, Rights};
use crate::access::view_token::ViewTokens;
use crate::answer::problem::ApiError;

/// Verifies every kind of token. Clones share the keys.
#[derive(Clone)]
pub struct Tokens {
    /// Authenticates the holders of JWTs.
    pub bearer: Arc<Authenticator>,
    /// The API keys of the merchant's backends.
    pub keys: Arc<ApiKeys>,
    /// Creates and verifies the tokens that let their holder watch one order.
    pub view: Arc<ViewTokens>,
}

impl Tokens {
    /// Verifies tokens with these.
    pub fn new(bearer: Authenticator, keys: ApiKeys, view: ViewTokens) -> Tokens {
        Tokens { bearer: Arc::new(bearer), keys: Arc::new(keys), view: Arc::new(view) }
    }

    /// The holder of the API key of a request, if it has one that is accepted. Logs nothing.
    ///
    /// # Errors
    /// [`ApiError::KeysUnavailable`].
    pub fn key_holder(&self, headers: &HeaderMap, address: IpAddr) -> Result<Option<Caller>, ApiError> {
        let key = bearer(headers).and_then(Result::ok).and_then(ApiKeyText::parse);
        key.map_or(Ok(None), |key| self.keys.identify(&key, address))
    }

    /// The caller, if the request has a valid JWT. Logs nothing.
    pub fn identify(&self, headers: &HeaderMap) -> Option<Caller> {
        self.bearer.judge(bearer(headers)?.ok()?).ok()
    }

    /// Learns new keys of issuers, if the token of a request names one that is not known.
    async fn learn(&self, headers: &HeaderMap) {
        if let Some(Ok(token)) = bearer(headers) {
            self.bearer.learn(token).await;
        }
    }

    fn caller(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller, ApiError> {
        let caller = match extensions.get::<Caller>() {
            // A key is judged once more: it may have been revoked while the body arrived.
            Some(known) if !matches!(known.identity, Identity::Key(_)) => known.clone(),
            _ => self.proved(headers, extensions)?,
        };
        Span::current().record("user_id", display(&caller.identity));
        Ok(caller)
    }

    /// The caller whom the token of a request proves. A refusal is logged with its reason.
    fn proved(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller, ApiError> {
        let token = bearer(headers).ok_or(ApiError::TokenMissing)?;
        let token = token.map_err(|_| self.bearer.refuse("the header Authorization is not `Bearer` and a token"))?;
        if !ApiKeyText::is_one(token) {
            return self.bearer.caller(token);
        }
        match (ApiKeyText::parse(token), extensions.get::<ClientIp>()) {
            (Some(key), Some(ClientIp(address))) => self.keys.caller(&key, *address),
            _ => Err(self.bearer.refuse("it begins like an API key and does not have the form of one")),
        }
    }

    fn viewer(&self, headers: &HeaderMap, extensions: &Extensions, uri: &Uri) -> Result<Viewer, ApiError> {
        if headers.contains_key(AUTHORIZATION) {
            return Ok(Viewer::of(&self.caller(headers, extensions)?));
        }
        let query = uri.query().unwrap_or_default().as_bytes();
        let token = url::form_urlencoded::parse(query).find(|(name, _)| name == "view_token");
        let (_, token) = token.ok_or(ApiError::TokenMissing)?;
        self.view.open(&token).map(Viewer::Holder)
    }
}

/// The token of an `Authorization: Bearer` header. `None` if there is no such header.
fn bearer(headers: &HeaderMap) -> Option<Result<&str, ApiError>> {
    let value = headers.get(AUTHORIZATION)?;
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    Some(token.ok_or(ApiError::TokenInvalid))
}

/// The caller of the request. The layer [`deny_by_default`] has checked that it may call the route.
impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Tokens: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Caller, ApiError> {
        Tokens::from_ref(state).caller(&parts.headers, &parts.extensions)
    }
}

/// The buyer who sends the request. Every other caller is refused.
#[derive(Debug, Clone)]
pub struct User(pub UserId);

impl<S> FromRequestParts<S> for User
where
    S: Send + Sync,
    Tokens: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<User, ApiError> {
        match Caller::from_request_parts(parts, state).await?.identity {
            Identity::Buyer(user) => Ok(User(user)),
            _ => Err(ApiError::BuyersOnly),
        }
    }
}

/// The person who sends the request. Keys and tokens of services are no persons.
#[derive(Debug, Clone)]
pub struct Person(pub UserId);

impl<S> FromRequestParts<S> for Person
where
    S: Send + Sync,
    Tokens: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Person, ApiError> {
        Caller::from_request_parts(parts, state).await?.person().cloned().map(Person)
    }
}

/// What the layer [`deny_by_default`] checks with.
#[derive(Clone)]
pub struct Guard {
    /// Verifies the tokens.
    pub tokens: Tokens,
    /// The rights of each route.
    pub rights: Arc<Rights>,
}

/// Refuses every request to a route of the API from a caller whom the description does not let in, whatever the handler
/// itself checks. A route that is not described is closed.
pub async fn deny_by_default(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let refusal = if route.starts_with("/v1/") {
        guard.tokens.learn(request.headers()).await;
        guard.refusal(&request, route)
    } else {
        None
    };
    match refusal {
        None => next.run(request).await,
        Some(refusal) => refusal,
    }
}

impl Guard {
    /// The answer to a request that is not let in.
    fn refusal(&self, request: &Request, route: &str) -> Option<Response> {
        let (headers, extensions) = (request.headers(), request.extensions());
        let door = self.rights.door(request.method(), route);
        let checked = match door {
            Door::Open => Ok(()),
            Door::CallerOrHolder if !headers.contains_key(AUTHORIZATION) => {
                self.tokens.viewer(headers, extensions, request.uri()).map(drop)
            }
            Door::Caller | Door::CallerOrHolder => {
                let caller = self.tokens.caller(headers, extensions);
                caller.and_then(|caller| self.rights.check(&caller, request.method(), route))
            }
            Door::Closed => self.tokens.caller(headers, extensions).map(drop),
        };
        match checked {
            Err(refusal) => Some(refusal.into_response()),
            Ok(()) if door == Door::Closed => {
                Some((StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, self.rights.methods(route))]).into_response())
            }
            Ok(()) => None,
        }
    }
}

/// Who reads an order. If a request has a bearer token and a `view_token`, the bearer token counts.
#[derive(Debug, Clone)]
pub enum Viewer {
    /// A buyer, who sees their own orders.
    User(UserId),
    /// The holder of a `view_token`, who sees this one order.
    Holder(OrderId),
    /// The merchant, who sees every order. The rights of the route have let it in.
    Merchant,
}

impl Viewer {
    /// What a caller sees whom the route has let in.
    pub fn of(caller: &Caller) -> Viewer {
        match &caller.identity {
            Identity::Buyer(user) => Viewer::User(user.clone()),
            Identity::Key(_) | Identity::Service(_) | Identity::Staff(_) => Viewer::Merchant,
        }
    }

    /// The order, if the viewer may see it.
    ///
    /// # Errors
    /// [`ApiError::OrderNotFound`], also for another user's order.
    pub fn shown(&self, order: Option<Order>) -> Result<Order, ApiError> {
        order.filter(|order| self.may_see(order.id, &order.user_id)).ok_or(ApiError::OrderNotFound)
    }

    /// Whether the viewer may see this order of that user. An order's id and user never change, so a copy is good
    /// enough.
    pub fn may_see(&self, order: OrderId, owner: &UserId) -> bool {
        match self {
            Viewer::User(user) => owner == user,
            Viewer::Holder(id) => order == *id,
            Viewer::Merchant => true,
        }
    }
}

impl<S> FromRequestParts<S> for Viewer
where
    S: Send + Sync,
    Tokens: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Viewer, ApiError> {
        Tokens::from_ref(state).viewer(&parts.headers, &parts.extensions, &parts.uri)
    }
}
