//! `GET /v1/payment-methods`: what a buyer can choose from.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use domain::{Money, PaymentMethod, Scene};
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::state::App;

/// The payment methods that are on.
#[derive(Serialize, ToSchema)]
pub struct PaymentMethods {
    /// One entry for each gateway that is on and has an account that accepts new orders.
    payment_methods: Vec<Offer>,
}

/// One gateway.
#[derive(Serialize, ToSchema)]
pub struct Offer {
    /// `alipay` or `wechat`.
    #[schema(value_type = String, example = "alipay")]
    payment_method: PaymentMethod,
    /// The scenes in which it can be used.
    #[schema(value_type = Vec<String>, example = json!(["page", "wap"]))]
    scenes: Vec<Scene>,
    /// Always `CNY`.
    currency: &'static str,
    /// The smallest order amount, in yuan.
    #[schema(value_type = String, example = "0.01")]
    min_amount: Money,
    /// The largest order amount, in yuan.
    #[schema(value_type = String, example = "99999999.99")]
    max_amount: Money,
}

/// List the payment methods that are on, with their limits.
///
/// A scene is listed if an account accepts orders for it and no administrator has switched it off.
#[utoipa::path(
    get, path = "/v1/payment-methods", tag = "payment methods",
    responses(
        (status = 200, description = "The gateways and scenes that accept orders", body = PaymentMethods),
        (status = 503, description = "`unavailable`", body = Problem),
    )
)]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<PaymentMethods>, ApiError> {
    to_the_end(async move {
        let config = app.cache.config.get(&app.db).await?;
        let offers = PaymentMethod::ALL.iter().filter_map(|method| {
            let rules = config.rules(*method)?;
            let scenes = app.accounts.scenes(*method).into_iter().filter(|scene| rules.offers(*scene)).collect();
            let (min_amount, max_amount) = (rules.min_amount, rules.max_amount);
            Some(Offer { payment_method: *method, scenes, currency: "CNY", min_amount, max_amount })
        });
        let payment_methods = offers.filter(|offer: &Offer| !offer.scenes.is_empty()).collect();
        Ok(Json(PaymentMethods { payment_methods }))
    })
    .await
}
