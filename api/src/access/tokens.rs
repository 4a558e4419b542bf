//! Finds out who sends a request: a bearer token names a user, a view token names one order.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts, MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use domain::{OrderId, UserId};
use store::tables::orders::Order;
use tracing::Span;

use crate::access::auth::{Authenticator, Caller};
use crate::access::view_token::ViewTokens;
use crate::answer::problem::ApiError;

/// Verifies both kinds of token. Clones share the keys.
#[derive(Clone)]
pub struct Tokens {
    /// Authenticates bearer tokens.
    pub bearer: Arc<Authenticator>,
    /// Creates and verifies the tokens that let their holder watch one order.
    pub view: Arc<ViewTokens>,
}

impl Tokens {
    /// Verifies tokens with these two.
    pub fn new(bearer: Authenticator, view: ViewTokens) -> Tokens {
        Tokens { bearer: Arc::new(bearer), view: Arc::new(view) }
    }

    /// The caller, if the request has a valid bearer token.
    pub fn identify(&self, headers: &HeaderMap) -> Option<Caller> {
        self.bearer.judge(bearer(headers)?.ok()?).ok()
    }

    fn caller(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller, ApiError> {
        let caller = match extensions.get::<Caller>() {
            Some(known) => known.clone(),
            None => self.bearer.caller(bearer(headers).ok_or(ApiError::TokenMissing)??)?,
        };
        Span::current().record("user_id", caller.user.as_str());
        Ok(caller)
    }

    fn viewer(&self, headers: &HeaderMap, extensions: &Extensions, uri: &Uri) -> Result<Viewer, ApiError> {
        if headers.contains_key(AUTHORIZATION) {
            return Ok(Viewer::User(self.caller(headers, extensions)?.user));
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

/// The user who sends the request. A request without a valid bearer token is refused.
#[derive(Debug, Clone)]
pub struct User(pub UserId);

impl<S> FromRequestParts<S> for User
where
    S: Send + Sync,
    Tokens: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<User, ApiError> {
        Ok(User(Tokens::from_ref(state).caller(&parts.headers, &parts.extensions)?.user))
    }
}

/// A user with the scope [`ADMIN`](crate::access::auth::ADMIN). Every other caller is refused.
#[derive(Debug, Clone)]
pub struct Admin(pub UserId);

impl<S> FromRequestParts<S> for Admin
where
    S: Send + Sync,
    Tokens: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Admin, ApiError> {
        let caller = Tokens::from_ref(state).caller(&parts.headers, &parts.extensions)?;
        if caller.is_admin { Ok(Admin(caller.user)) } else { Err(ApiError::ScopeMissing) }
    }
}

/// Routes of the API that need no token.
const PUBLIC: [&str; 1] = ["/v1/payment-methods"];
/// Routes that also accept a view token.
const VIEWABLE: [&str; 2] = ["/v1/orders/{id}", "/v1/orders/{id}/stream"];

/// Refuses every request to a route of the API without a valid token, and every request to an administrators' route
/// without the scope [`ADMIN`](crate::access::auth::ADMIN), whatever the handler itself checks. A route that is missing
/// in the lists above is closed.
pub async fn deny_by_default(State(tokens): State<Tokens>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let checked = match route {
        route if !route.starts_with("/v1/") || PUBLIC.contains(&route) => Ok(()),
        route if VIEWABLE.contains(&route) => {
            tokens.viewer(request.headers(), request.extensions(), request.uri()).map(drop)
        }
        route => tokens.caller(request.headers(), request.extensions()).and_then(|caller| {
            let allowed = caller.is_admin || !route.starts_with("/v1/admin/");
            if allowed { Ok(()) } else { Err(ApiError::ScopeMissing) }
        }),
    };
    match checked {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Who reads an order: a user, or the holder of a `view_token` of one order. If a request has both tokens, the bearer
/// token counts.
#[derive(Debug, Clone)]
pub enum Viewer {
    /// Sees their own orders.
    User(UserId),
    /// Sees this one order.
    Holder(OrderId),
}

impl Viewer {
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
