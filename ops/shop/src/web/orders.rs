//! Buying: the calls behind the button, passed to payment-api in the shopper's name.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::page::CATALOGUE;
use super::state::{Shared, problem_of};
use crate::api::{ApiError, Created, Order, Payment};
use crate::cli::join;
use crate::offer::Purchase;
use crate::qr;

/// What the page sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Choice {
    product: String,
    amount: String,
    method: String,
    scene: String,
    /// A new value for each new purchase: a repeated press returns the same order.
    attempt: String,
}

/// The data that the page needs for the cashier.
#[derive(Serialize)]
struct Cashier {
    order: Order,
    view_token: String,
    payment: Payment,
    /// The QR code as SVG, if the payment is one.
    qr_svg: Option<String>,
    /// The simulator's page on which a person can pay this order.
    simulator_url: Option<String>,
}

/// `POST /api/orders`: creates the order and prepares the cashier.
pub(super) async fn create(State(shop): State<Shared>, choice: Result<Json<Choice>, JsonRejection>) -> Response {
    let (attempt, purchase) = match purchase_of(&shop, choice) {
        Ok(chosen) => chosen,
        Err(refusal) => return *refusal,
    };
    match shop.api.create(&attempt, &purchase).await {
        Ok(created) => (StatusCode::CREATED, Json(cashier(created, &shop.sim_url))).into_response(),
        Err(error) => logged(error).into_response(),
    }
}

/// `POST /api/orders/tampered`: sends the offer of this purchase with a price of 0.01 yuan, which has no signature, and shows
/// the refusal.
pub(super) async fn tamper(State(shop): State<Shared>, choice: Result<Json<Choice>, JsonRejection>) -> Response {
    let (attempt, purchase) = match purchase_of(&shop, choice) {
        Ok(chosen) => chosen,
        Err(refusal) => return *refusal,
    };
    match shop.api.tamper(&attempt, &purchase, "0.01").await {
        Ok(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "tampered", "A price without a signature was accepted"),
        Err(error) => error.into_response(),
    }
}

/// The attempt and the purchase that the page chose.
fn purchase_of(
    shop: &Shared,
    choice: Result<Json<Choice>, JsonRejection>,
) -> Result<(String, Purchase), Box<Response>> {
    let refused = |status, code, title: &str| Err(Box::new(refuse(status, code, title)));
    let Json(choice) = match choice {
        Ok(choice) => choice,
        Err(rejection) => return refused(rejection.status(), "invalid_choice", &rejection.body_text()),
    };
    let Some(product) = CATALOGUE.iter().find(|product| product.kind == choice.product) else {
        return refused(StatusCode::BAD_REQUEST, "unknown_product", "这件商品不存在 There is no such product");
    };
    if !(1..=64).contains(&choice.attempt.len()) || !choice.attempt.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refused(StatusCode::BAD_REQUEST, "invalid_choice", "attempt must be 1 to 64 visible ASCII characters");
    }
    let returns = matches!(choice.scene.as_str(), "page" | "wap" | "h5");
    let purchase = Purchase {
        product_type: product.kind.to_owned(),
        subject: product.chinese.to_owned(),
        amount: choice.amount,
        payment_method: choice.method,
        scene: choice.scene,
        return_url: shop.return_url.as_ref().filter(|_| returns).map(Url::to_string),
        metadata: serde_json::Map::from_iter([("shop".to_owned(), "demo".into())]),
    };
    Ok((choice.attempt, purchase))
}

/// `GET /api/orders/{id}`: the order as payment-api shows it.
pub(super) async fn show(State(shop): State<Shared>, Path(id): Path<String>) -> Response {
    shop.api.order(&id).await.map_or_else(|error| logged(error).into_response(), |order| Json(order).into_response())
}

/// The refund request that the page sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RefundRequest {
    /// A new value for each new refund: a repeated press requests no second refund.
    attempt: String,
}

