//! The frontends' routes, and the description of them that is made from the same functions.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::routes::admin::{cases, config, stats, sync};
use crate::routes::orders::PaymentView;
use crate::routes::{index, orders, payment_methods, refunds};
use crate::state::App;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "payment-api",
        description = "Orders paid through Alipay and WeChat Pay. Amounts are text in yuan, times are RFC 3339, errors \
            are application/problem+json with a stable `code`."
    ),
    components(schemas(PaymentView)),
    modifiers(&Tokens)
)]
struct Description;

struct Tokens;

impl Modify for Tokens {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let view_token = ApiKey::Query(ApiKeyValue::new("view_token"));
        components.add_security_scheme("view_token", SecurityScheme::ApiKey(view_token));
    }
}

/// The frontends' routes with `/openapi.json` and the readable page `/docs`.
pub fn router() -> Router<Arc<App>> {
    let (routes, description) = described().split_for_parts();
    routes.route("/", get(index::index)).merge(SwaggerUi::new("/docs").url("/openapi.json", description))
}

fn described() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(orders::create, orders::list))
        .routes(routes!(orders::get))
        .routes(routes!(orders::payment))
        .routes(routes!(orders::stream))
        .routes(routes!(orders::close))
        .routes(routes!(refunds::create))
        .routes(routes!(refunds::get))
        .routes(routes!(refunds::list))
        .routes(routes!(sync::sync))
        .routes(routes!(stats::get))
        .routes(routes!(cases::list))
        .routes(routes!(cases::get))
        .routes(routes!(cases::resolve))
        .routes(routes!(cases::propose))
        .routes(routes!(cases::confirm))
        .routes(routes!(config::get))
        .routes(routes!(config::change))
        .routes(routes!(config::changes))
        .routes(routes!(payment_methods::list))
}
