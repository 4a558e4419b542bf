//! What buyers may currently choose: gateways and scenes that are on or off, and limits. A change is in force
//! everywhere within a second, and is recorded with the person who made it.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use domain::{MethodConfig, MethodRules, Money, PaymentMethod, Scene};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::DbError;
use store::tables::audit::{self, Act};
use store::tables::payment_config as config;
use store::tables::payment_config::{By, Change};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::actions::note;
use crate::access::caller::Caller;
use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::create::fields::{Fields, JsonBytes, money, one_of, text};
use crate::routes::listing::{Faults, Known, page};
use crate::state::App;

/// The rules of one gateway.
#[derive(Serialize, ToSchema)]
pub struct MethodConfigView {
    /// `alipay` or `wechat`.
    #[schema(value_type = String, example = "alipay")]
    payment_method: PaymentMethod,
    /// Whether the gateway accepts new orders.
    enabled: bool,
    /// The scenes that accept no new orders.
    #[schema(value_type = Vec<String>, example = json!(["wap"]))]
    disabled_scenes: Vec<Scene>,
    /// The smallest order amount, in yuan.
    #[schema(value_type = String, example = "0.01")]
    min_amount: Money,
    /// The largest order amount, in yuan.
    #[schema(value_type = String, example = "99999999.99")]
    max_amount: Money,
    /// Increases with each change. A change names the version that was seen.
    version: i64,
    /// Who made the last change.
    updated_by: String,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl MethodConfigView {
    fn of(config: MethodConfig) -> MethodConfigView {
        let MethodRules { enabled, disabled_scenes, min_amount, max_amount } = config.rules;
        MethodConfigView {
            payment_method: config.payment_method,
            enabled,
            disabled_scenes,
            min_amount,
            max_amount,
            version: config.version,
            updated_by: config.updated_by,
            updated_at: config.updated_at,
        }
    }
}

/// The rules of all gateways.
#[derive(Serialize, ToSchema)]
pub struct ConfigView {
    methods: Vec<MethodConfigView>,
}

/// Get the rules of all gateways, as stored in the database.
#[utoipa::path(
    get, path = "/v1/admin/config", tag = "admin", security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "The rules", body = ConfigView),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn get(State(app): State<Arc<App>>) -> Result<Json<ConfigView>, ApiError> {
    let all = to_the_end(async move {
        let all = config::all(&app.db).await?;
        app.cache.config.saw(&all);
        Ok(all)
    });
    let all = all.await?;
    Ok(Json(ConfigView { methods: all.methods.into_iter().map(MethodConfigView::of).collect() }))
}

/// A change of the rules of one gateway. An absent field stays as it is.
#[derive(Serialize, ToSchema)]
pub struct ChangeConfig {
    /// The `version` of the rules that were seen.
    pub version: i64,
    /// Whether the gateway accepts new orders.
    pub enabled: Option<bool>,
    /// All scenes that accept no new orders.
    #[schema(example = json!(["wap"]))]
    pub disabled_scenes: Option<Vec<String>>,
    /// The smallest order amount, in yuan.
    #[schema(example = "0.01")]
    pub min_amount: Option<String>,
    /// The largest order amount, in yuan.
    #[schema(example = "50000.00")]
    pub max_amount: Option<String>,
    /// The reason, at most 2000 characters.
    pub note: Option<String>,
}

/// The parsed body of a change.
struct ConfigRequest {
    version: i64,
    enabled: Option<bool>,
    disabled_scenes: Option<Vec<Scene>>,
    min_amount: Option<Money>,
    max_amount: Option<Money>,
    note: Option<String>,
}

impl ConfigRequest {
    fn parse(body: &Bytes, method: PaymentMethod) -> Result<ConfigRequest, ApiError> {
        let mut fields = Fields::parse(body)?;
        let rule = || "must be the version of the rules that you have seen".to_owned();
        let version = fields.required("version", |value| value.as_i64().ok_or_else(rule));
        let request = ConfigRequest {
            version: version.unwrap_or_default(),
            enabled: fields.optional("enabled", |value| value.as_bool().ok_or_else(|| "must be true or false".into())),
            disabled_scenes: fields.optional("disabled_scenes", |value| scenes(value, method)),
            min_amount: fields.optional("min_amount", money),
            max_amount: fields.optional("max_amount", money),
            note: fields.optional("note", text(note)),
        };
        fields.finish()?;
        Ok(request)
    }

    /// The rules after the change.
    fn applied_to(&self, rules: &MethodRules) -> Result<MethodRules, ApiError> {
        let after = MethodRules {
            enabled: self.enabled.unwrap_or(rules.enabled),
            disabled_scenes: self.disabled_scenes.clone().unwrap_or_else(|| rules.disabled_scenes.clone()),
            min_amount: self.min_amount.unwrap_or(rules.min_amount),
            max_amount: self.max_amount.unwrap_or(rules.max_amount),
        };
        if after.min_amount > after.max_amount {
            return Err(ApiError::field("max_amount", format!("must be at least min_amount, {}", after.min_amount)));
        }
        Ok(after)
    }
}

