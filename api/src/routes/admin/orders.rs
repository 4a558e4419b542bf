//! `GET /v1/admin/orders` and its sums: the orders of all users, by any mix of filters.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use domain::{AccountName, ExtraState, OrderId, OrderStatus, PaymentMethod, ProductType, Scene, UserId};
use serde::{Deserialize, Serialize};
use store::page::Created;
use store::tables::order_list::{self, ListedOrder, OrderFilter, Sums};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use crate::access::in_hand::to_the_end;
use crate::answer::problem::{ApiError, Problem};
use crate::routes::listing::{Faults, Known, Paged, Slice, is_bounded, part};
use crate::routes::orders::ExtraPaymentView;
use crate::state::App;

/// The name of the list in its cursors.
const LIST: &str = "order";
const NEEDS_RANGE: &str = "these filters need a range: give created_from and created_to, at most 31 days apart, or one of \
    user_id, has_case=true, extra_payment";
const SUMS_NEED_RANGE: &str = "a summary needs a range: give created_from and created_to, at most 31 days apart";

/// Selects orders. Without `user_id`, `has_case=true` or `extra_payment`, every filter but the times of creation needs
/// `created_from` and `created_to`, at most 31 days apart.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OrderFilters {
    /// Only orders in this state; several states with commas.
    #[param(example = "paid,refunded")]
    status: Option<String>,
    /// `alipay` or `wechat`.
    payment_method: Option<String>,
    /// Only orders of this account.
    account: Option<String>,
    /// Only orders of this scene.
    scene: Option<String>,
    /// Only orders of this kind of product.
    product_type: Option<String>,
    /// Only orders of this user.
    user_id: Option<String>,
    /// Only orders of this amount or more, in yuan.
    #[param(example = "10.00")]
    amount_from: Option<String>,
    /// Only orders of this amount or less, in yuan.
    #[param(example = "99.99")]
    amount_to: Option<String>,
    /// Only orders that were created at this time or later: RFC 3339, or a date in Beijing.
    #[param(example = "2026-01-01")]
    created_from: Option<String>,
    /// Only orders that were created before this time (RFC 3339), or until the end of this date in Beijing. Absent: now.
    #[param(example = "2026-01-31")]
    created_to: Option<String>,
    /// Only orders that were paid at this time or later, by the gateway's clock.
    paid_from: Option<String>,
    /// Only orders that were paid before this time, or until the end of this date.
    paid_to: Option<String>,
    /// `true`: only orders with a case that is not resolved. `false`: only orders without one.
    #[param(value_type = Option<bool>)]
    has_case: Option<String>,
    /// Only orders with money that was not owed, in this state: `held` `returning` `returned`.
    extra_payment: Option<String>,
}

impl OrderFilters {
    pub(super) fn read(&self, faults: &mut Faults) -> OrderFilter {
        let text = Option::as_deref;
        let created_from = faults.begin("created_from", text(&self.created_from));
        let created_to = faults.end("created_to", text(&self.created_to));
        let filter = OrderFilter {
            statuses: faults.choices("status", text(&self.status), &names(OrderStatus::ALL, OrderStatus::as_str)),
            payment_method: faults.choice(
                "payment_method",
                text(&self.payment_method),
                &names(PaymentMethod::ALL, PaymentMethod::as_str),
            ),
            account: faults.read("account", text(&self.account), |name| AccountName::parse(name).ok(), ACCOUNT),
            scene: faults.choice("scene", text(&self.scene), &names(Scene::ALL, Scene::as_str)),
            product_type: faults.read(
                "product_type",
                text(&self.product_type),
                |name| ProductType::parse(name).ok(),
                "must be a product type of 1 to 32 characters 0-9, A-Z, a-z, _, . and -",
            ),
            user_id: faults.read(
                "user_id",
                text(&self.user_id),
                |user| UserId::parse(user).ok(),
                "must be a user id of 1 to 32 printable ASCII characters",
            ),
            amount_from: faults.money("amount_from", text(&self.amount_from)),
            amount_to: faults.money("amount_to", text(&self.amount_to)),
            created: Created { from: created_from, to: created_to },
            paid_from: faults.begin("paid_from", text(&self.paid_from)),
            paid_to: faults.end("paid_to", text(&self.paid_to)),
            has_case: faults.read("has_case", text(&self.has_case), |is| is.parse().ok(), "must be true or false"),
            extra_payment: faults.choice(
                "extra_payment",
                text(&self.extra_payment),
                &names(ExtraState::ALL, ExtraState::as_str),
            ),
        };
        faults.ordered("created_to", filter.created.from.as_ref(), filter.created.to.as_ref());
        faults.ordered("paid_to", filter.paid_from.as_ref(), filter.paid_to.as_ref());
        faults.ordered("amount_to", filter.amount_from.as_ref(), filter.amount_to.as_ref());
        filter
    }
}

/// The rule of an account's name.
pub(super) const ACCOUNT: &str = "must be an account name of 1 to 32 characters a-z, 0-9 and -";

