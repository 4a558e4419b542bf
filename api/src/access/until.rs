//! Switches for callers of an earlier release, each with an end.

use jsonwebtoken::get_current_timestamp;
use runtime::env::Env;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::warn;

/// How far ahead the end may lie.
const DAYS: i64 = 90;

/// Reads a time, at most 90 days ahead, until which `allowed` holds. Each start warns about it. In seconds since 1970; 0 if
/// the variable is not set. `None`: a fault was recorded.
pub fn until(env: &mut Env, name: &'static str, allowed: &str) -> Option<u64> {
    const HINT: &str = "set it to a time at most 90 days ahead, such as 2026-12-31T00:00:00Z, or leave it out";
    let Some(text) = env.optional(name) else { return Some(0) };
    let Ok(at) = OffsetDateTime::parse(&text, &Rfc3339) else {
        env.fault(name, format!("{text:?} is not an RFC 3339 time"), HINT);
        return None;
    };
    let (at, now) = (at.unix_timestamp(), i64::try_from(get_current_timestamp()).unwrap_or(i64::MAX));
    if at > now.saturating_add(DAYS * 24 * 3600) {
        env.fault(name, format!("{text} is more than 90 days ahead"), HINT);
        return None;
    }
    if at <= now {
        warn!("{name} has passed, so it allows nothing any more: remove it");
    } else {
        warn!("Until {text} {allowed} ({name})");
    }
    u64::try_from(at).ok().or(Some(0))
}
