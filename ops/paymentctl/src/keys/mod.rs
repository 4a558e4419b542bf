//! `paymentctl keys`: makes, confirms, lists, rotates and revokes the API keys of the merchant's backend, and makes their
//! secrets for offers.
//!
//! A secret is shown once, on standard output. The database holds the digest of a key's secret alone, and a secret for
//! offers sealed with `SEAL_KEY`.

use clap::Subcommand;
use domain::{ApiKeyId, ApiKeyState};
use runtime::seal::SealKeys;
use serde_json::{Value, json};
use store::tables::api_keys::{self, ApiKey, KeyRefusal};
use store::{DbError, NotDone};

use crate::answer::{Answer, Problem, moment, table};
use crate::place::Place;

mod add;
mod change;
mod offer_secret;

pub use add::Add;
pub use change::{Change, Rotate};

/// What to do with API keys.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key and show its secret, this once.
    ///
    /// A key with the scope payments:refund returns money: it is useless until another person confirms it. A key of
    /// other scopes is active at once. Without --yes nothing is changed.
    Add(Add),
    /// Confirm a key that another person made.
    Confirm(Change),
    /// List all keys, the newest first, with those that were revoked.
    List,
    /// Give a key a new secret and show it, this once. The present secret counts on for a while.
    ///
    /// At most two secrets of a key count: one that was replaced before ends at once.
    Rotate(Rotate),
    /// Give a key a secret that signs offers, and show it, this once.
    ///
    /// An offer fixes the price of a buyer's order. A key that has such a secret already gets a new one, and the present
    /// one counts on for a while; the one before it ends at once. Needs SEAL_KEY of payment-api.
    OfferSecret(Rotate),
    /// End a key for good, within a second, in all its uses.
    Revoke(Change),
}

/// Runs the command on the keys of this database. `operator` is required only where the command writes.
///
/// # Errors
/// [`Problem`]; then nothing was changed.
pub async fn run(
    place: &Place,
    command: &Command,
    operator: Option<&str>,
    seal: Option<&SealKeys>,
) -> Result<Answer, Problem> {
    match command {
        Command::Add(add) => add::run(place, add, operator).await,
        Command::Confirm(change) => change::confirm(place, change, operator).await,
        Command::List => list(place).await,
        Command::Rotate(rotate) => change::rotate(place, rotate, operator).await,
        Command::OfferSecret(rotate) => offer_secret::run(place, rotate, operator, seal).await,
        Command::Revoke(change) => change::revoke(place, change, operator).await,
    }
}

async fn list(place: &Place) -> Result<Answer, Problem> {
    let keys = api_keys::list(&place.db).await?;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let row = |key: &ApiKey| {
        vec![
            key.id.to_string(),
            key.name.to_string(),
            key.environment.to_string(),
            state(key).to_owned(),
            or_dash(key.expires_at.map(moment)),
            or_dash(key.last_used_at.map(moment)),
            key.scopes.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = keys.iter().map(row).collect();
    let text = table(&["KEY", "NAME", "FOR", "STATE", "EXPIRES", "LAST USED", "SCOPES"], &rows);
    let text = if keys.is_empty() { "no such key".to_owned() } else { text };
    Ok(Answer::done(text, json!({ "keys": keys.iter().map(view).collect::<Vec<_>>() })))
}

/// The state, or that the key's time is over.
fn state(key: &ApiKey) -> &'static str {
    if key.has_expired && key.state != ApiKeyState::Revoked { "expired" } else { key.state.as_str() }
}

/// A key in JSON, for scripts.
fn view(key: &ApiKey) -> Value {
    json!({
        "id": key.id.to_string(),
        "name": key.name.as_str(),
        "environment": key.environment.as_str(),
        "state": key.state.as_str(),
        "has_expired": key.has_expired,
        "scopes": key.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>(),
        "networks": key.networks.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "proposed_by": key.proposed_by,
        "confirmed_by": key.confirmed_by,
        "previous_until": key.previous_until.map(moment),
        "expires_at": key.expires_at.map(moment),
        "revoked_at": key.revoked_at.map(moment),
        "last_used_at": key.last_used_at.map(moment),
        "created_at": moment(key.created_at),
        "updated_at": moment(key.updated_at),
    })
}

/// One key by its id.
async fn get(place: &Place, id: ApiKeyId) -> Result<ApiKey, Problem> {
    api_keys::get(&place.db, id).await?.ok_or_else(|| refused(id, &KeyRefusal::Unknown))
}

/// Says what to do about a refusal.
fn refused(id: ApiKeyId, refusal: &KeyRefusal) -> Problem {
    let hint = match refusal {
        KeyRefusal::Unknown => "`paymentctl keys list` lists them",
        KeyRefusal::NameTaken => "take another name; a revoked key keeps its own, because the log names it",
        KeyRefusal::Revoked | KeyRefusal::Expired => "that is final: make a new one with `paymentctl keys add`",
        KeyRefusal::NotConfirmed => "another person runs `paymentctl keys confirm`; to take it back, revoke it",
        KeyRefusal::NoOrders => "take a key with the scope payments:orders",
        KeyRefusal::Active => "nothing is left to confirm",
        KeyRefusal::TakesTwo => "`paymentctl keys add` makes another, and another person confirms it",
        KeyRefusal::SamePerson => "another person runs `paymentctl keys confirm` under their own name",
    };
    Problem::failed(format!("key {id}: {refusal}"), hint)
}

fn not_done(id: ApiKeyId, not_done: NotDone<KeyRefusal>) -> Problem {
    match not_done.refusal() {
        Ok(refusal) => refused(id, &refusal),
        Err(DbError::Constraint(name)) if name == "api_keys_two_people" => refused(id, &KeyRefusal::SamePerson),
        Err(error) => error.into(),
    }
}
