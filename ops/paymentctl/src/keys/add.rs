//! `paymentctl keys add`.

use std::net::IpAddr;

use clap::Args;
use domain::{ApiKeyId, ApiKeyName, ApiKeySecret, ApiKeyState, KeyEnvironment, Scope};
use ipnet::IpNet;
use runtime::random;
use serde_json::json;
use store::DbError;
use store::tables::api_keys::{self, NewApiKey};

use super::not_done;
use crate::answer::{Answer, Problem, lines, moment};
use crate::place::{Place, signature};
use crate::when::{self, Ahead};

/// The key to make.
#[derive(Debug, Clone, Args)]
pub struct Add {
    /// Its name: what uses it. No two keys have the same, not even a revoked one.
    #[arg(long, value_parser = |text: &str| ApiKeyName::parse(text))]
    pub name: ApiKeyName,
    /// What it may do, such as payments:orders,payments:read.
    #[arg(long, required = true, value_name = "SCOPE,…", value_delimiter = ',', value_parser = scope)]
    pub scopes: Vec<Scope>,
    /// The addresses that its requests may come from. Without this flag they may come from everywhere.
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', value_parser = network)]
    pub networks: Vec<IpNet>,
    /// When it ends by itself: 2026-12-31T18:00:00+08:00, 2026-12-31 (midnight in Beijing), or a time from now such as 90d.
    #[arg(long, value_name = "TIME", value_parser = when::ahead)]
    pub expires: Option<Ahead>,
    /// For trying things out: its text begins with sk_test_.
    #[arg(long)]
    pub test: bool,
    /// Do it. Without this flag the command only shows what it would do.
    #[arg(long)]
    pub yes: bool,
}

/// Accepts a scope that a key may have.
fn scope(text: &str) -> Result<Scope, String> {
    let allowed: Vec<&str> = Scope::ALL.iter().filter(|scope| !scope.of_people()).map(|scope| scope.as_str()).collect();
    let allowed = allowed.join(", ");
    match text.parse::<Scope>() {
        Ok(scope) if scope.of_people() => Err(format!("only a person has this scope; a key may have {allowed}")),
        Ok(scope) => Ok(scope),
        Err(_) => Err(format!("no such scope; a key may have {allowed}")),
    }
}

/// Accepts a network or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let network = network.ok_or("write a network or an address, such as 203.0.113.0/24 or 203.0.113.7")?;
    if network.trunc() == network { Ok(network) } else { Err(format!("did you mean {}?", network.trunc())) }
}

/// Makes the key and shows its secret, or shows what it would make.
pub(super) async fn run(place: &Place, add: &Add, operator: Option<&str>) -> Result<Answer, Problem> {
    let by = signature(add.yes, operator)?;
    let expires_at = add.expires.map(|expires| expires.at(place.clock.now()));
    if expires_at.is_some_and(|at| at <= place.clock.now()) {
        return Err(Problem::usage("the key would have expired already", "give --expires a time in the future"));
    }
    let unlucky = |error: random::NoRandomness| Problem::failed(error.to_string(), "try again");
    let id = ApiKeyId::from_bytes(random::bytes().map_err(unlucky)?);
    let secret = ApiKeySecret::from_bytes(random::bytes().map_err(unlucky)?);
    let new = NewApiKey {
        id,
        name: add.name.clone(),
        environment: if add.test { KeyEnvironment::Test } else { KeyEnvironment::Live },
        scopes: add.scopes.iter().copied().collect(),
        networks: add.networks.clone(),
        digest: secret.digest(),
        expires_at,
    };
    let json = json!({
        "id": by.is_some().then(|| id.to_string()),
        "name": new.name.as_str(),
        "environment": new.environment.as_str(),
        "state": new.state().as_str(),
        "scopes": new.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>(),
        "networks": new.networks.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "expires_at": expires_at.map(moment),
        "dry_run": !add.yes,
    });
    let Some(by) = by else {
        let mut text = vec![format!("would make {}", described(&new))];
        if api_keys::list(&place.db).await?.iter().any(|key| key.name == new.name) {
            text.push("but another key has or had this name".to_owned());
        }
        text.push("nothing was changed; --yes does it".to_owned());
        return Ok(Answer::done(lines(&text), json));
    };
    let mut tx = place.db.begin().await.map_err(DbError::from)?;
    let state = api_keys::create(&mut tx, &new, &by).await.map_err(|refusal| not_done(id, refusal))?;
    tx.commit().await.map_err(DbError::from)?;
    let mut text = vec![format!("made {id}: {}", described(&new))];
    if state == ApiKeyState::Proposed {
        text.push(format!("it is useless until another person runs `paymentctl keys confirm {id} --yes`"));
    }
    text.push(super::change::SHOWN_ONCE.to_owned());
    Ok(Answer::done(lines(&text), json).with_secret("secret", secret.text(new.environment, id)))
}

fn described(new: &NewApiKey) -> String {
    let networks: Vec<String> = new.networks.iter().map(ToString::to_string).collect();
    let from = if networks.is_empty() { "every address".to_owned() } else { networks.join(" ") };
    let until = new.expires_at.map_or_else(|| "until it is revoked".to_owned(), |at| format!("until {}", moment(at)));
    let (state, environment) = (new.state(), new.environment);
    format!("the key {:?} ({environment}, {state}), which may {}, from {from}, {until}", new.name.as_str(), new.scopes)
}
