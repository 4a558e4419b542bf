//! What can be done about a case, and when it fits.

use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::db::cases::{self, Case};
use shared::db::refunds::{self, Refund};
use shared::db::{jobs, orders};
use shared::domain::{CaseKind, Money, OrderId, OrderStatus, RefundStatus, TradeNo, UserId};
use shared::job::kind;
use shared::settle::{self, NotHonoured, refunds as settling};
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;

use super::cases::note;
use crate::fields::{Fields, money, one_of, text};
use crate::problem::ApiError;
use crate::routes::refunds::{reason, refused, wish};
use crate::state::App;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Deed {
    /// Return the late or second payment (`late_payment`, `double_payment`).
    Refund {
        /// In yuan; all that is left of it when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        amount: Option<Money>,
        /// What the buyer reads.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Take the late payment for the closed order and deliver (`late_payment`).
    Fulfil,
    /// Return under a new number what the gateway closed (`refund_closed`).
    RefundAgain,
    /// Send what could not be delivered to the merchant's own account (`refund_abnormal`, WeChat Pay).
    AbnormalRefund,
    /// Nothing moves; the case is resolved. On `unknown_refund` another person confirms it: the order's money is free again; and
    /// so where money was still to go back by itself: it stays.
    Note {
        /// What was found and done.
        note: String,
    },
}

const NAMES: [&str; 5] = ["refund", "fulfil", "refund_again", "abnormal_refund", "note"];

impl Deed {
    /// # Errors
    /// [`ApiError::InvalidFields`] with every fault.
    pub fn parse(body: &Bytes) -> Result<Deed, ApiError> {
        let mut fields = Fields::parse(body)?;
        let known = |name: String| {
            let known = NAMES.into_iter().find(|known| *known == name);
            known.ok_or_else(|| one_of(NAMES.into_iter()))
        };
        let deed = match fields.required("action", text(known)) {
            Some("refund") => {
                let amount = fields.optional("amount", money);
                Some(Deed::Refund { amount, reason: fields.optional("reason", text(reason)) })
            }
            Some("fulfil") => Some(Deed::Fulfil),
            Some("refund_again") => Some(Deed::RefundAgain),
            Some("abnormal_refund") => Some(Deed::AbnormalRefund),
            Some(_) => fields.required("note", text(note)).map(|note| Deed::Note { note }),
            None => None,
        };
        fields.finish()?;
        // A fault was noted wherever there is none, so `finish` has returned before.
        deed.ok_or_else(|| ApiError::InvalidFields(Vec::new()))
    }

    /// Whether it takes two people.
    pub fn moves_money(&self, case: &Case) -> bool {
        !matches!(self, Deed::Note { .. }) || case.end_moves_money()
    }

    /// As the case keeps it.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub fn to_json(&self) -> Result<Value, ApiError> {
        serde_json::to_value(self).map_err(|error| ApiError::Internal(error.into()))
    }

    /// As the case has kept it.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub fn from_json(value: &Value) -> Result<Deed, ApiError> {
        serde_json::from_value(value.clone()).map_err(|error| ApiError::Internal(error.into()))
    }
}

/// What was done.
pub struct Done {
    /// In words.
    pub text: String,
    /// Whether nothing more is to be done about the case.
    pub ends: bool,
}

/// Whether the deed fits the case, before anybody is asked to confirm it.
///
/// # Errors
/// [`ApiError::ActionUnfit`].
pub async fn check(db: &PgPool, case: &Case, deed: &Deed) -> Result<(), ApiError> {
    match deed {
        Deed::Note { .. } => Ok(()),
        Deed::Refund { .. } => payment(case).map(drop),
        Deed::Fulfil => {
            let (order_id, _) = late_payment(case)?;
            let order = orders::get(db, order_id).await?.ok_or(ApiError::OrderNotFound)?;
            fits(order.status == OrderStatus::Closed, "the order is not closed")
        }
        Deed::RefundAgain | Deed::AbnormalRefund => {
            let refund = refunds::by_refund_no(db, &case.gateway_no).await?;
            refund_of(case, deed, refund).map(drop)
        }
    }
}

