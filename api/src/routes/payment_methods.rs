//! `GET /v1/payment-methods`: what a buyer can choose from.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use shared::domain::{Money, PaymentMethod, Scene};
use utoipa::ToSchema;

use crate::state::App;

/// What is on.
#[derive(Serialize, ToSchema)]
pub struct PaymentMethods {
    /// One entry for each gateway with at least one account that takes new orders.
    payment_methods: Vec<Offer>,
}

/// One gateway.
#[derive(Serialize, ToSchema)]
pub struct Offer {
    /// `alipay` or `wechat`.
    #[schema(value_type = String, example = "alipay")]
    payment_method: PaymentMethod,
    /// Where it can be used.
    #[schema(value_type = Vec<String>, example = json!(["page", "wap"]))]
    scenes: Vec<Scene>,
    /// Always `CNY`.
    currency: &'static str,
    /// In yuan.
    #[schema(value_type = String, example = "0.01")]
    min_amount: Money,
    /// In yuan.
    #[schema(value_type = String, example = "99999999.99")]
    max_amount: Money,
}

/// What is on, with limits.
#[utoipa::path(
    get, path = "/v1/payment-methods", tag = "payment methods",
    responses((status = 200, description = "The gateways and scenes that take orders", body = PaymentMethods))
)]
pub async fn list(State(app): State<Arc<App>>) -> Json<PaymentMethods> {
    let offers = PaymentMethod::ALL.iter().map(|method| Offer {
        payment_method: *method,
        scenes: app.accounts.scenes(*method),
        currency: "CNY",
        min_amount: LEAST,
        max_amount: Money::MAX,
    });
    Json(PaymentMethods { payment_methods: offers.filter(|offer| !offer.scenes.is_empty()).collect() })
}

const LEAST: Money = match Money::from_fen(1) {
    Ok(fen) => fen,
    Err(_) => Money::MAX,
};
