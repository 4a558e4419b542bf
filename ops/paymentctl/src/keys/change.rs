//! `paymentctl keys confirm`, `rotate` and `revoke`.

use clap::Args;
use domain::{ApiKeyId, ApiKeySecret};
use runtime::random;
use serde_json::json;
use store::DbError;
use store::tables::api_keys::{self, ApiKey, KeyRefusal, Rotation};
use time::Duration;

use super::{get, not_done, refused};
use crate::answer::{Answer, Problem, lines, moment};
use crate::place::{Place, signature};
use crate::when::span;

/// What is said above a secret.
pub(super) const SHOWN_ONCE: &str = "its text, which is shown this once and stored nowhere:";

/// The longest time for which two secrets of a key count.
const LONGEST_OVERLAP: Duration = Duration::days(30);

/// Which key to change.
#[derive(Debug, Clone, Args)]
pub struct Change {
    /// The key's id, the part after sk_live_ or sk_test_.
    #[arg(value_parser = ApiKeyId::parse)]
    pub id: ApiKeyId,
    /// Do it. Without this flag the command only shows what it would do.
    #[arg(long)]
    pub yes: bool,
}

/// Which key gets a new secret.
#[derive(Debug, Clone, Args)]
pub struct Rotate {
    /// The key's id, the part after sk_live_ or sk_test_.
    #[arg(value_parser = ApiKeyId::parse)]
    pub id: ApiKeyId,
    /// How long the present secret counts on, 30d at most. 0s ends it at once, such as one that leaked.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = overlap)]
    pub overlap: Duration,
    /// Do it. Without this flag the command only shows what it would do.
    #[arg(long)]
    pub yes: bool,
}

fn overlap(text: &str) -> Result<Duration, String> {
    let overlap = span(text)?;
    if overlap <= LONGEST_OVERLAP { Ok(overlap) } else { Err("no more than 30d".to_owned()) }
}

/// Confirms a key that another person made.
pub(super) async fn confirm(place: &Place, change: &Change, operator: Option<&str>) -> Result<Answer, Problem> {
    let by = signature(change.yes, operator)?;
    let key = get(place, change.id).await?;
    // Without a name the dry run cannot know whether it would be the same person.
    let named = operator.map(|operator| format!("paymentctl/{operator}")).unwrap_or_default();
    allowed(&key, key.may_confirm(&named))?;
    let what = format!("{}, which {} made: it may {}", title(&key), key.proposed_by, key.scopes);
    let Some(by) = by else { return Ok(dry("would confirm", &what, change.id)) };
    let mut tx = place.db.begin().await.map_err(DbError::from)?;
    api_keys::confirm(&mut tx, change.id, &by).await.map_err(|refusal| not_done(change.id, refusal))?;
    tx.commit().await.map_err(DbError::from)?;
    Ok(Answer::done(lines(&[format!("confirmed {what}")]), json!({ "id": change.id.to_string(), "dry_run": false })))
}

/// Gives a key a new secret.
pub(super) async fn rotate(place: &Place, rotate: &Rotate, operator: Option<&str>) -> Result<Answer, Problem> {
    let by = signature(rotate.yes, operator)?;
    let key = get(place, rotate.id).await?;
    allowed(&key, key.may_rotate())?;
    let Some(by) = by else {
        let mut what = title(&key);
        if let Some(until) = key.previous_until {
            what.push_str(&format!("; the secret that would have counted until {} ends at once", moment(until)));
        }
        return Ok(dry("would make a new secret for", &what, rotate.id));
    };
    let unlucky = |error: random::NoRandomness| Problem::failed(error.to_string(), "try again");
    let secret = ApiKeySecret::from_bytes(random::bytes().map_err(unlucky)?);
    let rotation = Rotation { digest: secret.digest(), overlap: rotate.overlap };
    let mut tx = place.db.begin().await.map_err(DbError::from)?;
    let until = api_keys::rotate(&mut tx, rotate.id, &rotation, &by).await;
    let until = until.map_err(|refusal| not_done(rotate.id, refusal))?;
    tx.commit().await.map_err(DbError::from)?;
    let before = until.map_or_else(
        || "the secret before it has ended".to_owned(),
        |until| format!("the secret before it counts until {}", moment(until)),
    );
    let text = [format!("made a new secret for {}; {before}", title(&key)), SHOWN_ONCE.to_owned()];
    let json = json!({ "id": rotate.id.to_string(), "previous_until": until.map(moment), "dry_run": false });
    Ok(Answer::done(lines(&text), json).with_secret("secret", secret.text(key.environment, rotate.id)))
}

/// Ends a key for good.
pub(super) async fn revoke(place: &Place, change: &Change, operator: Option<&str>) -> Result<Answer, Problem> {
    let by = signature(change.yes, operator)?;
    let key = get(place, change.id).await?;
    allowed(&key, key.may_revoke())?;
    let last = key.last_used_at.map_or_else(|| "never used".to_owned(), |at| format!("last used {}", moment(at)));
    let what = format!("{}, {last}", title(&key));
    let Some(by) = by else { return Ok(dry("would revoke", &what, change.id)) };
    let mut tx = place.db.begin().await.map_err(DbError::from)?;
    api_keys::revoke(&mut tx, change.id, &by).await.map_err(|refusal| not_done(change.id, refusal))?;
    tx.commit().await.map_err(DbError::from)?;
    Ok(Answer::done(lines(&[format!("revoked {what}")]), json!({ "id": change.id.to_string(), "dry_run": false })))
}

pub(super) fn title(key: &ApiKey) -> String {
    format!("{} {:?} ({})", key.id, key.name.as_str(), key.environment)
}

pub(super) fn allowed(key: &ApiKey, judged: Result<(), KeyRefusal>) -> Result<(), Problem> {
    judged.map_err(|refusal| refused(key.id, &refusal))
}

pub(super) fn dry(would: &str, what: &str, id: ApiKeyId) -> Answer {
    let text = [format!("{would} {what}"), "nothing was changed; --yes does it".to_owned()];
    Answer::done(lines(&text), json!({ "id": id.to_string(), "dry_run": true }))
}
