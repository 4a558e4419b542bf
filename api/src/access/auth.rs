//! Authenticates the holders of JWT bearer tokens. Each token is signed by a key that we know, and the key determines the
//! algorithm and the issuer, never the token. There are three issuers: of buyers, of services, and of staff. The keys of
//! offers are held here as well, and no bearer token is checked with them.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::{Scope, Scopes, UserId, shorten_chars};
use futures_util::future::join_all;
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header, get_current_timestamp};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Number, Value};
use store::tables::unplaced::NO_USER;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::access::caller::{Caller, Identity};
use crate::access::key::{Claimed, Issuer, Key, LEEWAY_S};
use crate::access::offers;
use crate::access::published::Published;
use crate::answer::problem::ApiError;
use crate::answer::rarely::Few;

/// How long a bearer token may live from its `iat`, unless the operator sets another time.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// The same for a token with a scope beyond a buyer's own orders and payments.
const MAX_SCOPED_AGE: Duration = Duration::from_secs(3600);
/// How many refusals of tokens without a valid signature are logged in a second. Any stranger can cause them.
const UNPROVED: u32 = 10;
/// Words of a scope that name nothing beyond that.
const OWN: [&str; 3] = ["", "orders", "payments"];

/// Checks bearer tokens with the given keys.
pub struct Authenticator {
    keys: RwLock<Vec<Key>>,
    /// Issuers that publish their keys.
    published: Vec<Arc<Published>>,
    max_age: Duration,
    /// Until this time, in seconds since 1970, a buyers' token with the scope `payments:admin` names a person.
    user_admins_until: u64,
    /// Whether a subject may have more than [`UserId::SHORT`] characters.
    long_user_ids: bool,
    /// The `aud` of offers.
    offer_audience: String,
    /// Limits the lines about tokens without a valid signature.
    unproved: Few,
}

/// The claims that this service reads. That the required ones are there is checked by [`Validation`], which names the
/// missing one.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    #[serde(default)]
    exp: Option<Number>,
    #[serde(default)]
    iat: Option<Number>,
    /// Words separated by spaces (RFC 8693, section 4.2).
    #[serde(default)]
    scope: Option<String>,
    /// When the person signed in (OpenID Connect Core 1.0, section 2).
    #[serde(default)]
    auth_time: Option<Number>,
}

/// A refused token. The log shows the `reason`; the answer never does.
pub(crate) struct Refused {
    error: ApiError,
    reason: String,
    /// Whether the signature is valid, so that the issuer of the token can correct it.
    is_signed: bool,
}

impl Refused {
    /// A token with a valid signature.
    fn because(reason: impl Into<String>) -> Refused {
        Refused { error: ApiError::TokenInvalid, reason: reason.into(), is_signed: true }
    }

    /// A token that proves nothing.
    fn unproved(reason: impl Into<String>) -> Refused {
        Refused { is_signed: false, ..Refused::because(reason) }
    }
}

impl Authenticator {
    /// An authenticator without keys: it refuses every token.
    pub fn new() -> Authenticator {
        Authenticator {
            keys: RwLock::default(),
            published: Vec::new(),
            max_age: MAX_AGE,
            user_admins_until: 0,
            long_user_ids: false,
            offer_audience: String::new(),
            unproved: Few::new(UNPROVED),
        }
    }

    /// Accepts tokens that are signed with HS256 and this secret.
    pub fn with_secret(self, secret: &SecretString, claimed: &Claimed) -> Authenticator {
        self.with_keys(vec![Key::of_secret(secret, claimed, None)])
    }

    /// Accepts tokens that are signed by the keys of a JWKS, see [`Key::of_jwks`].
    ///
    /// # Errors
    /// States what is wrong with the set, one sentence for each key.
    pub fn with_jwks(self, text: &str, claimed: &Claimed) -> Result<Authenticator, Vec<String>> {
        Ok(self.with_keys(Key::of_jwks(text, claimed)?))
    }

    /// Accepts tokens that are signed by these keys as well.
    #[must_use]
    pub fn with_keys(mut self, keys: Vec<Key>) -> Authenticator {
        self.keys.get_mut().unwrap_or_else(PoisonError::into_inner).extend(keys);
        self
    }

    /// Accepts no token that lives longer than this from its `iat`.
    #[must_use]
    pub fn with_max_age(self, max_age: Duration) -> Authenticator {
        Authenticator { max_age, ..self }
    }

    /// Accepts people by buyers' tokens with the scope `payments:admin` until this time, in seconds since 1970, as earlier
    /// releases did.
    #[must_use]
    pub fn with_user_admins_until(self, until: u64) -> Authenticator {
        Authenticator { user_admins_until: until, ..self }
    }

