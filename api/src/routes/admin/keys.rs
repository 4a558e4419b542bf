//! `GET /v1/admin/keys`: the API keys, without what proves them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use domain::{ApiKeyId, ApiKeyState};
use serde::{Deserialize, Serialize};
use store::page::Mark;
use store::tables::api_keys::{self, ApiKey};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::orders::names;
use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::routes::listing::{Faults, Known, Paged, Slice, mark, marked, page};
use crate::state::App;

/// The name of the list in its cursors.
const LIST: &str = "key";

/// Selects API keys. There are few, so no filter needs an index.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct KeyFilters {
    /// `proposed` `active` `revoked`.
    state: Option<String>,
}

/// An API key. Neither its secret nor a digest of it is ever shown.
#[derive(Serialize, ToSchema)]
pub struct KeyRow {
    /// 16 hex digits, as in the key itself.
    id: String,
    /// Its name.
    name: String,
    /// `live` or `test`.
    environment: &'static str,
    /// `proposed`: it waits for another person. `active`, `revoked`.
    state: &'static str,
    /// Whether its time is over.
    has_expired: bool,
    /// What it may do.
    #[schema(example = json!(["payments:orders"]))]
    scopes: Vec<&'static str>,
    /// The networks that it may be used from; empty: all.
    networks: Vec<String>,
    /// Who made it.
    proposed_by: String,
    /// Who confirmed it.
    confirmed_by: Option<String>,
    /// Until then the secret before the present one counts too.
    #[serde(with = "time::serde::rfc3339::option")]
    previous_until: Option<OffsetDateTime>,
    /// Until then the secret for offers before the present one counts too.
    #[serde(with = "time::serde::rfc3339::option")]
    previous_offer_until: Option<OffsetDateTime>,
    /// When it ends by itself.
    #[serde(with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
    /// When it was ended.
    #[serde(with = "time::serde::rfc3339::option")]
    revoked_at: Option<OffsetDateTime>,
    /// When it was last used, to the minute.
    #[serde(with = "time::serde::rfc3339::option")]
    last_used_at: Option<OffsetDateTime>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl KeyRow {
    fn of(key: ApiKey) -> KeyRow {
        KeyRow {
            id: key.id.to_string(),
            name: key.name.to_string(),
            environment: key.environment.as_str(),
            state: key.state.as_str(),
            has_expired: key.has_expired,
            scopes: key.scopes.iter().map(|scope| scope.as_str()).collect(),
            networks: key.networks.iter().map(ToString::to_string).collect(),
            proposed_by: key.proposed_by,
            confirmed_by: key.confirmed_by,
            previous_until: key.previous_until,
            previous_offer_until: key.previous_offer_until,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            last_used_at: key.last_used_at,
            created_at: key.created_at,
        }
    }
}

/// API keys, newest first.
#[derive(Serialize, ToSchema)]
pub struct KeyRows {
    keys: Vec<KeyRow>,
    /// The cursor of the next page; null on the last page.
    next_cursor: Option<String>,
}

/// List the API keys, newest first, also those that were revoked.
#[utoipa::path(
    get, path = "/v1/admin/keys", tag = "admin", params(KeyFilters, Slice), security(("backend" = ["payments:keys"])),
    responses(
        (status = 200, description = "A page of keys", body = KeyRows),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Known(Paged { filter, slice }): Known<Paged<KeyFilters>>,
) -> Result<Json<KeyRows>, ApiError> {
    let mut faults = Faults::default();
    let state = faults.choice("state", filter.state.as_deref(), &names(ApiKeyState::ALL, ApiKeyState::as_str));
    let (limit, before) = slice.read(&mut faults, LIST, |text| mark(text, |id| ApiKeyId::parse(id).ok()));
    faults.finish()?;
    let found = to_the_end(async move { Ok(api_keys::page(&app.db, state, before, limit).await?) }).await?;
    let (shown, next_cursor) = page(found, limit, |key| marked(LIST, &Mark { at: key.created_at, id: key.id }));
    Ok(Json(KeyRows { keys: shown.into_iter().map(KeyRow::of).collect(), next_cursor }))
}