/// Parses scenes of the gateway. The result has each scene once, in the gateway's own order.
fn scenes(value: &Value, method: PaymentMethod) -> Result<Vec<Scene>, String> {
    let offered = method.scenes();
    let rule = || format!("must be a list of scenes, each {}", one_of(offered.iter().map(|scene| scene.as_str())));
    let named = value.as_array().ok_or_else(rule)?.iter().map(|name| name.as_str()?.parse().ok());
    let named: Vec<Scene> = named.collect::<Option<_>>().ok_or_else(rule)?;
    if named.iter().any(|scene| !offered.contains(scene)) {
        return Err(rule());
    }
    Ok(offered.iter().copied().filter(|scene| named.contains(scene)).collect())
}

/// Change the rules of one gateway. The change is in force everywhere within a second.
///
/// Existing orders are not checked again: they can still be paid, and a repeated creation gets its saved answer.
#[utoipa::path(
    patch, path = "/v1/admin/config/{method}", tag = "admin", request_body = ChangeConfig,
    security(("backend" = ["payments:config"])),
    params(("method" = String, Path, description = "`alipay` or `wechat`")),
    responses(
        (status = 200, description = "The rules after the change", body = MethodConfigView),
        (status = 400, description = "`invalid_fields`, `malformed_json`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 404, description = "`method_not_found`", body = Problem),
        (status = 409, description = "`config_changed`: another change was faster", body = Problem),
    )
)]
pub async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(method): Path<String>,
    JsonBytes(body): JsonBytes,
) -> Result<Json<MethodConfigView>, ApiError> {
    let method = method.parse().map_err(|_| ApiError::MethodNotFound)?;
    let request = ConfigRequest::parse(&body, method)?;
    to_the_end(async move { put(&app, method, request, &caller.name()).await }).await
}

async fn put(
    app: &App,
    method: PaymentMethod,
    request: ConfigRequest,
    who: &str,
) -> Result<Json<MethodConfigView>, ApiError> {
    let mut tx = app.db.begin().await.map_err(DbError::from)?;
    let before = config::lock(&mut tx, method).await?.ok_or(ApiError::MethodNotFound)?;
    if before.version != request.version {
        return Err(ApiError::ConfigChanged);
    }
    let after = request.applied_to(&before.rules)?;
    let by = By { who: who.to_string(), note: request.note };
    config::change(&mut tx, &before, &after, &by, app.clock.now()).await?;
    let detail = json!({ "before": before.rules, "after": after, "version": before.version, "note": by.note });
    let object = format!("payment_config:{method}");
    let act = Act { subject: who, act: "payment_config.changed", object, detail: &detail };
    audit::record(&mut tx, &act).await?;
    let changed = config::lock(&mut tx, method).await?.ok_or(ApiError::MethodNotFound)?;
    tx.commit().await.map_err(DbError::from)?;
    app.cache.config.renew(&app.db).await;
    tracing::info!(
        user_id = who, gateway = %method, version = changed.version, rules = ?changed.rules,
        "The rules of {method} were changed"
    );
    Ok(Json(MethodConfigView::of(changed)))
}

/// One change of the rules.
#[derive(Serialize, ToSchema)]
pub struct ChangeView {
    /// `alipay` or `wechat`.
    #[schema(value_type = String, example = "alipay")]
    payment_method: PaymentMethod,
    /// The version of the rules after the change.
    version: i64,
    /// The rules before.
    #[schema(value_type = Object)]
    before: Value,
    /// The rules after.
    #[schema(value_type = Object)]
    after: Value,
    /// The reason.
    note: Option<String>,
    /// Who made the change.
    changed_by: String,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    changed_at: OffsetDateTime,
}

impl ChangeView {
    fn of(change: Change) -> ChangeView {
        ChangeView {
            payment_method: change.payment_method,
            version: change.version,
            before: change.before,
            after: change.after,
            note: change.note,
            changed_by: change.changed_by,
            changed_at: change.changed_at,
        }
    }
}

/// Changes, newest first.
#[derive(Serialize, ToSchema)]
pub struct ChangePage {
    changes: Vec<ChangeView>,
    /// The cursor of the next page; null on the last page.
    next_cursor: Option<String>,
}

/// Selects a part of the list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ChangeFilter {
    /// `alipay` or `wechat`.
    method: Option<String>,
    /// 1 to 100, 20 when absent.
    #[param(value_type = Option<u8>)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    cursor: Option<String>,
}

/// List the changes of the rules, newest first.
#[utoipa::path(
    get, path = "/v1/admin/config/changes", tag = "admin", params(ChangeFilter),
    security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "A page of changes", body = ChangePage),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn changes(
    State(app): State<Arc<App>>,
    Known(filter): Known<ChangeFilter>,
) -> Result<Json<ChangePage>, ApiError> {
    let mut faults = Faults::default();
    let limit = faults.limit(filter.limit.as_deref()) + 1;
    let before = faults.cursor(filter.cursor.as_deref(), |id| id.parse().ok());
    let methods: Vec<&str> = PaymentMethod::ALL.iter().map(|method| method.as_str()).collect();
    let method = faults.choice("method", filter.method.as_deref(), &methods);
    faults.finish()?;
    let found = to_the_end(async move { Ok(config::changes(&app.db, method, before, limit).await?) }).await?;
    let (shown, next_cursor) = page(found, limit, |change| change.id.to_string());
    Ok(Json(ChangePage { changes: shown.into_iter().map(ChangeView::of).collect(), next_cursor }))
}