/// Does it, in the transaction that writes it down.
///
/// # Errors
/// [`ApiError::ActionUnfit`], or what a refund is refused for; the caller rolls back.
pub async fn carry_out(
    app: &App,
    tx: &mut PgConnection,
    (case, who): (&Case, &UserId),
    deed: &Deed,
) -> Result<Done, ApiError> {
    // The order before anything else of it, as every transaction locks.
    if let Some(order_id) = case.order_id {
        orders::lock_one(tx, order_id).await?;
    }
    // Under that lock no fact can add to the case: what was seen is what is decided.
    let now = cases::get(&mut *tx, case.id).await?.ok_or(ApiError::CaseNotFound)?;
    if now.version != case.version {
        return Err(ApiError::CaseChanged);
    }
    match deed {
        Deed::Refund { amount, reason } => {
            let (order_id, trade_no) = payment(case)?;
            let refund = (order_id, trade_no, *amount, reason.clone());
            ask(app, tx, who, refund).await
        }
        Deed::Fulfil => {
            let (order_id, trade_no) = late_payment(case)?;
            fulfil(app, tx, order_id, &trade_no).await
        }
        Deed::RefundAgain => {
            let old = refund_of(case, deed, refunds::by_refund_no(&mut *tx, &case.gateway_no).await?)?;
            let done = ask(app, tx, who, (old.order_id, old.trade_no, Some(old.amount), old.reason)).await?;
            Ok(Done { ends: true, ..done })
        }
        Deed::AbnormalRefund => {
            let stuck = refund_of(case, deed, refunds::by_refund_no(&mut *tx, &case.gateway_no).await?)?;
            let asked = json!({ "redirect": "merchant" });
            jobs::ask_in(&mut *tx, kind::REFUND, &stuck.id.to_string(), &asked, time::Duration::ZERO).await?;
            // Whether it arrives is not known yet: the case stays open until a person has seen it.
            Ok(Done { text: format!("refund {} is sent to the merchant's account", stuck.refund_no), ends: false })
        }
        Deed::Note { note } => Ok(Done { text: note.clone(), ends: true }),
    }
}

async fn ask(
    app: &App,
    tx: &mut PgConnection,
    who: &UserId,
    (order_id, trade_no, amount, reason): (OrderId, TradeNo, Option<Money>, Option<String>),
) -> Result<Done, ApiError> {
    let mut wish = wish(app, (order_id, who.as_str()), amount, reason)?;
    wish.extra_trade = Some(trade_no);
    let asked = settling::ask(tx, &wish, app.clock.now()).await.map_err(refused)?;
    let refund = asked.map_err(ApiError::Refund)?;
    let mut text = format!("refund {} of {} yuan", refund.refund_no, refund.amount);
    let left = left_of(tx, &refund).await?;
    if left.is_positive() {
        text.push_str(&format!("; {left} yuan of the payment are left"));
    }
    // What is left is for people still.
    Ok(Done { text, ends: !left.is_positive() })
}

/// What no refund returns or reserves of the payment that `refund` is of.
async fn left_of(tx: &mut PgConnection, refund: &Refund) -> Result<Money, ApiError> {
    let all = refunds::of_order(&mut *tx, refund.order_id).await?;
    let of_payment =
        all.iter().filter(|other| other.transaction_id == refund.transaction_id && other.status.reserves());
    let reserved: i64 = of_payment.map(|other| other.amount.fen()).sum();
    Ok(Money::from_fen(refund.payment_amount.fen() - reserved).unwrap_or(Money::ZERO))
}

async fn fulfil(app: &App, tx: &mut PgConnection, order_id: OrderId, trade_no: &TradeNo) -> Result<Done, ApiError> {
    let refusal = match settle::honour(tx, order_id, trade_no, app.clock.now()).await? {
        Ok(()) => return Ok(Done { text: format!("the order is paid by trade {trade_no}"), ends: true }),
        Err(refusal) => refusal,
    };
    Err(ApiError::ActionUnfit(match refusal {
        NotHonoured::NoPayment => "this trade brought the order no payment",
        NotHonoured::NotClosed => "the order is not closed",
        NotHonoured::Returned => "the payment has been returned, or is on its way back",
    }))
}

/// The payment beside the order's own that a case is about.
fn payment(case: &Case) -> Result<(OrderId, TradeNo), ApiError> {
    let fit = matches!(case.kind, CaseKind::LatePayment | CaseKind::DoublePayment);
    fits(fit, "the case is about no late or second payment")?;
    let trade_no = TradeNo::parse(&*case.gateway_no).ok();
    case.order_id.zip(trade_no).ok_or(ApiError::ActionUnfit("the case names no payment"))
}

fn late_payment(case: &Case) -> Result<(OrderId, TradeNo), ApiError> {
    fits(case.kind == CaseKind::LatePayment, "the case is about no late payment")?;
    payment(case)
}

/// The refund that a case is about, if it stands where the deed wants it.
fn refund_of(case: &Case, deed: &Deed, refund: Option<Refund>) -> Result<Refund, ApiError> {
    let (kind, status) = match deed {
        Deed::RefundAgain => (CaseKind::RefundClosed, RefundStatus::Failed),
        _ => (CaseKind::RefundAbnormal, RefundStatus::Abnormal),
    };
    fits(case.kind == kind, "the case is about no such refund")?;
    let refund = refund.ok_or(ApiError::ActionUnfit("the refund is not ours"))?;
    fits(refund.status == status, "the refund has gone on")?;
    Ok(refund)
}

fn fits(fit: bool, otherwise: &'static str) -> Result<(), ApiError> {
    if fit { Ok(()) } else { Err(ApiError::ActionUnfit(otherwise)) }
}