/// The names of some values.
pub(super) fn names<T: Copy>(all: &[T], name: fn(T) -> &'static str) -> Vec<&'static str> {
    all.iter().map(|value| name(*value)).collect()
}

/// An order in the list.
#[derive(Serialize, ToSchema)]
pub struct OrderRow {
    /// 32 hex digits.
    id: String,
    /// Our number for the gateways.
    order_no: String,
    /// The merchant's own number of the purchase.
    merchant_order_no: Option<String>,
    /// What the buyer reads.
    subject: String,
    /// What kind of thing is sold.
    product_type: String,
    /// The buyer.
    user_id: String,
    /// `alipay` or `wechat`.
    payment_method: String,
    /// The account that receives the money.
    account: String,
    /// Where the buyer pays.
    scene: String,
    /// In yuan.
    #[schema(example = "12.34")]
    amount: String,
    /// `pending` `paid` `closed` `refunding` `partially_refunded` `refunded`.
    status: String,
    /// In yuan.
    #[schema(example = "0.00")]
    refunded_amount: String,
    /// Money that the order was not owed. Null: there was none.
    extra_payment: Option<ExtraPaymentView>,
    /// Whether a case about the order waits for people.
    case: bool,
    /// Whether a payment came after the order was closed.
    late: bool,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// The last moment to pay.
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    /// By the gateway's clock.
    #[serde(with = "time::serde::rfc3339::option")]
    paid_at: Option<OffsetDateTime>,
}

impl OrderRow {
    fn of(order: ListedOrder) -> OrderRow {
        OrderRow {
            id: order.id.to_string(),
            order_no: order.order_no.to_string(),
            merchant_order_no: order.merchant_order_no.map(String::from),
            subject: order.subject.to_string(),
            product_type: order.product_type.to_string(),
            user_id: order.user_id.to_string(),
            payment_method: order.payment_method.to_string(),
            account: order.account.to_string(),
            scene: order.scene.to_string(),
            amount: order.amount.to_string(),
            status: order.status.to_string(),
            refunded_amount: order.refunded_amount.to_string(),
            extra_payment: ExtraPaymentView::of(order.extra_state, order.extra_amount),
            case: order.case,
            late: order.late,
            created_at: order.created_at,
            expires_at: order.expires_at,
            paid_at: order.paid_at,
        }
    }
}

/// Orders of all users, newest first.
#[derive(Serialize, ToSchema)]
pub struct OrderRows {
    orders: Vec<OrderRow>,
    /// The cursor of the next page; null on the last page.
    next_cursor: Option<String>,
}

/// List the orders of all users, newest first.
#[utoipa::path(
    get, path = "/v1/admin/orders", tag = "admin", params(OrderFilters, Slice),
    security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "A page of orders", body = OrderRows),
        (status = 400, description = "`invalid_fields`; `range_required`: a filter without an index needs a range of at most 31 days", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Known(Paged { filter, slice }): Known<Paged<OrderFilters>>,
) -> Result<Json<OrderRows>, ApiError> {
    let mut faults = Faults::default();
    let filter = filter.read(&mut faults);
    let (limit, before) = slice.read(&mut faults, LIST, |id| OrderId::parse(id).ok());
    faults.finish()?;
    if filter.reads_on() && !filter.has_an_index() && !is_bounded(&filter.created, app.clock.now()) {
        return Err(ApiError::RangeRequired(NEEDS_RANGE));
    }
    let found = to_the_end(async move { Ok(order_list::part(&app.db, &filter, before, limit).await?) }).await?;
    let (shown, next_cursor) = part(found, limit, |order| order.id, |id| format!("{LIST}:{id}"));
    Ok(Json(OrderRows { orders: shown.into_iter().map(OrderRow::of).collect(), next_cursor }))
}

/// The sums over a list of orders.
#[derive(Serialize, ToSchema)]
pub struct OrderSums {
    /// How many orders.
    count: i64,
    /// What all of them were to pay, in yuan.
    #[schema(example = "300.00")]
    amount: String,
    /// How many of them were paid, whether money was returned since or not.
    paid_count: i64,
    /// What the paid ones were to pay, in yuan.
    #[schema(example = "200.00")]
    paid_amount: String,
    /// What was refunded of them, in yuan.
    #[schema(example = "0.00")]
    refunded_amount: String,
}

impl OrderSums {
    fn of(sums: Sums) -> OrderSums {
        let Sums { count, amount, paid_count, paid_amount, refunded_amount } = sums;
        OrderSums { count, amount, paid_count, paid_amount, refunded_amount }
    }
}

/// Count and add up the orders of a list.
#[utoipa::path(
    get, path = "/v1/admin/orders/summary", tag = "admin", params(OrderFilters),
    security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "The sums", body = OrderSums),
        (status = 400, description = "`invalid_fields`; `range_required`: a summary needs a range of at most 31 days", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn summary(
    State(app): State<Arc<App>>,
    Known(filter): Known<OrderFilters>,
) -> Result<Json<OrderSums>, ApiError> {
    let mut faults = Faults::default();
    let filter = filter.read(&mut faults);
    faults.finish()?;
    if !is_bounded(&filter.created, app.clock.now()) {
        return Err(ApiError::RangeRequired(SUMS_NEED_RANGE));
    }
    let sums = to_the_end(async move { Ok(order_list::sums(&app.db, &filter).await?) }).await?;
    Ok(Json(OrderSums::of(sums)))
}
