//! The shopper's token. A real shop creates it for the logged-in user; here that is always the same person.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::cli::Identity;

/// How long a token is valid. Each call gets a new one, so it only has to outlast clock differences.
const LIFETIME_S: u64 = 300;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
}

/// A new token for the shopper.
pub(crate) fn mint(identity: &Identity, now: SystemTime) -> anyhow::Result<String> {
    let now = now.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let claims = Claims {
        iss: &identity.jwt_issuer,
        aud: &identity.jwt_audience,
        sub: &identity.shopper,
        iat: now,
        nbf: now,
        exp: now + LIFETIME_S,
    };
    let key = EncodingKey::from_secret(identity.jwt_secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).context("signing the shopper's token")
}
