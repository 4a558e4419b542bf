//! `GET /v1/admin/stats`: what each day brought. Read from `hourly_stats`, so it costs the same however many orders there
//! are.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use store::tables::stats::{self, Day};
use time::macros::offset;
use time::{Date, Duration, OffsetDateTime};
use utoipa::{IntoParams, ToSchema};

use crate::auth::Admin;
use crate::problem::{ApiError, FieldFault, Problem};
use crate::routes::listing::{Faults, Known, date, midnight};
use crate::state::{App, to_the_end};

/// The longest time asked for at once.
const MOST_DAYS: i64 = 366;
/// Without `from`: today and the days before it.
const DAYS: i64 = 7;

/// Which days, in Beijing.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Span {
    /// The first; a week ago when absent.
    #[param(example = "2026-01-01")]
    from: Option<String>,
    /// The last; today when absent.
    #[param(example = "2026-01-31")]
    to: Option<String>,
}

/// What each day brought.
#[derive(Serialize, ToSchema)]
pub struct StatsView {
    /// The first day.
    from: String,
    /// The last day.
    to: String,
    /// When the counting last came by: about once a minute. Null: never yet.
    #[serde(with = "time::serde::rfc3339::option")]
    refreshed_at: Option<OffsetDateTime>,
    /// Oldest first, one entry for each day and method with anything to tell.
    days: Vec<DayView>,
}

/// What one day brought at one gateway. Orders, extra payments and refunds count for the day on which they were created; rates are
/// parts of one, null where there is nothing to divide by. Money is `amount - refunded_amount + extra_amount - extra_refunded`.
#[derive(Serialize, ToSchema)]
pub struct DayView {
    /// In Beijing.
    #[schema(example = "2026-01-05")]
    day: String,
    /// `alipay` or `wechat`.
    payment_method: String,
    /// Orders created.
    orders: i64,
    /// Of these, paid since.
    paid: i64,
    /// Paid by created.
    success_rate: Option<f64>,
    /// What the paid ones brought, in yuan.
    #[schema(example = "12.34")]
    amount: String,
    /// Seconds from creation to payment, on average.
    average_settle_seconds: Option<f64>,
    /// Of the paid orders, those with money returned since, by paid.
    refund_rate: Option<f64>,
    /// Refunds of the orders' own payments that were requested.
    refunds: i64,
    /// Of these, returned.
    refunds_succeeded: i64,
    /// Of these, failed.
    refunds_failed: i64,
    /// Succeeded by ended.
    refund_success_rate: Option<f64>,
    /// What those that succeeded returned, in yuan.
    #[schema(example = "0.00")]
    refunded_amount: String,
    /// Late and second payments that were recorded and that no order took: held, returned or on their way back.
    extra_payments: i64,
    /// What they brought, in yuan.
    #[schema(example = "0.00")]
    extra_amount: String,
    /// Refunds of such payments that were requested.
    extra_refunds: i64,
    /// What those of them that succeeded returned, in yuan.
    #[schema(example = "0.00")]
    extra_refunded: String,
}

/// See what each day brought.
#[utoipa::path(
    get, path = "/v1/admin/stats", tag = "admin", params(Span), security(("bearer" = ["payments:admin"])),
    responses(
        (status = 200, description = "By day and method", body = StatsView),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    _admin: Admin,
    Known(span): Known<Span>,
) -> Result<Json<StatsView>, ApiError> {
    let (from, to) = span.read(app.clock.now())?;
    let past = to.next_day().unwrap_or(to);
    to_the_end(async move {
        let days = stats::days(&app.db, midnight(from), midnight(past)).await?;
        let refreshed_at = stats::refreshed_at(&app.db).await?;
        let days = days.iter().map(DayView::of).collect();
        Ok(Json(StatsView { from: from.to_string(), to: to.to_string(), refreshed_at, days }))
    })
    .await
}

impl Span {
    fn read(&self, now: OffsetDateTime) -> Result<(Date, Date), ApiError> {
        let mut faults = Faults::default();
        let rule = "must be a date such as 2026-01-31";
        let to = faults.read("to", self.to.as_deref(), date, rule);
        let from = faults.read("from", self.from.as_deref(), date, rule);
        faults.finish()?;
        let to = to.unwrap_or(now.to_offset(offset!(+8)).date());
        let from = from.or(to.checked_sub(Duration::days(DAYS - 1))).unwrap_or(to);
        if from > to || (to - from).whole_days() >= MOST_DAYS {
            let rule = format!("must not be after `to`, nor {MOST_DAYS} days before it");
            return Err(ApiError::InvalidFields(vec![FieldFault::new("from", rule)]));
        }
        Ok((from, to))
    }
}

impl DayView {
    fn of(day: &Day) -> DayView {
        DayView {
            day: day.day.to_string(),
            payment_method: day.payment_method.to_string(),
            orders: day.orders,
            paid: day.paid,
            success_rate: part(day.paid as f64, day.orders, 4),
            amount: day.amount.clone(),
            average_settle_seconds: part(day.settle_seconds as f64, day.paid, 1),
            refund_rate: part(day.returned as f64, day.paid, 4),
            refunds: day.refunds,
            refunds_succeeded: day.refunds_succeeded,
            refunds_failed: day.refunds_failed,
            refund_success_rate: part(day.refunds_succeeded as f64, day.refunds_succeeded + day.refunds_failed, 4),
            refunded_amount: day.refunded_amount.clone(),
            extra_payments: day.extra_payments,
            extra_amount: day.extra_amount.clone(),
            extra_refunds: day.extra_refunds,
            extra_refunded: day.extra_refunded.clone(),
        }
    }
}

/// `some` of `all`, rounded to so many digits.
fn part(some: f64, all: i64, digits: i32) -> Option<f64> {
    let scale = 10_f64.powi(digits);
    (all > 0).then(|| (some / all as f64 * scale).round() / scale)
}