    /// Accepts user ids of more than [`UserId::SHORT`] characters. Only once the release before runs nowhere: it cannot
    /// read the rows and the events of such a user.
    #[must_use]
    pub fn with_long_user_ids(self, long_user_ids: bool) -> Authenticator {
        Authenticator { long_user_ids, ..self }
    }

    /// Whether user ids may have more than [`UserId::SHORT`] characters.
    pub fn takes_long_user_ids(&self) -> bool {
        self.long_user_ids
    }

    /// Accepts offers with the audience that belongs to this audience of tokens.
    #[must_use]
    pub fn with_offers_to(self, audience: &str) -> Authenticator {
        Authenticator { offer_audience: offers::audience(audience), ..self }
    }

    /// The `aud` of offers.
    pub fn offer_audience(&self) -> &str {
        &self.offer_audience
    }

    /// Accepts tokens that are signed by the keys that an issuer publishes.
    #[must_use]
    pub fn with_published(mut self, published: Arc<Published>) -> Authenticator {
        self.published.push(published);
        self
    }

    /// Fetches the published keys, unless that was done within the last 30 s.
    pub async fn fetch_published(&self) {
        join_all(self.published.iter().map(|published| published.clone().learn())).await;
    }

    /// Fetches the published keys every five minutes until `stop`.
    pub async fn follow(&self, stop: &CancellationToken) {
        join_all(self.published.iter().map(|published| published.follow(stop))).await;
    }

    /// Fetches the published keys if a token or an offer names a key that is not known: its issuer may have begun to use a
    /// new one. At most one fetch in 30 s.
    pub async fn learn(&self, token: &str) {
        if self.published.is_empty() {
            return;
        }
        let Ok(Header { kid: Some(kid), alg, .. }) = decode_header(token) else { return };
        let is_known = |keys: &[&Key]| keys.iter().any(|key| key.kid.as_deref() == Some(kid.as_str()));
        // No secret is published.
        if alg != Algorithm::HS256 && !self.with_all_keys(is_known) {
            self.fetch_published().await;
        }
    }

    /// What `read` makes of the keys of an issuer that fit a header.
    pub(super) fn with_keys_for<R>(&self, issuer: Issuer, header: &Header, read: impl FnOnce(&[&Key]) -> R) -> R {
        self.with_all_keys(|keys| read(&choose(keys, issuer, header, get_current_timestamp())))
    }

    fn with_all_keys<R>(&self, read: impl FnOnce(&[&Key]) -> R) -> R {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let published: Vec<_> = self.published.iter().map(|published| published.keys()).collect();
        read(&keys.iter().chain(published.iter().flat_map(|keys| keys.iter())).collect::<Vec<&Key>>())
    }

