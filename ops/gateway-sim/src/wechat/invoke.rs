//! The client's side of JSAPI, mini program and App: receives invoke parameters and verifies their signature.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::sign::invoke_message;
use crate::clock;
use crate::json::text;
use crate::ledger::{Product, Trade};
use crate::links::cashier_path;
use crate::state::{Shared, Sim};

/// `POST /wechat/invoke`: what WeChat does with the parameters. It answers with the path of the cashier.
pub(crate) async fn invoke(State(sim): State<Shared>, body: Bytes) -> Response {
    let checked = serde_json::from_slice(&body).ok().ok_or("not JSON").and_then(|params| check(&sim, &params));
    match checked {
        Ok(trade) => {
            Json(json!({ "out_trade_no": trade.out_trade_no, "cashier": cashier_path(&trade) })).into_response()
        }
        Err(issue) => (StatusCode::BAD_REQUEST, Json(json!({ "error": issue }))).into_response(),
    }
}

fn check(sim: &Sim, params: &Value) -> Result<Trade, &'static str> {
    let first = |names: &[&str]| names.iter().find_map(|name| text(params, name)).unwrap_or_default().to_owned();
    let timestamp = first(&["timeStamp", "timestamp"]);
    let nonce = first(&["nonceStr", "noncestr"]);
    if timestamp.is_empty() || timestamp.len() > 10 || nonce.is_empty() || nonce.len() > 32 {
        return Err("the timestamp is seconds as text, the nonce at most 32 characters");
    }
    let (product, last, signature) = match text(params, "paySign") {
        Some(signature) if text(params, "signType") == Some("RSA") => (Product::Jsapi, first(&["package"]), signature),
        Some(_) => return Err("signType is not RSA"),
        None if first(&["package", "packageValue"]) == "Sign=WXPay" => {
            (Product::WechatApp, first(&["prepayid", "prepayId"]), text(params, "sign").unwrap_or_default())
        }
        None => return Err("neither paySign nor package Sign=WXPay"),
    };
    let prepay_id = last.strip_prefix("prepay_id=").unwrap_or(&last);
    let trade = sim.ledger.by_code(prepay_id, clock::now()).filter(|trade| trade.product == product);
    let trade = trade.ok_or("no such prepay_id for this product, or it expired")?;
    let merchant = sim.keys.wechat_account(&trade.account).ok_or("no such account")?;
    let app_id = Some(first(&["appId", "appid"])).filter(|id| !id.is_empty()).unwrap_or_else(|| trade.app_id.clone());
    if app_id != trade.app_id {
        return Err("the app id is not that of the prepay request");
    }
    let message = invoke_message(&app_id, &timestamp, &nonce, &last);
    if !merchant.merchant_key.accepts(message.as_bytes(), signature) {
        return Err("the signature does not match");
    }
    Ok(trade)
}
