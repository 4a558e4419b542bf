//! `/sim/keys/…`: changes the keys with which the gateways sign.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Failure, bad, object, read};
use crate::clock;
use crate::crypto::Signer;
use crate::keys::{ALIPAY, AlipayMerchant, PlatformCertificate, Wanted, WechatMerchant, forge};
use crate::state::{Shared, Sim};

pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/sim/keys/wechat/{account}", get(show).put(share))
        .route("/sim/keys/wechat/{account}/appids", post(bind))
        .route("/sim/keys/wechat/{account}/certificates", post(add))
        .route("/sim/keys/wechat/{account}/certificates/{serial}", delete(remove))
        .route("/sim/keys/alipay/{account}/certificate", get(current).post(renew))
}

async fn show(State(sim): State<Shared>, Path(account): Path<String>) -> Answer {
    Ok(Json(view(wechat(&sim, &account)?)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    /// 0 to 1; `null`: the public key signs everything, as at the start.
    public_key_share: Option<f64>,
}

async fn share(State(sim): State<Shared>, Path(account): Path<String>, body: Bytes) -> Answer {
    let Share { public_key_share } = object(&body)?;
    if public_key_share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
        return Err(bad("public_key_share is 0 to 1".to_owned()));
    }
    let merchant = wechat(&sim, &account)?;
    merchant.platform.set_share(public_key_share);
    Ok(Json(view(merchant)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct App {
    appid: String,
}

/// Adds another application to the same merchant number.
async fn bind(State(sim): State<Shared>, Path(account): Path<String>, body: Bytes) -> Answer {
    let App { appid } = object(&body)?;
    if appid.is_empty() || appid.len() > 32 {
        return Err(bad("an appid has 1 to 32 characters".to_owned()));
    }
    let merchant = wechat(&sim, &account)?;
    merchant.bind(&appid);
    Ok(Json(view(merchant)))
}

/// The start and end of a validity, in days from now.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Term {
    from_days: f64,
    until_days: f64,
}

impl Default for Term {
    fn default() -> Term {
        Term { from_days: -1.0, until_days: 5.0 * 365.0 }
    }
}

async fn add(State(sim): State<Shared>, Path(account): Path<String>, body: Bytes) -> Answer {
    let Term { from_days, until_days } = read(&body)?;
    let made = wechat(&sim, &account)?.platform.add(from_days, until_days);
    Ok(Json(certificate(&made.map_err(|error| bad(error.to_string()))?)))
}

async fn remove(State(sim): State<Shared>, Path((account, serial)): Path<(String, String)>) -> Answer {
    match wechat(&sim, &account)?.platform.remove(&serial) {
        true => Ok(Json(json!({}))),
        false => Err(Failure(StatusCode::NOT_FOUND, "no such certificate".to_owned())),
    }
}

async fn current(State(sim): State<Shared>, Path(account): Path<String>) -> Answer {
    let mode = alipay(&sim, &account)?.certificates.as_ref().ok_or_else(no_mode)?;
    Ok(Json(json!({ "sn": mode.current().sn })))
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Renewal {
    from_days: f64,
    until_days: f64,
    /// Use another key; by default Alipay keeps its key.
    new_key: bool,
    /// The certificate is issued to another organization than Alipay.
    organization: Option<String>,
    /// Signed with a stranger's key in the authority's name.
    forged: bool,
}

impl Default for Renewal {
    fn default() -> Renewal {
        let Term { from_days, until_days } = Term::default();
        Renewal { from_days, until_days, new_key: false, organization: None, forged: false }
    }
}

/// From now on Alipay signs with a new certificate.
async fn renew(State(sim): State<Shared>, Path(account): Path<String>, body: Bytes) -> Answer {
    let Renewal { from_days, until_days, new_key, organization, forged } = read(&body)?;
    let merchant = alipay(&sim, &account)?;
    let mode = merchant.certificates.as_ref().ok_or_else(no_mode)?;
    let wanted = Wanted { organization: organization.as_deref().unwrap_or(ALIPAY), from_days, until_days };
    let internal = |error: anyhow::Error| bad(error.to_string());
    let own = if new_key { Some(Signer::generate().map_err(internal)?) } else { None };
    let key = own.as_ref().unwrap_or(&merchant.gateway_key);
    let certified = match forged {
        true => forge(&mode.authority, &merchant.stranger, &wanted, key),
        false => mode.authority.issue(&wanted, key),
    };
    let certified = certified.map_err(internal)?;
    let sn = certified.sn.clone();
    mode.change_to(certified, own);
    Ok(Json(json!({ "sn": sn })))
}

fn wechat<'s>(sim: &'s Sim, account: &str) -> Result<&'s WechatMerchant, Failure> {
    sim.keys.wechat_account(account).map(AsRef::as_ref).ok_or_else(no_account)
}

fn alipay<'s>(sim: &'s Sim, account: &str) -> Result<&'s AlipayMerchant, Failure> {
    sim.keys.alipay_account(account).map(AsRef::as_ref).ok_or_else(no_account)
}

fn no_account() -> Failure {
    Failure(StatusCode::NOT_FOUND, "no such account".to_owned())
}

fn no_mode() -> Failure {
    Failure(StatusCode::CONFLICT, "this key set has no certificates: make a new one".to_owned())
}

fn view(merchant: &WechatMerchant) -> Value {
    let public: Vec<&String> = merchant.signing_keys.iter().map(|key| &key.0).collect();
    let certificates: Vec<Value> = merchant.platform.certificates().iter().map(certificate).collect();
    json!({
        "appids": merchant.all_appids(),
        "public_keys": public,
        "certificates": certificates,
        "public_key_share": merchant.platform.share(),
    })
}

fn certificate(certificate: &PlatformCertificate) -> Value {
    let (from, until) = (clock::wechat(certificate.from), clock::wechat(certificate.until));
    json!({ "serial": certificate.key.0, "from": from, "until": until })
}
