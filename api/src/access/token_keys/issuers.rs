//! The issuers whose keys stand in a JWKS: in a file, or published at a URL.

use std::path::PathBuf;

use runtime::env::Env;

use super::{JWKS_HINT, KeySet};
use crate::access::key::{Claimed, Issuer};
use crate::access::offers;
use crate::access::published::Published;

const URL_HINT: &str =
    "set it to the https URL of a JWKS, as the issuer's documentation or its discovery document (`jwks_uri`) names it";

/// The variables of an issuer. `…_FILE` names a file, `…_URL` an https URL that is fetched again when a token names an
/// unknown key; at most one of the two is set.
struct Names {
    of: Issuer,
    file: &'static str,
    url: &'static str,
    issuer: &'static str,
    audience: &'static str,
}

/// `SERVICE_JWT_JWKS_FILE` or `SERVICE_JWT_JWKS_URL` (default none): the keys of tokens for the merchant's backends, with the
/// required `SERVICE_JWT_ISSUER` and `SERVICE_JWT_AUDIENCE`.
const SERVICE_JWT: Names = Names {
    of: Issuer::Services,
    file: "SERVICE_JWT_JWKS_FILE",
    url: "SERVICE_JWT_JWKS_URL",
    issuer: "SERVICE_JWT_ISSUER",
    audience: "SERVICE_JWT_AUDIENCE",
};
/// `STAFF_JWT_JWKS_FILE` or `STAFF_JWT_JWKS_URL` (default none): the keys of tokens for people, with the required
/// `STAFF_JWT_ISSUER` and `STAFF_JWT_AUDIENCE`.
const STAFF_JWT: Names = Names {
    of: Issuer::Staff,
    file: "STAFF_JWT_JWKS_FILE",
    url: "STAFF_JWT_JWKS_URL",
    issuer: "STAFF_JWT_ISSUER",
    audience: "STAFF_JWT_AUDIENCE",
};

/// Every issuer with a JWKS.
#[derive(Default)]
pub(super) struct Issuers {
    known: Vec<Claimed>,
    /// The sets in files.
    pub(super) sets: Vec<KeySet>,
    /// The sets at URLs.
    pub(super) published: Vec<Published>,
}

impl Issuers {
    /// Reads the variables. `users` is the issuer of users' tokens: `JWT_JWKS_FILE` or `JWT_JWKS_URL` (default none) has its
    /// keys, beside the secret or instead of it.
    pub(super) fn from_env(env: &mut Env, users: &Claimed) -> Issuers {
        let mut issuers = Issuers::default();
        if let Some(place) = Place::from_env(env, "JWT_JWKS_FILE", "JWT_JWKS_URL") {
            issuers.add(env, place, users, users);
        }
        for names in [SERVICE_JWT, STAFF_JWT] {
            let Some(place) = Place::from_env(env, names.file, names.url) else { continue };
            let issuer = env.required(names.issuer, "set it to the `iss` of these tokens");
            let audience = env.required(names.audience, "set it to the `aud` of these tokens");
            let (Some(issuer), Some(audience)) = (issuer, audience) else { continue };
            let claimed = Claimed { of: names.of, issuer, audience };
            if issuers.known.iter().chain([users]).any(|known| known.is_same_as(&claimed)) {
                let wrong = "its issuer and audience are those of another issuer";
                env.fault(place.variable(), wrong, "give each issuer its own");
            }
            issuers.add(env, place, &claimed, users);
        }
        issuers
    }

    /// Whether this issuer has a JWKS.
    pub(super) fn has(&self, issuer: Issuer) -> bool {
        self.known.iter().any(|known| known.of == issuer)
    }

    fn add(&mut self, env: &mut Env, place: Place, claimed: &Claimed, users: &Claimed) {
        self.known.push(claimed.clone());
        match place {
            Place::File(name, path) => self.sets.push(KeySet { name, claimed: claimed.clone(), path }),
            Place::Url(name, url) => match Published::at(name, &url, claimed.clone(), of_offers(claimed, users)) {
                Ok(published) => self.published.push(published),
                Err(wrong) => env.fault(name, wrong, URL_HINT),
            },
        }
    }
}

/// The claims of offers, if this issuer's keys sign them: those of services do, with an audience of their own.
pub(super) fn of_offers(claimed: &Claimed, users: &Claimed) -> Option<Claimed> {
    let audience = offers::audience(&users.audience);
    (claimed.of == Issuer::Services).then(|| Claimed { of: Issuer::Offers, audience, ..claimed.clone() })
}

/// Where a set of keys is, with the variable that says so.
enum Place {
    File(&'static str, PathBuf),
    Url(&'static str, String),
}

impl Place {
    fn from_env(env: &mut Env, file: &'static str, url: &'static str) -> Option<Place> {
        match (env.optional(file), env.optional(url)) {
            (Some(_), Some(_)) => {
                env.fault(url, format!("{file} is set as well"), format!("{JWKS_HINT}, or a URL; not both"));
                None
            }
            (Some(path), None) => Some(Place::File(file, PathBuf::from(path))),
            (None, Some(text)) => Some(Place::Url(url, text)),
            (None, None) => None,
        }
    }

    fn variable(&self) -> &'static str {
        match self {
            Place::File(name, _) | Place::Url(name, _) => name,
        }
    }
}