    /// Replaces all keys with these.
    pub fn put(&self, keys: Vec<Key>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// The caller that a token names. A refusal is logged with its reason, and only some in a flood of tokens that prove
    /// nothing.
    ///
    /// # Errors
    /// [`ApiError::TokenInvalid`], [`ApiError::TokenExpired`].
    pub fn caller(&self, token: &str) -> Result<Caller, ApiError> {
        self.judge(token).map_err(|Refused { error, reason, is_signed }| {
            if is_signed {
                info!(reason, "A token with a valid signature was refused: {reason}");
                return error;
            }
            self.refuse(&reason)
        })
    }

    /// The refusal of a token that proves nothing, with the reason in the log.
    pub(crate) fn refuse(&self, reason: &str) -> ApiError {
        if let (true, left_out) = self.unproved.take(Instant::now()) {
            info!(reason, left_out, "A token was refused: {reason}");
        }
        ApiError::TokenInvalid
    }

    /// The same without a log line.
    pub(crate) fn judge(&self, token: &str) -> Result<Caller, Refused> {
        let header = decode_header(token).map_err(|_| {
            Refused::unproved("it is not a JWT, or its alg is unknown, or its header has a member twice")
        })?;
        if offers::is_offer(&header) {
            return Err(Refused::unproved("it is an offer, which names no caller"));
        }
        self.with_all_keys(|keys| self.judge_by(keys, token, &header))
    }

    fn judge_by(&self, keys: &[&Key], token: &str, header: &Header) -> Result<Caller, Refused> {
        let now = get_current_timestamp();
        let chosen: Vec<&Key> =
            Issuer::OF_BEARERS.iter().flat_map(|issuer| choose(keys, *issuer, header, now)).collect();
        if chosen.is_empty() {
            return Err(Refused::unproved(no_key(header)));
        }
        let mut other = None;
        for key in chosen {
            match decode::<Claims>(token, &key.key, &key.validation) {
                Ok(_) if header.crit.is_some() => {
                    return Err(Refused::because("its header has `crit`, but this service supports no extension"));
                }
                Ok(token) => return self.accept(token.claims, key.issuer, now),
                // Another secret may have signed it: the previous one, or the current one.
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                // One identity provider may sign for several issuers with one key.
                Err(error) if is_of_another(&error) => other = other.or(Some(refused(&error, key))),
                Err(error) => {
                    let refused = refused(&error, key);
                    let claim = wrong_claim(token).filter(|_| matches!(error.kind(), ErrorKind::Json(_)));
                    return Err(Refused { reason: claim.map_or(refused.reason, str::to_owned), ..refused });
                }
            }
        }
        Err(other.unwrap_or_else(|| Refused::unproved("no key verifies its signature")))
    }

    /// Checks the claims of a token with a valid signature, and returns what its caller may do.
    fn accept(&self, claims: Claims, issuer: Issuer, now: u64) -> Result<Caller, Refused> {
        let subject = self.subject(&claims.sub)?;
        // This user owns the orders that no buyer placed.
        if subject.as_str() == NO_USER {
            return Err(Refused::because("its sub is the user of unplaced orders"));
        }
        let words = claims.scope.as_deref().unwrap_or_default();
        let scopes = Scopes::parse(words);
        let is_admin = now < self.user_admins_until && scopes.contains(Scope::Admin);
        let is_own = issuer == Issuer::Buyers && words.split(' ').all(|word| OWN.contains(&word));
        self.check_age(&claims, now, if is_own { self.max_age } else { self.max_age.min(MAX_SCOPED_AGE) })?;
        match issuer {
            Issuer::Buyers if is_admin => {
                metrics::counter!("user_admin_tokens_total").increment(1);
                person(subject, Scopes::from_iter([Scope::Admin]))
            }
            Issuer::Buyers => {
                if !scopes.is_empty() {
                    metrics::counter!("buyer_scopes_ignored_total").increment(1);
                }
                Ok(Caller::buyer(subject))
            }
            Issuer::Services => Ok(Caller::new(Identity::Service(subject), scopes.without_people())),
            Issuer::Offers => Err(Refused::because("its key is for offers")),
            Issuer::Staff => {
                let signed_in = claims.auth_time.as_ref().and_then(seconds);
                let signed_in =
                    signed_in.ok_or_else(|| Refused::because("it has no auth_time, as tokens of people must"))?;
                if signed_in > now.saturating_add(LEEWAY_S) {
                    return Err(Refused::because("its auth_time is in the future"));
                }
                let caller = person(subject, scopes)?;
                Ok(Caller { signed_in: Some(signed_in), ..caller })
            }
        }
    }

    /// The subject, if it fits.
    fn subject(&self, text: &str) -> Result<UserId, Refused> {
        let subject = UserId::parse(text);
        let subject = subject.map_err(|rule| Refused::because(format!("its sub does not fit: it must be {rule}")))?;
        if subject.is_long() && !self.long_user_ids {
            return Err(Refused::because(TOO_LONG));
        }
        Ok(subject)
    }

    /// Checks how long the token lives from its `iat`.
    fn check_age(&self, claims: &Claims, now: u64, most: Duration) -> Result<(), Refused> {
        let most = most.as_secs();
        let issued = claims.iat.as_ref().and_then(seconds).ok_or_else(|| Refused::because("it has no iat"))?;
        let ends = claims.exp.as_ref().and_then(seconds).ok_or_else(|| Refused::because("its exp is not a time"))?;
        if issued > now.saturating_add(LEEWAY_S) {
            return Err(Refused::because("its iat is in the future"));
        }
        let age = ends.saturating_sub(issued);
        if age > most {
            return Err(Refused::because(format!("it lives {age} s from its iat, but at most {most} s are allowed")));
        }
        Ok(())
    }
}

/// Why a subject of more than [`UserId::SHORT`] characters is refused while `LONG_USER_IDS` is off.
const TOO_LONG: &str =
    "its sub has more than 32 characters: set LONG_USER_IDS once every process of the release before is gone";

/// Why no key is tried. The names in the header come from a stranger, so they are shortened, and printed with escapes.
fn no_key(header: &Header) -> String {
    match header.kid.as_deref() {
        Some(kid) => format!("no key for {:?} has its kid {:?}", header.alg, shorten_chars(kid, 64)),
        None => format!("it has no kid, and not exactly one key is for {:?}", header.alg),
    }
}

/// A person. Two subjects that differ only in ASCII case are one person.
fn person(subject: UserId, scopes: Scopes) -> Result<Caller, Refused> {
    // The operators' tool writes such names into the audit log.
    if subject.as_str().to_ascii_lowercase().starts_with("paymentctl/") {
        return Err(Refused::because("its sub is a name of the operators' tool"));
    }
    let subject = UserId::parse(subject.as_str().to_ascii_lowercase());
    let subject = subject.map_err(|_| Refused::because("its sub is not a user id"))?;
    Ok(Caller::new(Identity::Staff(subject), scopes))
}

/// Selects keys of an issuer by name and algorithm. A token without a `kid` matches the shared secrets. It matches a
/// named key only if no other key of the issuer has its algorithm.
fn choose<'k>(keys: &[&'k Key], issuer: Issuer, header: &Header, now: u64) -> Vec<&'k Key> {
    let counts = |key: &&Key| key.until.is_none_or(|until| now < until);
    let able =
        keys.iter().copied().filter(|key| key.issuer == issuer && key.validation.algorithms.contains(&header.alg));
    let able = able.filter(counts);
    match header.kid.as_deref() {
        Some(kid) => able.filter(|key| key.kid.as_deref().is_none_or(|known| known == kid)).collect(),
        None => {
            let able: Vec<&Key> = able.collect();
            let is_clear = able.len() == 1 || able.iter().all(|key| key.kid.is_none());
            if is_clear { able } else { Vec::new() }
        }
    }
}

