//! The keys of bearer tokens and view tokens, for each of the three issuers. They are read at the start, and reloaded when their files change: a
//! stolen key can be removed and a new key added without a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::env::{ConfigFaults, Env, Fault, read_secret_file, weakness};
use runtime::file_mode;
use runtime::panics::caught_now;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::access::auth::{Authenticator, MAX_AGE};
use crate::access::key::{Claimed, Issuer, Key};
use crate::access::until::until;
use crate::access::view_token::{ViewKeys, ViewTokens};

mod issuers;

use issuers::{Issuers, of_offers};

/// How often the files are checked for a change.
const EVERY: Duration = Duration::from_secs(5);
const SHORTEST: usize = 32;
const SECRET_HINT: &str = "make one with `openssl rand -hex 32`";
const JWKS_HINT: &str = "name a file that holds a JWKS of public keys";

/// The source of every key.
pub struct TokenKeys {
    claimed: Claimed,
    /// `MAX_TOKEN_AGE` (default 24h): how long a bearer token may live from its `iat`.
    longest: Duration,
    /// `JWT_HS256_SECRET` (at least 32 bytes), and `PREVIOUS_JWT_HS256_SECRET`, which is accepted until
    /// `PREVIOUS_JWT_HS256_SECRET_UNTIL`.
    bearer: [Option<Secret>; 2],
    /// The sets of keys in files.
    sets: Vec<KeySet>,
    /// `VIEW_TOKEN_SECRET` (required, at least 32 bytes), which signs view tokens and nothing else, and
    /// `PREVIOUS_VIEW_TOKEN_SECRET`, which is accepted until `PREVIOUS_VIEW_TOKEN_SECRET_UNTIL`.
    view: [Option<Secret>; 2],
    /// The fingerprint of the files, taken just before they were read.
    print: Print,
}

/// The keys of an issuer as a JWKS in a file.
struct KeySet {
    /// The variable that names the file.
    name: &'static str,
    claimed: Claimed,
    path: PathBuf,
}

/// One secret and its source.
struct Secret {
    name: &'static str,
    held: Held,
    /// The time until which a previous secret verifies, in seconds since 1970. It signs nothing. `None`: the current
    /// secret.
    until: Option<u64>,
}

enum Held {
    Value(SecretString),
    File(PathBuf),
}

/// A fingerprint that changes when a file changes. It holds no secret.
type Print = Vec<(bool, Option<[u8; 32]>)>;

impl TokenKeys {
    /// Reads the section, and every key once.
    pub fn from_env(env: &mut Env) -> Option<(TokenKeys, Authenticator, ViewTokens)> {
        let claimed = Claimed {
            of: Issuer::Buyers,
            issuer: env.optional("JWT_ISSUER").unwrap_or_else(|| "payment".to_owned()),
            audience: env.optional("JWT_AUDIENCE").unwrap_or_else(|| "payment-api".to_owned()),
        };
        let age = max_token_age(env);
        // `USER_ADMIN_TOKENS_UNTIL` (default: never): until this time, at most 90 days ahead, tokens of the users' issuer
        // with the scope `payments:admin` name people, as in earlier releases.
        let allowed = "any token of the users' issuer with the scope payments:admin names a person";
        let user_admins_until = until(env, "USER_ADMIN_TOKENS_UNTIL", allowed);
        // `LONG_USER_IDS` (default off): accept user ids of up to 64 characters, and not only of 32.
        let long_user_ids = env.switch("LONG_USER_IDS", false);
        let issuers = Issuers::from_env(env, &claimed);
        let bearer = [secret(env, "JWT_HS256_SECRET"), previous(env, "PREVIOUS_JWT_HS256_SECRET")];
        if bearer[0].is_none() && !issuers.has(Issuer::Buyers) && env.file_of("JWT_HS256_SECRET").is_none() {
            env.fault(
                "JWT_HS256_SECRET",
                "neither it nor JWT_JWKS_FILE nor JWT_JWKS_URL is set",
                "set at least one of them",
            );
        }
        let view = [secret(env, "VIEW_TOKEN_SECRET"), previous(env, "PREVIOUS_VIEW_TOKEN_SECRET")];
        // Reports the variable if it is missing.
        let view_is_there = env.required("VIEW_TOKEN_SECRET", SECRET_HINT).is_some();
        if issuers.has(Issuer::Staff) && user_admins_until.is_some_and(|until| until > 0) {
            let wrong = "the keys of a staff issuer are set as well, so one human could be two persons";
            env.fault(
                "USER_ADMIN_TOKENS_UNTIL",
                wrong,
                "remove it once your administrators have tokens of the staff issuer",
            );
        }
        let Issuers { sets, published, .. } = issuers;
        let longest = age.unwrap_or(MAX_AGE);
        let mut keys = TokenKeys { claimed, longest, bearer, sets, view, print: Print::new() };
        keys.print = keys.print();
        let read = match keys.read() {
            Ok((bearer, Some(view))) => {
                let authenticator = Authenticator::new().with_keys(bearer).with_max_age(keys.longest);
                let authenticator = authenticator.with_user_admins_until(user_admins_until.unwrap_or_default());
                let authenticator = authenticator.with_long_user_ids(long_user_ids);
                let authenticator = authenticator.with_offers_to(&keys.claimed.audience);
                let authenticator =
                    published.into_iter().map(Arc::new).fold(authenticator, Authenticator::with_published);
                Some((keys, authenticator, ViewTokens::with_keys(view)))
            }
            Ok((_, None)) => None,
            Err(faults) => {
                faults.0.into_iter().for_each(|fault| env.fault(fault.subject, fault.wrong, fault.remedy));
                None
            }
        };
        read.filter(|_| view_is_there && age.is_some() && user_admins_until.is_some())
    }

