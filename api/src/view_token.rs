//! View tokens: whoever holds one may read one order. For pages and streams, where a bearer token has no place.

use std::fmt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use domain::OrderId;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, get_current_timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::auth;
use crate::problem::ApiError;

/// Keeps a view token from passing as a bearer token, and the other way round, even under one secret.
const AUDIENCE: &str = "payment-view";
/// How long after its expiry an order can still be looked at.
pub const AFTER_EXPIRY: Duration = Duration::days(1);

/// Makes and reads view tokens.
pub struct ViewTokens {
    keys: RwLock<ViewKeys>,
    validation: Validation,
}

/// The secret that signs, and those that verify.
pub struct ViewKeys {
    encoding: EncodingKey,
    /// Each until its time in seconds since 1970; the one that signs has no end.
    decoding: Vec<(DecodingKey, Option<u64>)>,
}

impl ViewKeys {
    /// One secret for both.
    pub fn new(secret: &SecretString) -> ViewKeys {
        let secret = secret.expose_secret().as_bytes();
        let decoding = vec![(DecodingKey::from_secret(secret), None)];
        ViewKeys { encoding: EncodingKey::from_secret(secret), decoding }
    }

    /// Tokens of this secret count as well, until a time in seconds since 1970.
    pub fn verify_until(&mut self, secret: &SecretString, until: u64) {
        self.decoding.push((DecodingKey::from_secret(secret.expose_secret().as_bytes()), Some(until)));
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    sub: OrderId,
    exp: i64,
}

impl ViewTokens {
    /// Tokens under `secret`.
    pub fn new(secret: &SecretString) -> ViewTokens {
        ViewTokens::with_keys(ViewKeys::new(secret))
    }

    /// Tokens under these keys.
    pub fn with_keys(keys: ViewKeys) -> ViewTokens {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        validation.set_audience(&[AUDIENCE]);
        validation.leeway = 0;
        ViewTokens { keys: RwLock::new(keys), validation }
    }

    /// From now on these keys count, and no others.
    pub fn put(&self, keys: ViewKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn keys(&self) -> RwLockReadGuard<'_, ViewKeys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token for one order, good until a day after it expires.
    ///
    /// # Errors
    /// [`ApiError::Internal`] when the library cannot sign.
    pub fn mint(&self, order: OrderId, expires_at: OffsetDateTime) -> Result<String, ApiError> {
        let exp = (expires_at + AFTER_EXPIRY).unix_timestamp();
        let claims = Claims { aud: AUDIENCE.to_owned(), sub: order, exp };
        encode(&Header::new(Algorithm::HS256), &claims, &self.keys().encoding)
            .map_err(|error| ApiError::Internal(error.into()))
    }

    /// The order that a token is for.
    ///
    /// # Errors
    /// [`ApiError::TokenInvalid`], [`ApiError::TokenExpired`].
    pub fn open(&self, token: &str) -> Result<OrderId, ApiError> {
        let now = get_current_timestamp();
        for (key, _) in self.keys().decoding.iter().filter(|(_, until)| until.is_none_or(|until| now < until)) {
            match decode::<Claims>(token, key, &self.validation) {
                Ok(token) => return Ok(token.claims.sub),
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                Err(error) => return Err(auth::refusal(error)),
            }
        }
        Err(ApiError::TokenInvalid)
    }
}

/// Shows no secret.
impl fmt::Debug for ViewTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ViewTokens")
    }
}
