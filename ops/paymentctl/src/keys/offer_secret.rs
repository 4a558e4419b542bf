//! `paymentctl keys offer-secret`.

use domain::ApiKeySecret;
use runtime::random;
use runtime::seal::SealKeys;
use secrecy::ExposeSecret as _;
use serde_json::json;
use store::DbError;
use store::tables::api_keys::{self, offer_secret_place};

use super::change::{Rotate, allowed, dry, title};
use super::{get, not_done};
use crate::answer::{Answer, Problem, lines, moment};
use crate::place::{Place, signature};

/// What is said above a secret.
const SHOWN_ONCE: &str =
    "its text, which is shown this once; sign with all of it, and name the key as `kid` and `iss`:";

/// Gives a key a secret for its offers.
pub(super) async fn run(
    place: &Place,
    rotate: &Rotate,
    operator: Option<&str>,
    seal: Option<&SealKeys>,
) -> Result<Answer, Problem> {
    let by = signature(rotate.yes, operator)?;
    let key = get(place, rotate.id).await?;
    allowed(&key, key.may_offer())?;
    let no_seal =
        || Problem::usage("SEAL_KEY is not set", "set it to the SEAL_KEY of payment-api, which opens the secret");
    let seal = seal.ok_or_else(no_seal)?;
    let Some(by) = by else {
        let mut what = title(&key);
        if let Some(until) = key.previous_offer_until {
            what.push_str(&format!("; the secret that would have counted until {} ends at once", moment(until)));
        }
        return Ok(dry("would make a secret for the offers of", &what, rotate.id));
    };
    let unlucky = |error: &dyn std::error::Error| Problem::failed(error.to_string(), "try again");
    let secret = ApiKeySecret::from_bytes(random::bytes().map_err(|error| unlucky(&error))?).offer_text();
    let id = rotate.id.to_string();
    let sealed = seal.seal(&offer_secret_place(&id), secret.expose_secret().as_bytes());
    let sealed = sealed.map_err(|error| unlucky(&error))?;
    let mut tx = place.db.begin().await.map_err(DbError::from)?;
    let until = api_keys::set_offer_secret(&mut tx, rotate.id, &sealed, rotate.overlap, &by).await;
    let until = until.map_err(|refusal| not_done(rotate.id, refusal))?;
    tx.commit().await.map_err(DbError::from)?;
    let before = until.map_or_else(
        || "no other one counts".to_owned(),
        |until| format!("the one before it counts until {}", moment(until)),
    );
    let text = [format!("made a secret for the offers of {}; {before}", title(&key)), SHOWN_ONCE.to_owned()];
    let json = json!({ "id": id, "previous_until": until.map(moment), "dry_run": false });
    Ok(Answer::done(lines(&text), json).with_secret("offer_secret", secret))
}
