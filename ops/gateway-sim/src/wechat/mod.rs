//! WeChat Pay API v3: prepay, query, close, refunds, notifications, certificates, and the client's invoke parameters.
//!
//! When bills are implemented, they belong here.

pub(crate) mod answer;
pub(crate) mod api;
pub(crate) mod auth;
pub(crate) mod certificates;
mod contents;
pub(crate) mod fields;
pub(crate) mod invoke;
pub(crate) mod notify;
pub(crate) mod refund;
pub(crate) mod sign;

use axum::Router;
use axum::routing::{get, post};

use crate::state::Shared;

pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/v3/pay/transactions/{product}", post(api::prepay))
        .route("/v3/pay/transactions/out-trade-no/{out_trade_no}", get(api::query_by_number))
        .route("/v3/pay/transactions/id/{transaction_id}", get(api::query_by_id))
        .route("/v3/pay/transactions/out-trade-no/{out_trade_no}/close", post(api::close))
        .route("/v3/refund/domestic/refunds", post(refund::create))
        .route("/v3/refund/domestic/refunds/{number}", get(refund::query))
        .route("/v3/refund/domestic/refunds/{number}/apply-abnormal-refund", post(refund::redirect))
        .route("/v3/certificates", get(certificates::list))
        .route("/wechat/invoke", post(invoke::invoke))
}