/// `POST /api/orders/{id}/refund`: requests a refund of all that is left of the order.
pub(super) async fn refund(
    State(shop): State<Shared>,
    Path(id): Path<String>,
    request: Result<Json<RefundRequest>, JsonRejection>,
) -> Response {
    let Json(RefundRequest { attempt }) = match request {
        Ok(request) => request,
        Err(rejection) => return refuse(rejection.status(), "invalid_wish", &rejection.body_text()),
    };
    if attempt.is_empty() || !attempt.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse(StatusCode::BAD_REQUEST, "invalid_wish", "attempt must be visible ASCII");
    }
    match shop.api.refund(&attempt, &id).await {
        Ok(()) => (StatusCode::ACCEPTED, Json(serde_json::json!({ "status": "accepted" }))).into_response(),
        Err(error) => logged(error).into_response(),
    }
}

#[derive(Deserialize)]
pub(super) struct View {
    #[serde(default)]
    view_token: String,
}

/// `GET /api/orders/{id}/stream`: payment-api's own stream, byte for byte.
pub(super) async fn stream(
    State(shop): State<Shared>,
    Path(id): Path<String>,
    Query(View { view_token }): Query<View>,
    headers: HeaderMap,
) -> Response {
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let upstream = match shop.api.stream(&id, &view_token, seen).await {
        // There will be no more events: this status stops the browser's reconnects.
        Ok(upstream) if upstream.status() == StatusCode::NO_CONTENT => return StatusCode::NO_CONTENT.into_response(),
        Ok(upstream) => upstream,
        Err(error) => return logged(error).into_response(),
    };
    let chunks = stream::unfold(upstream, async |mut upstream| {
        let chunk = upstream.chunk().await.transpose()?;
        Some((chunk.map_err(reqwest::Error::without_url), upstream))
    });
    let chunks =
        chunks.map(|chunk: reqwest::Result<Bytes>| chunk).take_until(Box::pin(async move { shop.stop.said().await }));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(chunks)).into_response()
}

fn cashier(created: Created, sim_url: &Url) -> Cashier {
    let qr_svg = match &created.payment {
        Payment::Qr { code_url } => qr::svg(code_url),
        _ => None,
    };
    let simulator_url = simulator_url(&created.payment, sim_url);
    Cashier { order: created.order, view_token: created.view_token, payment: created.payment, qr_svg, simulator_url }
}

/// The URL where a person pays without a phone. A redirect to the simulator is used unchanged. Any other link, such
/// as WeChat's with its real host, is passed to the simulator's `/pay`.
pub(crate) fn simulator_url(payment: &Payment, sim_url: &Url) -> Option<String> {
    let code = match payment {
        Payment::Redirect { url } if Url::parse(url).is_ok_and(|url| url.origin() == sim_url.origin()) => {
            return Some(url.clone());
        }
        Payment::Redirect { url } => url,
        Payment::Qr { code_url } => code_url,
        Payment::Invoke { .. } => return None,
    };
    let mut pay = join(sim_url, &["pay"]);
    pay.query_pairs_mut().append_pair("code", code);
    Some(pay.into())
}

fn logged(error: ApiError) -> ApiError {
    tracing::warn!("{error}");
    error
}

fn refuse(status: StatusCode, code: &str, title: &str) -> Response {
    let problem = problem_of(status.as_u16(), code, title);
    (status, [(header::CONTENT_TYPE, "application/problem+json")], problem.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_of_the_simulator_are_followed_as_they_are() {
        let sim = Url::parse("http://127.0.0.1:7000").unwrap();
        let redirect = |url: &str| simulator_url(&Payment::Redirect { url: url.to_owned() }, &sim).unwrap();
        assert_eq!(redirect("http://127.0.0.1:7000/gateway.do?a=b"), "http://127.0.0.1:7000/gateway.do?a=b");
        let h5 = redirect("https://wx.example/checkmweb?prepay_id=1&package=2");
        assert_eq!(
            h5,
            "http://127.0.0.1:7000/pay?code=https%3A%2F%2Fwx.example%2Fcheckmweb%3Fprepay_id%3D1%26package%3D2"
        );
        let qr = Payment::Qr { code_url: "weixin://wxpay/bizpayurl?pr=a".to_owned() };
        let wanted = "http://127.0.0.1:7000/pay?code=weixin%3A%2F%2Fwxpay%2Fbizpayurl%3Fpr%3Da";
        assert_eq!(simulator_url(&qr, &sim).as_deref(), Some(wanted));
    }
}
