//! A key that verifies tokens or offers: its algorithm, its issuer, and the claims that it requires.

use std::collections::HashSet;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::{Value, json};

/// How far the clocks of issuer and service may differ.
pub(super) const LEEWAY_S: u64 = 30;

/// Who signs a token, and so what its holder can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Issuer {
    /// The merchant's user system. Its tokens name buyers and carry no scope.
    Buyers,
    /// The issuer for the merchant's backends. Its tokens never have a scope of people.
    Services,
    /// The issuer for people who work for the merchant.
    Staff,
    /// The issuer for the merchant's backends, when it signs offers. An offer is no bearer token.
    Offers,
}

impl Issuer {
    /// The issuers of bearer tokens. A token is tried with the keys of each.
    pub(super) const OF_BEARERS: [Issuer; 3] = [Issuer::Buyers, Issuer::Services, Issuer::Staff];
}

/// One key that verifies tokens, or offers.
pub struct Key {
    /// Whose key it is.
    pub(super) issuer: Issuer,
    /// The key's name. `None`: a shared secret, which has no name.
    pub(super) kid: Option<String>,
    /// What it verifies with.
    pub(super) key: DecodingKey,
    /// Allows exactly one algorithm.
    pub(super) validation: Validation,
    /// The time until which the key is accepted, in seconds since 1970. `None`: without end.
    pub(super) until: Option<u64>,
}

/// The claims that every token of an issuer must have.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Whose tokens these are.
    pub of: Issuer,
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
}

impl Claimed {
    /// Whether tokens with the one's `iss` and `aud` are tokens of the other, too.
    pub(super) fn is_same_as(&self, other: &Claimed) -> bool {
        (&self.issuer, &self.audience) == (&other.issuer, &other.audience)
    }
}

impl Key {
    /// The key for tokens that are signed with HS256 and this secret.
    pub fn of_secret(secret: &SecretString, claimed: &Claimed, until: Option<u64>) -> Key {
        let key = DecodingKey::from_secret(secret.expose_secret().as_bytes());
        Key { issuer: claimed.of, kid: None, key, validation: validation(Algorithm::HS256, claimed), until }
    }

    /// The keys of a JWKS (RFC 7517): RSA for RS256, P-256 for ES256, Ed25519 for EdDSA, each named by its `kid`.
    ///
    /// # Errors
    /// States what is wrong with the set, one sentence for each key.
    pub fn of_jwks(text: &str, claimed: &Claimed) -> Result<Vec<Key>, Vec<String>> {
        let set: JwkSet = serde_json::from_str(text).map_err(|error| vec![not_a_jwks(&error)])?;
        let signing = |jwk: &&Jwk| jwk.common.public_key_use != Some(PublicKeyUse::Encryption);
        let (mut keys, mut faults, mut kids) = (Vec::new(), Vec::new(), HashSet::new());
        for (n, jwk) in set.keys.iter().filter(signing).enumerate() {
            let name = jwk.common.key_id.clone().unwrap_or_else(|| format!("number {}", n + 1));
            match jwks_key(jwk, claimed) {
                Ok(key) if kids.insert(key.kid.clone()) => keys.push(key),
                Ok(_) => faults.push(format!("key {name}: the kid appears twice")),
                Err(wrong) => faults.push(format!("key {name}: {wrong}")),
            }
        }
        if keys.is_empty() && faults.is_empty() {
            faults.push("it holds no key for signatures".to_owned());
        }
        if faults.is_empty() { Ok(keys) } else { Err(faults) }
    }

    /// The same key for tokens with other claims.
    pub(super) fn for_claims(&self, claimed: &Claimed) -> Key {
        let mut validation = self.validation.clone();
        validation.set_audience(&[&claimed.audience]);
        validation.set_issuer(&[&claimed.issuer]);
        let (kid, key, until) = (self.kid.clone(), self.key.clone(), self.until);
        Key { issuer: claimed.of, kid, key, validation, until }
    }
}

/// The keys of a JWKS that an issuer publishes. It may hold keys for other purposes and of other kinds, which are left out.
pub(super) struct Set {
    /// The keys that this service can use.
    pub(super) keys: Vec<Key>,
    /// Why others are left out, one sentence for each.
    pub(super) left_out: Vec<String>,
}

impl Set {
    /// Reads a set.
    ///
    /// # Errors
    /// It is no JWKS, or no key of it can be used.
    pub(super) fn read(text: &str, claimed: &Claimed) -> Result<Set, String> {
        #[derive(Deserialize)]
        struct Members {
            keys: Vec<Value>,
        }
        let Members { keys: members } = serde_json::from_str(text).map_err(|error| not_a_jwks(&error))?;
        let (mut keys, mut left_out) = (Vec::new(), Vec::new());
        for member in members {
            let text = json!({ "keys": [member] }).to_string();
            match Key::of_jwks(&text, claimed) {
                Ok(key) => keys.extend(key),
                Err(wrong) => left_out.extend(wrong),
            }
        }
        let mut kids = HashSet::new();
        keys.retain(|key| kids.insert(key.kid.clone()));
        if keys.is_empty() {
            Err(format!("no key of it fits: {}", left_out.join("; ")))
        } else {
            Ok(Set { keys, left_out })
        }
    }
}

/// States only the position of a value of the wrong type. The library's message repeats the value, and the file may
/// hold a secret by mistake.
fn not_a_jwks(error: &serde_json::Error) -> String {
    match error.classify() {
        Category::Data => format!("it is not a JWKS: see line {}, column {}", error.line(), error.column()),
        Category::Io | Category::Syntax | Category::Eof => format!("it is not a JWKS: {error}"),
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
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return Err("only RSA, P-256 and Ed25519 keys are accepted".to_owned()),
    };
    if jwk.common.key_algorithm.is_some_and(|named| named != algorithm.1) {
        return Err("its alg is none of RS256, ES256, EdDSA, or does not fit the key".to_owned());
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
    let validation = validation(algorithm.0, claimed);
    Ok(Key { issuer: claimed.of, kid: Some(kid), key, validation, until: None })
}

/// Allows one algorithm and requires the claims. Otherwise the library accepts a token without `aud` or `iss`.
fn validation(algorithm: Algorithm, claimed: &Claimed) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
    validation.set_audience(&[&claimed.audience]);
    validation.set_issuer(&[&claimed.issuer]);
    validation.validate_nbf = true;
    validation.leeway = LEEWAY_S;
    validation
}