    /// Reloads the keys after each change of a file, until `stop`. A bad file leaves all old keys in force and is
    /// logged once.
    pub async fn watch(self, authenticator: &Authenticator, views: &ViewTokens, stop: CancellationToken) {
        if self.files().next().is_none() {
            return;
        }
        metrics::gauge!("token_keys_up_to_date").set(1.0);
        let mut seen = Seen { judged: self.print.clone(), last: self.print.clone() };
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            if let Err(panic) = caught_now(|| seen.look(&self, authenticator, views)) {
                panic.noted("payment-api", "token keys", &"files");
            }
        }
    }

    fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.bearer.iter().chain(&self.view).flatten()
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let secrets = self.secrets().filter_map(|secret| match &secret.held {
            Held::File(path) => Some(path.as_path()),
            Held::Value(_) => None,
        });
        secrets.chain(self.sets.iter().map(|set| set.path.as_path()))
    }

    fn print(&self) -> Print {
        let of = |path: &Path| {
            let text = std::fs::read(path).ok().map(|text| Sha256::digest(text).into());
            (file_mode::check(path).is_ok(), text)
        };
        self.files().map(of).collect()
    }

    /// Reads every key from its source, or returns every fault.
    fn read(&self) -> Result<(Vec<Key>, Option<ViewKeys>), ConfigFaults> {
        let mut faults = ConfigFaults::default();
        let mut bearer = Vec::new();
        let mut today = None;
        for secret in self.bearer.iter().flatten() {
            if let Some(text) = faults.take(secret.read()) {
                bearer.push(Key::of_secret(&text, &self.claimed, secret.until));
                today = today.or(secret.until.is_none().then_some(text));
            }
        }
        for set in &self.sets {
            let keys = faults.take(set.read()).unwrap_or_default();
            if let Some(claimed) = of_offers(&set.claimed, &self.claimed) {
                bearer.extend(keys.iter().map(|key| key.for_claims(&claimed)));
            }
            bearer.extend(keys);
        }
        let mut view: Option<ViewKeys> = None;
        for secret in self.view.iter().flatten() {
            let Some(text) = faults.take(secret.read()) else { continue };
            match (&mut view, secret.until) {
                (Some(view), Some(until)) => view.verify_until(&text, until),
                (None, Some(_)) => {}
                (_, None) => view = Some(ViewKeys::new(&text)),
            }
            let is_same = today.as_ref().is_some_and(|today| today.expose_secret() == text.expose_secret());
            if is_same {
                faults.push(Fault::new(secret.name, "it is the same as JWT_HS256_SECRET", SECRET_HINT));
            }
        }
        faults.finish()?;
        Ok((bearer, view))
    }
}

