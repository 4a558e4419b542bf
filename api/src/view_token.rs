//! View tokens: whoever holds one may read one order. For pages and streams, where a bearer token has no place.

use std::fmt;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use shared::domain::OrderId;
use time::{Duration, OffsetDateTime};

use crate::auth;
use crate::problem::ApiError;

/// Keeps a view token from passing as a bearer token, and the other way round, even under one secret.
const AUDIENCE: &str = "payment-view";
/// How long after its expiry an order can still be looked at.
pub const AFTER_EXPIRY: Duration = Duration::days(1);

/// Makes and reads view tokens.
pub struct ViewTokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
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
        let secret = secret.expose_secret().as_bytes();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        validation.set_audience(&[AUDIENCE]);
        validation.leeway = 0;
        ViewTokens {
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
            validation,
        }
    }

    /// A token for one order, good until a day after it expires.
    ///
    /// # Errors
    /// [`ApiError::Internal`] when the library cannot sign.
    pub fn mint(&self, order: OrderId, expires_at: OffsetDateTime) -> Result<String, ApiError> {
        let exp = (expires_at + AFTER_EXPIRY).unix_timestamp();
        let claims = Claims { aud: AUDIENCE.to_owned(), sub: order, exp };
        encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .map_err(|error| ApiError::Internal(error.into()))
    }

    /// The order that a token is for.
    ///
    /// # Errors
    /// [`ApiError::TokenInvalid`], [`ApiError::TokenExpired`].
    pub fn open(&self, token: &str) -> Result<OrderId, ApiError> {
        let opened = decode::<Claims>(token, &self.decoding, &self.validation);
        opened.map(|token| token.claims.sub).map_err(auth::refusal)
    }
}

/// Shows no secret.
impl fmt::Debug for ViewTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ViewTokens")
    }
}
