//! View tokens: the holder of one may read one order. They are for pages and streams, which cannot use a bearer token.

use std::fmt;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use domain::OrderId;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, get_current_timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;
use tracing::info;

use crate::access::auth;
use crate::answer::problem::ApiError;
use crate::answer::rarely::Few;

/// Prevents a view token from being accepted as a bearer token, and the reverse, even if one secret signs both.
const AUDIENCE: &str = "payment-view";
/// How long an order can still be read after it expires.
pub const AFTER_EXPIRY: Duration = Duration::days(1);
/// How many refused view tokens are logged in a second. Any stranger can send them.
const REFUSED: u32 = 10;

/// Creates and verifies view tokens.
pub struct ViewTokens {
    keys: RwLock<ViewKeys>,
    validation: Validation,
    /// Limits the lines about refused tokens.
    refused: Few,
}

/// The secret that signs, and the secrets that verify.
pub struct ViewKeys {
    encoding: EncodingKey,
    /// Each with the time until which it verifies, in seconds since 1970. The secret that signs has no end.
    decoding: Vec<(DecodingKey, Option<u64>)>,
}

impl ViewKeys {
    /// One secret that both signs and verifies.
    pub fn new(secret: &SecretString) -> ViewKeys {
        let secret = secret.expose_secret().as_bytes();
        let decoding = vec![(DecodingKey::from_secret(secret), None)];
        ViewKeys { encoding: EncodingKey::from_secret(secret), decoding }
    }

    /// Also accepts tokens of this secret, until a time in seconds since 1970.
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
    /// View tokens that are signed with `secret`.
    pub fn new(secret: &SecretString) -> ViewTokens {
        ViewTokens::with_keys(ViewKeys::new(secret))
    }

    /// View tokens that are signed and verified with these keys.
    pub fn with_keys(keys: ViewKeys) -> ViewTokens {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        validation.set_audience(&[AUDIENCE]);
        validation.leeway = 0;
        ViewTokens { keys: RwLock::new(keys), validation, refused: Few::new(REFUSED) }
    }

    /// Replaces all keys with these.
    pub fn put(&self, keys: ViewKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn keys(&self) -> RwLockReadGuard<'_, ViewKeys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a token for one order. It is valid until a day after the order expires.
    ///
    /// # Errors
    /// [`ApiError::Internal`] when the library cannot sign.
    pub fn mint(&self, order: OrderId, expires_at: OffsetDateTime) -> Result<String, ApiError> {
        let exp = (expires_at + AFTER_EXPIRY).unix_timestamp();
        let claims = Claims { aud: AUDIENCE.to_owned(), sub: order, exp };
        encode(&Header::new(Algorithm::HS256), &claims, &self.keys().encoding)
            .map_err(|error| ApiError::Internal(error.into()))
    }

    /// Verifies a token, and returns the order that it is for. A refusal is logged with its reason.
    ///
    /// # Errors
    /// [`ApiError::TokenInvalid`], [`ApiError::TokenExpired`].
    pub fn open(&self, token: &str) -> Result<OrderId, ApiError> {
        let now = get_current_timestamp();
        for (key, _) in self.keys().decoding.iter().filter(|(_, until)| until.is_none_or(|until| now < until)) {
            match decode::<Claims>(token, key, &self.validation) {
                Ok(token) => return Ok(token.claims.sub),
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                Err(error) => return Err(self.refuse(&auth::reason(&error, &self.validation), auth::refusal(&error))),
            }
        }
        Err(self.refuse("no key verifies its signature", ApiError::TokenInvalid))
    }

    fn refuse(&self, reason: &str, error: ApiError) -> ApiError {
        if let (true, left_out) = self.refused.take(Instant::now()) {
            info!(reason, left_out, "A view token was refused: {reason}");
        }
        error
    }
}

/// Shows no secret.
impl fmt::Debug for ViewTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ViewTokens")
    }
}
