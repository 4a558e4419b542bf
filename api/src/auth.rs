//! Who asks: a JWT bearer whose key we hold. The algorithm belongs to the key, never to the token.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use shared::db::unplaced::NO_USER;
use shared::domain::UserId;
use tracing::Span;

use crate::problem::ApiError;
use crate::state::App;

/// The scope of those who look after everybody's payments.
pub const ADMIN: &str = "payments:admin";

/// How far the clocks of issuer and service may differ.
const LEEWAY_S: u64 = 30;

/// Checks bearer tokens with the keys that it was given.
pub struct Authenticator {
    keys: Vec<Key>,
}

struct Key {
    /// `None`: the shared secret, which has no name.
    kid: Option<String>,
    key: DecodingKey,
    /// For exactly one algorithm.
    validation: Validation,
}

/// What every token must claim.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Words with blanks between them (RFC 8693, section 4.2).
    #[serde(default)]
    scope: Option<String>,
}

/// Who asks, and what he may do beyond looking after his own.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who.
    pub user: UserId,
    /// Whether the token has the scope [`ADMIN`].
    pub is_admin: bool,
}

impl Authenticator {
    /// An authenticator without keys: it refuses everybody.
    pub fn new() -> Authenticator {
        Authenticator { keys: Vec::new() }
    }

    /// Takes tokens signed with HS256 and this secret.
    pub fn with_secret(mut self, secret: &SecretString, claimed: &Claimed) -> Authenticator {
        let key = DecodingKey::from_secret(secret.expose_secret().as_bytes());
        self.keys.push(Key { kid: None, key, validation: validation(Algorithm::HS256, claimed) });
        self
    }

    /// Takes tokens signed by the keys of a JWKS (RFC 7517): RSA for RS256, P-256 for ES256, each by its `kid`.
    ///
    /// # Errors
    /// What is wrong with the set, one sentence for each key.
    pub fn with_jwks(mut self, text: &str, claimed: &Claimed) -> Result<Authenticator, Vec<String>> {
        let set: JwkSet = serde_json::from_str(text).map_err(|error| vec![format!("it is not a JWKS: {error}")])?;
        let signing = |jwk: &&Jwk| jwk.common.public_key_use != Some(PublicKeyUse::Encryption);
        let mut faults = Vec::new();
        let mut kids = HashSet::new();
        for (n, jwk) in set.keys.iter().filter(signing).enumerate() {
            let name = jwk.common.key_id.clone().unwrap_or_else(|| format!("number {}", n + 1));
            match jwks_key(jwk, claimed) {
                Ok(key) if kids.insert(key.kid.clone()) => self.keys.push(key),
                Ok(_) => faults.push(format!("key {name}: the kid comes twice")),
                Err(wrong) => faults.push(format!("key {name}: {wrong}")),
            }
        }
        if kids.is_empty() && faults.is_empty() {
            faults.push("it holds no key for signatures".to_owned());
        }
        if faults.is_empty() { Ok(self) } else { Err(faults) }
    }

    /// The caller whom a token names.
    ///
    /// # Errors
    /// [`ApiError::TokenInvalid`], [`ApiError::TokenExpired`].
    pub fn caller(&self, token: &str) -> Result<Caller, ApiError> {
        let header = decode_header(token).map_err(refusal)?;
        let key = self.choose(header.alg, header.kid.as_deref()).ok_or(ApiError::TokenInvalid)?;
        let claims = decode::<Claims>(token, &key.key, &key.validation).map_err(refusal)?.claims;
        let user = UserId::parse(claims.sub).map_err(|_| ApiError::TokenInvalid)?;
        // The user of unplaced orders: no buyer placed them.
        if user.as_str() == NO_USER {
            return Err(ApiError::TokenInvalid);
        }
        let is_admin = claims.scope.is_some_and(|scope| scope.split(' ').any(|word| word == ADMIN));
        Ok(Caller { user, is_admin })
    }

    /// The key by name and algorithm; a token without a name is matched when only one key has its algorithm.
    fn choose(&self, algorithm: Algorithm, kid: Option<&str>) -> Option<&Key> {
        let mut able = self.keys.iter().filter(|key| key.validation.algorithms.contains(&algorithm));
        match kid {
            Some(kid) => able.find(|key| key.kid.is_none() || key.kid.as_deref() == Some(kid)),
            None => able.next().filter(|_| able.next().is_none()),
        }
    }
}

impl Default for Authenticator {
    fn default() -> Authenticator {
        Authenticator::new()
    }
}

fn jwks_key(jwk: &Jwk, claimed: &Claimed) -> Result<Key, String> {
    let kid = jwk.common.key_id.clone().ok_or("it has no kid")?;
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) if rsa.n.len() < 342 => return Err("RSA keys have at least 2048 bits".to_owned()),
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        _ => return Err("only RSA and P-256 keys are taken".to_owned()),
    };
    if jwk.common.key_algorithm.is_some_and(|named| named != algorithm.1) {
        return Err("its alg is neither RS256 nor ES256, or does not fit the key".to_owned());
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
    Ok(Key { kid: Some(kid), key, validation: validation(algorithm.0, claimed) })
}