/// A `NumericDate` (RFC 7519, section 2) in whole seconds. `None` for a time before 1970.
pub(super) fn seconds(at: &Number) -> Option<u64> {
    at.as_u64().or_else(|| at.as_f64().filter(|at| (0.0..1e15).contains(at)).map(|at| at as u64))
}

impl Default for Authenticator {
    fn default() -> Authenticator {
        Authenticator::new()
    }
}

/// Whether the signature is valid, and the claims name another issuer or audience than the key's.
fn is_of_another(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience)
}

/// The refusal of a token that a key read. The log names the claim that failed.
fn refused(error: &Error, key: &Key) -> Refused {
    // The library looks at the claims only after the signature.
    let is_signed = matches!(
        error.kind(),
        ErrorKind::InvalidIssuer
            | ErrorKind::InvalidAudience
            | ErrorKind::ExpiredSignature
            | ErrorKind::ImmatureSignature
            | ErrorKind::MissingRequiredClaim(_)
            | ErrorKind::InvalidClaimFormat(_)
            | ErrorKind::Json(_)
    );
    Refused { error: refusal(error), reason: reason(error, &key.validation), is_signed }
}

/// Which claim of a token with a valid signature has another type than it must have. A value of the token is not repeated.
fn wrong_claim(token: &str) -> Option<&'static str> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Map<String, Value> = serde_json::from_slice(&payload).ok()?;
    let value = |claim: &str| claims.get(claim).filter(|value| !value.is_null());
    let text = [
        ("sub", "its sub is not text"),
        ("scope", "its scope is not text: write the words in one text, with a blank between two of them"),
    ];
    let numbers = [
        ("iat", "its iat is not a number of seconds"),
        ("exp", "its exp is not a number of seconds"),
        ("auth_time", "its auth_time is not a number of seconds"),
    ];
    let no_text = text.into_iter().find(|(claim, _)| value(claim).is_some_and(|value| !value.is_string()));
    let no_number = || numbers.into_iter().find(|(claim, _)| value(claim).is_some_and(|value| !value.is_number()));
    no_text.or_else(no_number).map(|(_, wrong)| wrong)
}

/// Which claim failed, and why. A value of the token is not repeated: it may name a person.
pub(crate) fn reason(error: &Error, validation: &Validation) -> String {
    let named = |claim: &str, expected: &Option<HashSet<String>>| {
        let expected = expected.iter().flatten().cloned().collect::<Vec<_>>().join(" or ");
        format!("its {claim} is not {expected}")
    };
    match error.kind() {
        ErrorKind::InvalidIssuer => named("iss", &validation.iss),
        ErrorKind::InvalidAudience => named("aud", &validation.aud),
        ErrorKind::ExpiredSignature => "its exp has passed".to_owned(),
        ErrorKind::ImmatureSignature => "its nbf is in the future".to_owned(),
        ErrorKind::MissingRequiredClaim(claim) => format!("it has no {claim}; a token needs sub, iss, aud, iat and exp"),
        ErrorKind::InvalidClaimFormat(claim) => format!("its {claim} has another type than the standard gives it"),
        ErrorKind::Json(_) => "a claim has another type than the standard gives it (sub and scope are text, iat and exp are numbers), or stands \
                                there twice"
            .to_owned(),
        ErrorKind::InvalidSignature => "no key verifies its signature".to_owned(),
        _ => "it is not a JWT that this service can read".to_owned(),
    }
}

/// Maps the error of a token. Apart from expiry, the client does not learn which check failed.
pub(crate) fn refusal(error: &Error) -> ApiError {
    match error.kind() {
        ErrorKind::ExpiredSignature => ApiError::TokenExpired,
        _ => ApiError::TokenInvalid,
    }
}
