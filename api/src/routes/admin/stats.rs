//! `GET /v1/admin/stats`: statistics by day. They are read from `hourly_stats`, so the cost does not depend on the
//! number of orders.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use store::tables::stats::{self, Day};
use time::macros::offset;
use time::{Date, Duration, OffsetDateTime};
use utoipa::{IntoParams, ToSchema};

use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, FieldFault, Problem};
use crate::routes::listing::{Faults, Known, date, midnight};
use crate::state::App;

/// The longest period of one request, in days.
const MOST_DAYS: i64 = 366;
/// Without `from`: this many days, which end with `to`.
const DAYS: i64 = 7;

/// The period, in days of Beijing time.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Span {
    /// The first day; six days before `to` when absent.
    #[param(example = "2026-01-01")]
    from: Option<String>,
    /// The last day; today when absent.
    #[param(example = "2026-01-31")]
    to: Option<String>,
}

/// Statistics by day.
#[derive(Serialize, ToSchema)]
pub struct StatsView {
    /// The first day.
    from: String,
    /// The last day.
    to: String,
    /// The time of the last update of the statistics, which runs about once a minute. Null: never so far.
    #[serde(with = "time::serde::rfc3339::option")]
    refreshed_at: Option<OffsetDateTime>,
    /// One entry for each day and payment method that has data, oldest first.
    days: Vec<DayView>,
}

/// Statistics of one day at one gateway. Orders, extra payments and refunds count for the day on which they were
/// created. Rates are fractions of one, and null if the divisor is zero. The money that remains is
/// `amount - refunded_amount + extra_amount - extra_refunded`.
#[derive(Serialize, ToSchema)]
pub struct DayView {
    /// The day in Beijing.
    #[schema(example = "2026-01-05")]
    day: String,
    /// `alipay` or `wechat`.
    payment_method: String,
    /// Orders created.
    orders: i64,
    /// How many of these orders are paid by now.
    paid: i64,
    /// `paid` divided by `orders`.
    success_rate: Option<f64>,
    /// The total amount of the paid orders, in yuan.
    #[schema(example = "12.34")]
    amount: String,
    /// Seconds from creation to payment, on average.
    average_settle_seconds: Option<f64>,
    /// Paid orders of which money was returned since, divided by `paid`.
    refund_rate: Option<f64>,
    /// Requested refunds of the orders' own payments.
    refunds: i64,
    /// How many of these refunds succeeded.
    refunds_succeeded: i64,
    /// How many of these refunds failed.
    refunds_failed: i64,
    /// Succeeded refunds divided by succeeded and failed refunds.
    refund_success_rate: Option<f64>,
    /// The total amount of the succeeded refunds, in yuan.
    #[schema(example = "0.00")]
    refunded_amount: String,
    /// Recorded late and second payments that were not accepted for an order: held, returned or on their way back.
    extra_payments: i64,
    /// The total amount of these payments, in yuan.
    #[schema(example = "0.00")]
    extra_amount: String,
    /// Requested refunds of these payments.
    extra_refunds: i64,
    /// The total amount of these refunds that succeeded, in yuan.
    #[schema(example = "0.00")]
    extra_refunded: String,
}

/// Get the statistics by day.
#[utoipa::path(
    get, path = "/v1/admin/stats", tag = "admin", params(Span), security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "By day and method", body = StatsView),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn get(State(app): State<Arc<App>>, Known(span): Known<Span>) -> Result<Json<StatsView>, ApiError> {
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

/// `some` divided by `all`, rounded to so many digits. `None` if `all` is zero.
fn part(some: f64, all: i64, digits: i32) -> Option<f64> {
    let scale = 10_f64.powi(digits);
    (all > 0).then(|| (some / all as f64 * scale).round() / scale)
}