/// One algorithm, and claims that must be there: the library lets a token without `aud` or `iss` pass otherwise.
fn validation(algorithm: Algorithm, claimed: &Claimed) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
    validation.set_audience(&[&claimed.audience]);
    validation.set_issuer(&[&claimed.issuer]);
    validation.validate_nbf = true;
    validation.leeway = LEEWAY_S;
    validation
}

/// What a token's error is called; which check failed is nobody's business.
pub(crate) fn refusal(error: Error) -> ApiError {
    match error.kind() {
        ErrorKind::ExpiredSignature => ApiError::TokenExpired,
        _ => ApiError::TokenInvalid,
    }
}

/// The token of an `Authorization: Bearer` header, if there is such a header.
fn bearer(headers: &HeaderMap) -> Option<Result<&str, ApiError>> {
    let value = headers.get(AUTHORIZATION)?;
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    Some(token.ok_or(ApiError::TokenInvalid))
}

/// The user who asks; a request without a valid bearer token is refused.
#[derive(Debug, Clone)]
pub struct User(pub UserId);

impl FromRequestParts<Arc<App>> for User {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<User, ApiError> {
        Ok(User(caller(&parts.headers, &parts.extensions, app)?.user))
    }
}

/// A person with the scope [`ADMIN`]; anybody else is refused.
#[derive(Debug, Clone)]
pub struct Admin(pub UserId);

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Admin, ApiError> {
        let caller = caller(&parts.headers, &parts.extensions, app)?;
        if caller.is_admin { Ok(Admin(caller.user)) } else { Err(ApiError::ScopeMissing) }
    }
}

/// Routes of the API that anybody may ask.
const PUBLIC: [&str; 1] = ["/v1/payment-methods"];
/// Routes that a view token opens as well.
const VIEWABLE: [&str; 2] = ["/v1/orders/{id}", "/v1/orders/{id}/stream"];

/// Lets nobody through to a route of the API without a good token, and only administrators to theirs, whatever the handler
/// itself looks at: a route that is forgotten here is closed.
pub async fn deny_by_default(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let checked = match route {
        route if !route.starts_with("/v1/") || PUBLIC.contains(&route) => Ok(()),
        route if VIEWABLE.contains(&route) => {
            viewer(request.headers(), request.extensions(), request.uri(), &app).map(drop)
        }
        route => caller(request.headers(), request.extensions(), &app).and_then(|caller| {
            let allowed = caller.is_admin || !route.starts_with("/v1/admin/");
            if allowed { Ok(()) } else { Err(ApiError::ScopeMissing) }
        }),
    };
    match checked {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// The caller, if the request brings a token that is good.
pub fn identify(headers: &HeaderMap, app: &App) -> Option<Caller> {
    app.authenticator.caller(bearer(headers)?.ok()?).ok()
}

fn caller(headers: &HeaderMap, extensions: &Extensions, app: &App) -> Result<Caller, ApiError> {
    let caller = match extensions.get::<Caller>() {
        Some(known) => known.clone(),
        None => app.authenticator.caller(bearer(headers).ok_or(ApiError::TokenMissing)??)?,
    };
    Span::current().record("userId", caller.user.as_str());
    Ok(caller)
}

/// Who wants to look at an order: a user, or the holder of a `view_token` of one order. The bearer token counts if both
/// are there.
#[derive(Debug, Clone)]
pub enum Viewer {
    /// Sees his own orders.
    User(UserId),
    /// Sees this order.
    Holder(shared::domain::OrderId),
}

impl Viewer {
    /// The order, if the viewer may see it.
    ///
    /// # Errors
    /// [`ApiError::OrderNotFound`]: somebody else's order looks like none.
    pub fn shown(&self, order: Option<shared::db::orders::Order>) -> Result<shared::db::orders::Order, ApiError> {
        order.filter(|order| self.may_see(order.id, &order.user_id)).ok_or(ApiError::OrderNotFound)
    }

    /// Whether the viewer may see this order of that user. Neither ever changes, so a copy tells it as well.
    pub fn may_see(&self, order: shared::domain::OrderId, owner: &UserId) -> bool {
        match self {
            Viewer::User(user) => owner == user,
            Viewer::Holder(id) => order == *id,
        }
    }
}

impl FromRequestParts<Arc<App>> for Viewer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Viewer, ApiError> {
        viewer(&parts.headers, &parts.extensions, &parts.uri, app)
    }
}

fn viewer(headers: &HeaderMap, extensions: &Extensions, uri: &Uri, app: &App) -> Result<Viewer, ApiError> {
    if headers.contains_key(AUTHORIZATION) {
        return Ok(Viewer::User(caller(headers, extensions, app)?.user));
    }
    let query = uri.query().unwrap_or_default().as_bytes();
    let token = url::form_urlencoded::parse(query).find(|(name, _)| name == "view_token");
    let (_, token) = token.ok_or(ApiError::TokenMissing)?;
    app.view_tokens.open(&token).map(Viewer::Holder)
}
