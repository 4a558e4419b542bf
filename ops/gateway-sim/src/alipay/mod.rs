//! Alipay: `gateway.do`, its cashier, its notifications.
//!
//! When bills are implemented, they belong beside `trade.rs`.

pub(crate) mod answer;
pub(crate) mod certificate;
pub(crate) mod fields;
pub(crate) mod gateway;
pub(crate) mod notify;
pub(crate) mod pages;
pub(crate) mod params;
pub(crate) mod refund;
pub(crate) mod sign;
pub(crate) mod trade;

use axum::Router;
use axum::routing::{get, post};

use crate::state::Shared;

pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/gateway.do", get(gateway::browse).post(gateway::call))
        .route("/alipay/app", post(gateway::app))
}
