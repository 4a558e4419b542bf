//! The rules by which refunds begin, for each gateway. They decide who returns money, so only a person changes them, soon
//! after a sign-in. A change is in force at once: each refund reads them in its own transaction.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use domain::{BuyerRefunds, Money, PaymentMethod, RefundRules};
use serde::Serialize;
use serde_json::{Value, json};
use store::DbError;
use store::tables::audit::{self, Act};
use store::tables::payment_config::By;
use store::tables::refund_rules::{MethodRefundRules, RulesChange};
use store::tables::{payment_config, refund_rules};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::actions::note;
use crate::access::caller::Caller;
use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::create::fields::{Fields, JsonBytes, one_of, text};
use crate::state::App;

/// The longest time in which a buyer can request a refund, in days.
const MOST_DAYS: i64 = 3650;

/// The rules of one gateway for refunds. A limit counts the sum of an order's refunds; null is no limit.
#[derive(Serialize, ToSchema)]
pub struct RefundRulesView {
    /// `alipay` or `wechat`.
    #[schema(value_type = String, example = "alipay")]
    payment_method: PaymentMethod,
    /// What buyers can do: `off`, `request` a refund that a person approves, or `auto`, make one within the limits.
    #[schema(value_type = String, example = "request")]
    buyer_refunds: BuyerRefunds,
    /// How many days after the payment a buyer can do it.
    window_days: Option<i32>,
    /// The most of an order that a buyer returns without a person, in yuan.
    #[schema(value_type = Option<String>, example = "100.00")]
    auto_max_amount: Option<Money>,
    /// The most of an order that one person returns alone, in yuan. More takes a second person.
    #[schema(value_type = Option<String>, example = "1000.00")]
    staff_limit: Option<Money>,
    /// The most that one API key, or one service, returns in a day of Beijing, in yuan.
    #[schema(value_type = Option<String>, example = "50000.00")]
    service_daily_limit: Option<Money>,
    /// Increases with each change of the gateway's configuration. A change names the version that was seen.
    version: i64,
    /// Who made the last change of the gateway's configuration.
    updated_by: String,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl RefundRulesView {
    fn of(known: MethodRefundRules) -> RefundRulesView {
        let RefundRules { buyer_refunds, window_days, auto_max_amount, staff_limit, service_daily_limit } = known.rules;
        RefundRulesView {
            payment_method: known.payment_method,
            buyer_refunds,
            window_days,
            auto_max_amount,
            staff_limit,
            service_daily_limit,
            version: known.version,
            updated_by: known.updated_by,
            updated_at: known.updated_at,
        }
    }
}

/// The rules of all gateways for refunds.
#[derive(Serialize, ToSchema)]
pub struct AllRefundRules {
    methods: Vec<RefundRulesView>,
}

/// Get the rules of all gateways for refunds.
#[utoipa::path(
    get, path = "/v1/admin/config/refunds", tag = "admin", security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "The rules", body = AllRefundRules),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn get(State(app): State<Arc<App>>) -> Result<Json<AllRefundRules>, ApiError> {
    let all = to_the_end(async move { Ok(refund_rules::all(&app.db).await?) }).await?;
    Ok(Json(AllRefundRules { methods: all.into_iter().map(RefundRulesView::of).collect() }))
}

/// A change of the rules of one gateway for refunds. An absent field stays as it is; null removes a limit.
#[derive(Serialize, ToSchema)]
pub struct ChangeRefundRules {
    /// The `version` of the rules that were seen.
    pub version: i64,
    /// `off`, `request` or `auto`.
    #[schema(example = "auto")]
    pub buyer_refunds: Option<String>,
    /// 1 to 3650.
    pub window_days: Option<i32>,
    /// In yuan, `0.00` or more.
    #[schema(example = "100.00")]
    pub auto_max_amount: Option<String>,
    /// In yuan, `0.00` or more. With `0.00` each refund of staff takes two persons.
    #[schema(example = "1000.00")]
    pub staff_limit: Option<String>,
    /// In yuan, `0.00` or more. With `0.00` no key and no service makes refunds.
    #[schema(example = "50000.00")]
    pub service_daily_limit: Option<String>,
    /// The reason, at most 2000 characters.
    pub note: Option<String>,
}

/// The parsed body of a change.
struct RulesRequest {
    version: i64,
    buyer_refunds: Option<BuyerRefunds>,
    window_days: Option<Option<i32>>,
    auto_max_amount: Option<Option<Money>>,
    staff_limit: Option<Option<Money>>,
    service_daily_limit: Option<Option<Money>>,
    note: Option<String>,
}