impl Secret {
    fn read(&self) -> Result<SecretString, Fault> {
        let fault = |wrong| Fault::new(self.name, wrong, SECRET_HINT);
        let text = match &self.held {
            Held::Value(text) => text.clone(),
            Held::File(path) => read_secret_file(path).map_err(fault)?.into(),
        };
        match weakness(text.expose_secret(), SHORTEST) {
            Some(wrong) => Err(fault(wrong)),
            None => Ok(text),
        }
    }
}

fn secret(env: &mut Env, name: &'static str) -> Option<Secret> {
    let value = env.optional(name)?;
    let held = env.file_of(name).map_or_else(|| Held::Value(value.into()), Held::File);
    Some(Secret { name, held, until: None })
}

/// The previous secret. It verifies until its date and signs nothing.
fn previous(env: &mut Env, name: &'static str) -> Option<Secret> {
    const HINT: &str = "set it to the time until which the previous secret is accepted, such as 2026-12-01T00:00:00Z";
    let (until, secret) = (until_of(name), secret(env, name)?);
    let text = env.required(until, HINT)?;
    let Ok(at) = OffsetDateTime::parse(&text, &Rfc3339) else {
        env.fault(until, format!("{text:?} is not an RFC 3339 time"), HINT);
        return None;
    };
    let at = u64::try_from(at.unix_timestamp()).unwrap_or_default();
    if at <= jsonwebtoken::get_current_timestamp() {
        warn!("{name} is no longer accepted, because {until} has passed: remove both");
    }
    Some(Secret { until: Some(at), ..secret })
}

const fn until_of(name: &'static str) -> &'static str {
    match name.as_bytes() {
        b"PREVIOUS_JWT_HS256_SECRET" => "PREVIOUS_JWT_HS256_SECRET_UNTIL",
        _ => "PREVIOUS_VIEW_TOKEN_SECRET_UNTIL",
    }
}

/// `MAX_TOKEN_AGE`: a number and `s`, `m` or `h`, from a minute to 30 days.
fn max_token_age(env: &mut Env) -> Option<Duration> {
    let Some(text) = env.optional("MAX_TOKEN_AGE") else { return Some(MAX_AGE) };
    let units = [('h', 3600), ('m', 60), ('s', 1)];
    let read =
        units.iter().find_map(|(unit, seconds)| text.strip_suffix(*unit)?.parse::<u64>().ok()?.checked_mul(*seconds));
    let age = read.filter(|age| (60..=30 * 24 * 3600).contains(age));
    if age.is_none() {
        let hint = "set it to a time from 1m to 720h, such as 24h, or leave it out";
        env.fault("MAX_TOKEN_AGE", format!("{text:?} does not fit"), hint);
    }
    age.map(Duration::from_secs)
}

impl KeySet {
    fn read(&self) -> Result<Vec<Key>, ConfigFaults> {
        let fault = |wrong| ConfigFaults::from(Fault::new(self.name, wrong, JWKS_HINT));
        let path = self.path.display();
        file_mode::check(&self.path).map_err(|wrong| fault(format!("{path}: {wrong}")))?;
        let text = std::fs::read_to_string(&self.path);
        let text = text.map_err(|error| fault(format!("{path} cannot be read ({error})")))?;
        Key::of_jwks(&text, &self.claimed).map_err(|wrong| {
            ConfigFaults(wrong.into_iter().map(|wrong| Fault::new(self.name, wrong, JWKS_HINT)).collect())
        })
    }
}

/// The state of the files: the fingerprint that was last evaluated, and the one that was last read.
struct Seen {
    judged: Print,
    last: Print,
}

impl Seen {
    /// Evaluates a change only after two equal reads: at the first read a file may still be being written.
    fn look(&mut self, keys: &TokenKeys, authenticator: &Authenticator, views: &ViewTokens) {
        let now = keys.print();
        let is_settled = now == self.last;
        self.last.clone_from(&now);
        if !is_settled || now == self.judged {
            return;
        }
        self.judged = now;
        let up = match keys.read() {
            Ok((bearer, view)) => {
                info!(keys = bearer.len(), "Loaded the changed token keys");
                authenticator.put(bearer);
                view.into_iter().for_each(|view| views.put(view));
                1.0
            }
            Err(faults) => {
                for fault in &faults.0 {
                    error!(error = %fault, "The old token keys stay in force: {fault}");
                }
                0.0
            }
        };
        metrics::gauge!("token_keys_up_to_date").set(up);
    }
}

#[cfg(test)]
mod tests;
