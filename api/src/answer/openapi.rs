//! The description of the routes, which is generated from the same functions.

use axum::Router;
use axum::middleware;
use utoipa::Modify;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::answer::headers;

/// How a caller proves who it is.
pub struct Tokens;

impl Modify for Tokens {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(Some(
            "A user's token. Its `sub`, the user's id, is 1 to 64 printable ASCII characters; more than 32 only with `LONG_USER_IDS`",
        ));
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
        let backend = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
            "An API key (`sk_…`), or a JWT of the service issuer or of the staff issuer, with the scope",
        ));
        components.add_security_scheme("backend", SecurityScheme::Http(backend.build()));
        let staff = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
        let staff = staff.description(Some("A person: a JWT of the staff issuer, with `auth_time` and the scope"));
        components.add_security_scheme("staff", SecurityScheme::Http(staff.build()));
        let view_token = ApiKey::Query(ApiKeyValue::new("view_token"));
        components.add_security_scheme("view_token", SecurityScheme::ApiKey(view_token));
    }
}

/// The routes, with `/openapi.json` and the documentation page `/docs` beside them.
pub fn with_page<S: Clone + Send + Sync + 'static>(described: OpenApiRouter<S>) -> Router<S> {
    let (routes, mut description) = described.split_for_parts();
    add_shared_answers(&mut description);
    let page = Router::from(SwaggerUi::new("/docs").url("/openapi.json", description));
    routes.merge(page.layer(middleware::from_fn(headers::docs)))
}

/// Only for operations with a request body.
const UNSUPPORTED_MEDIA_TYPE: &str = "415";

/// The answers that the layers around the routes may give instead of the handler.
const SHARED_ANSWERS: [(&str, &str); 8] = [
    ("400", "`bad_request`"),
    ("408", "`request_timeout`"),
    ("413", "`body_too_large`"),
    ("414", "`uri_too_long`"),
    (UNSUPPORTED_MEDIA_TYPE, "`unsupported_media_type`"),
    ("429", "`too_many_requests`: repeat after `Retry-After`; `RateLimit` says what is left"),
    ("503", "`unavailable`, `overloaded`: repeat after `Retry-After`"),
    ("504", "`timeout`: repeat"),
];

fn add_shared_answers(description: &mut utoipa::openapi::OpenApi) {
    let problem = || Content::new(Some(Ref::from_schema_name("Problem")));
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            let has_body = operation.request_body.is_some();
            let possible = |(status, _): &(&str, &str)| has_body || *status != UNSUPPORTED_MEDIA_TYPE;
            for (status, words) in SHARED_ANSWERS.into_iter().filter(possible) {
                let answer = ResponseBuilder::new().description(words).content("application/problem+json", problem());
                operation.responses.responses.entry(status.to_owned()).or_insert_with(|| answer.build().into());
            }
            operation.responses.responses.values_mut().for_each(name_problems);
        }
    }
}

/// Sets the media type of problems. The generator cannot derive it from the schema.
fn name_problems(answer: &mut RefOr<Response>) {
    if let RefOr::T(Response { content, .. }) = answer
        && content.get("application/json").is_some_and(is_problem)
        && let Some(problem) = content.shift_remove("application/json")
    {
        content.insert("application/problem+json".to_owned(), problem);
    }
}

fn is_problem(content: &RefOr<Content>) -> bool {
    let RefOr::T(Content { schema: Some(RefOr::Ref(of)), .. }) = content else { return false };
    of.ref_location == "#/components/schemas/Problem"
}