impl RulesRequest {
    fn parse(body: &Bytes) -> Result<RulesRequest, ApiError> {
        let mut fields = Fields::parse(body)?;
        let rule = || "must be the version of the rules that you have seen".to_owned();
        let version = fields.required("version", |value| value.as_i64().ok_or_else(rule));
        let request = RulesRequest {
            version: version.unwrap_or_default(),
            buyer_refunds: fields.optional("buyer_refunds", text(mode)),
            window_days: fields.nullable("window_days", days),
            auto_max_amount: fields.nullable("auto_max_amount", limit),
            staff_limit: fields.nullable("staff_limit", limit),
            service_daily_limit: fields.nullable("service_daily_limit", limit),
            note: fields.optional("note", text(note)),
        };
        fields.finish()?;
        Ok(request)
    }

    /// The rules after the change.
    fn applied_to(&self, rules: &RefundRules) -> RefundRules {
        RefundRules {
            buyer_refunds: self.buyer_refunds.unwrap_or(rules.buyer_refunds),
            window_days: self.window_days.unwrap_or(rules.window_days),
            auto_max_amount: self.auto_max_amount.unwrap_or(rules.auto_max_amount),
            staff_limit: self.staff_limit.unwrap_or(rules.staff_limit),
            service_daily_limit: self.service_daily_limit.unwrap_or(rules.service_daily_limit),
        }
    }
}

fn mode(name: String) -> Result<BuyerRefunds, String> {
    name.parse().map_err(|_| one_of(BuyerRefunds::ALL.iter().map(|mode| mode.as_str())))
}

fn days(value: &Value) -> Result<i32, String> {
    let days = value.as_i64().filter(|days| (1..=MOST_DAYS).contains(days));
    days.and_then(|days| i32::try_from(days).ok()).ok_or_else(|| format!("must be 1 to {MOST_DAYS}, or null"))
}

fn limit(value: &Value) -> Result<Money, String> {
    let money = value.as_str().and_then(|yuan| Money::from_yuan(yuan).ok());
    money.ok_or_else(|| {
        format!("must be text in yuan with at most two decimals, \"0.00\" to \"{}\", or null", Money::MAX)
    })
}

/// Change the rules of one gateway for refunds.
///
/// A refund that has begun goes on. A request that waits for a person is checked again when it is approved.
#[utoipa::path(
    patch, path = "/v1/admin/config/{method}/refunds", tag = "admin", request_body = ChangeRefundRules,
    security(("staff" = ["payments:config"])),
    params(("method" = String, Path, description = "`alipay` or `wechat`")),
    responses(
        (status = 200, description = "The rules after the change", body = RefundRulesView),
        (status = 400, description = "`invalid_fields`, `malformed_json`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`, `sign_in_again`", body = Problem),
        (status = 403, description = "`scope_missing`, `person_required`", body = Problem),
        (status = 404, description = "`method_not_found`", body = Problem),
        (status = 409, description = "`config_changed`: another change was faster", body = Problem),
    )
)]
pub async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(method): Path<String>,
    JsonBytes(body): JsonBytes,
) -> Result<Json<RefundRulesView>, ApiError> {
    let who = caller.person()?.to_string();
    caller.signed_in_recently(app.clock.now())?;
    let method = method.parse().map_err(|_| ApiError::MethodNotFound)?;
    let request = RulesRequest::parse(&body)?;
    to_the_end(async move { put(&app, method, request, &who).await }).await
}

async fn put(
    app: &App,
    method: PaymentMethod,
    request: RulesRequest,
    who: &str,
) -> Result<Json<RefundRulesView>, ApiError> {
    let mut tx = app.db.begin().await.map_err(DbError::from)?;
    let config = payment_config::lock(&mut tx, method).await?.ok_or(ApiError::MethodNotFound)?;
    if config.version != request.version {
        return Err(ApiError::ConfigChanged);
    }
    let before = refund_rules::of(&mut *tx, method).await?;
    let after = request.applied_to(&before);
    let by = By { who: who.to_owned(), note: request.note };
    let change = RulesChange { config: &config, before: &before, after: &after, by: &by };
    refund_rules::change(&mut tx, change, app.clock.now()).await?;
    let detail = json!({ "before": before, "after": after, "version": config.version, "note": by.note });
    let object = format!("payment_config:{method}");
    let act = Act { subject: who, act: "refund_rules.changed", object, detail: &detail };
    audit::record(&mut tx, &act).await?;
    let all = refund_rules::all(&mut *tx).await?;
    tx.commit().await.map_err(DbError::from)?;
    app.cache.config.renew(&app.db).await;
    tracing::info!(user_id = who, gateway = %method, rules = ?after, "The rules of {method} for refunds were changed");
    let changed = all.into_iter().find(|known| known.payment_method == method).ok_or(ApiError::MethodNotFound)?;
    Ok(Json(RefundRulesView::of(changed)))
}
