//! What the shop's backend signs for a shopper: what is sold, and for how much.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::Identity;

/// How long an offer is valid: as long as a shopper may think about it.
const LIFETIME_S: u64 = 600;
/// The most offers that are kept for repeats.
const KEPT: usize = 1000;

/// The product, and how it will be paid.
#[derive(Debug, Clone)]
pub(crate) struct Purchase {
    pub(crate) product_type: String,
    pub(crate) subject: String,
    /// In yuan, such as `12.34`.
    pub(crate) amount: String,
    pub(crate) payment_method: String,
    pub(crate) scene: String,
    pub(crate) return_url: Option<String>,
    pub(crate) metadata: Map<String, Value>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: String,
    sub: &'a str,
    jti: &'a str,
    iat: u64,
    exp: u64,
    product_type: &'a str,
    subject: &'a str,
    amount: &'a str,
    metadata: &'a Map<String, Value>,
}

/// The offers that were signed. A repeat of a request must be the same, byte for byte, so it carries the same offer.
#[derive(Default)]
pub(crate) struct Offers(Mutex<HashMap<String, String>>);

impl Offers {
    /// The offer of this attempt.
    pub(crate) fn of(&self, identity: &Identity, attempt: &str, purchase: &Purchase) -> anyhow::Result<String> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(offer) = kept.get(attempt) {
            return Ok(offer.clone());
        }
        let offer = sign(identity, attempt, purchase, SystemTime::now())?;
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(attempt.to_owned(), offer.clone());
        Ok(offer)
    }
}

/// A new offer. It names the API key whose offer secret signs it.
fn sign(identity: &Identity, attempt: &str, purchase: &Purchase, now: SystemTime) -> anyhow::Result<String> {
    let now = now.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let claims = Claims {
        iss: &identity.key_id,
        aud: format!("{}/offers", identity.jwt_audience),
        sub: &identity.shopper,
        jti: attempt,
        iat: now,
        exp: now + LIFETIME_S,
        product_type: &purchase.product_type,
        subject: &purchase.subject,
        amount: &purchase.amount,
        metadata: &purchase.metadata,
    };
    let mut header = Header::new(Algorithm::HS256);
    (header.typ, header.kid) = (Some("offer+jwt".to_owned()), Some(identity.key_id.clone()));
    let key = EncodingKey::from_secret(identity.offer_secret.as_bytes());
    jsonwebtoken::encode(&header, &claims, &key).context("signing the offer")
}

/// An offer with the claims of another one, as a buyer would send it who cannot sign.
pub(crate) fn forged(offer: &str, claims_of: &str) -> Option<String> {
    let (header, rest) = offer.split_once('.')?;
    let (_, signature) = rest.split_once('.')?;
    let claims = claims_of.split('.').nth(1)?;
    Some([header, claims, signature].join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_offer_has_other_claims_and_the_old_signature() {
        assert_eq!(forged("h.cheap.s", "h.dear.t").as_deref(), Some("h.dear.s"));
        assert_eq!(forged("h.c.s", "nothing"), None);
    }
}
