//! The actions on a case, and when each of them is allowed.

use axum::body::Bytes;
use domain::message::job::{CheckRequest, Decision, JobRequest, RefundRequest};
use domain::{CaseAction, CaseKind, Money, OrderEvent, OrderId, RefundNo, RefundStatus, TradeNo, UserId, steers};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use store::DbError;
use store::settle::strays::{NotReturnable, Stray, has_strays};
use store::settle::{self, NotHonoured, refunds as settling};
use store::tables::cases::{self, Case};
use store::tables::refunds::{self, Refund};
use store::tables::{jobs, orders};
use utoipa::ToSchema;

use crate::answer::problem::ApiError;
use crate::create::fields::{Fields, money, one_of, text};
use crate::routes::refunds::{reason, refund_request, refused};
use crate::state::App;

/// The action to carry out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Return the payment that the case is about, or a part of it (`late_payment`, `double_payment`,
    /// `refunded_elsewhere`, `amount_mismatch`, `wrong_method`, `wrong_merchant` where the account is ours,
    /// `unknown_order`).
    Refund {
        /// In yuan; if absent, the whole rest of the payment.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        amount: Option<Money>,
        /// The reason that the buyer reads.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Accept the late payment for its order and deliver (`late_payment`, `refunded_elsewhere`). The gateway is queried
    /// first: the case is resolved once the order is paid, or its evidence says in `not_fulfilled` why not.
    Fulfil,
    /// Book a refund that was made at the gateway's console (`unknown_refund`, `refunded_elsewhere`, `late_payment`,
    /// `double_payment`). The gateway is queried first; if nothing is booked, the evidence says why in `not_booked`.
    BookRefund {
        /// The merchant's number of the refund, as the gateway has it.
        #[schema(value_type = String)]
        refund_no: RefundNo,
        /// The refunded amount, in yuan.
        #[schema(value_type = String)]
        amount: Money,
    },
    /// Repeat a refund that the gateway closed, under a new number (`refund_closed`).
    RefundAgain,
    /// Redirect an undeliverable refund to the merchant's own account (`refund_abnormal`, WeChat Pay).
    AbnormalRefund,
    /// Accept the amount that the gateway states for a refund as the refunded amount (`amount_mismatch` of a refund).
    AcceptAmount,
    /// Resolve the case; no money moves. Two cases need the confirmation of another person: on `unknown_refund`,
    /// reserved money of the order becomes free again; and money that was to be returned automatically stays with us.
    Note {
        /// What a person found and did.
        note: String,
    },
}

const NAMES: [&str; 7] =
    ["refund", "fulfil", "book_refund", "refund_again", "abnormal_refund", "accept_amount", "note"];

/// The longest note, in characters.
const NOTE: usize = 2000;

impl Action {
    /// # Errors
    /// [`ApiError::InvalidFields`] with every fault.
    pub fn parse(body: &Bytes) -> Result<Action, ApiError> {
        let mut fields = Fields::parse(body)?;
        let known = |name: String| {
            let known = NAMES.into_iter().find(|known| *known == name);
            known.ok_or_else(|| one_of(NAMES.into_iter()))
        };
        let action = match fields.required("action", text(known)) {
            Some("refund") => {
                let amount = fields.optional("amount", money);
                Some(Action::Refund { amount, reason: fields.optional("reason", text(reason)) })
            }
            Some("fulfil") => Some(Action::Fulfil),
            Some("book_refund") => {
                let number = |text: String| RefundNo::parse(text).map_err(|error| error.to_string());
                let (refund_no, amount) =
                    (fields.required("refund_no", text(number)), fields.required("amount", money));
                refund_no.zip(amount).map(|(refund_no, amount)| Action::BookRefund { refund_no, amount })
            }
            Some("refund_again") => Some(Action::RefundAgain),
            Some("abnormal_refund") => Some(Action::AbnormalRefund),
            Some("accept_amount") => Some(Action::AcceptAmount),
            Some(_) => fields.required("note", text(note)).map(|note| Action::Note { note }),
            None => None,
        };
        fields.finish()?;
        // If there is no action, a fault was recorded, so `finish` has already returned an error.
        action.ok_or_else(|| ApiError::InvalidFields(Vec::new()))
    }

    /// Whether the action needs two people.
    pub fn moves_money(&self, case: &Case) -> bool {
        !matches!(self, Action::Note { .. }) || case.end_moves_money()
    }

    /// The action as the case stores it.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub fn to_json(&self) -> Result<Value, ApiError> {
        serde_json::to_value(self).map_err(|error| ApiError::Internal(error.into()))
    }

    /// Reads an action that the case has stored.
    ///
    /// # Errors
    /// [`ApiError::Internal`].
    pub fn from_json(value: &Value) -> Result<Action, ApiError> {
        serde_json::from_value(value.clone()).map_err(|error| ApiError::Internal(error.into()))
    }
}

/// The result of an action.
pub struct Done {
    /// The result in words.
    pub text: String,
    /// Whether the case is resolved with it.
    pub ends: bool,
}

/// Checks whether the action is allowed on the case, before another person is asked to confirm it.
///
/// # Errors
/// [`ApiError::ActionUnfit`], or the error of a refund that the payment has no room for.
pub async fn check(app: &App, case: &Case, action: &Action) -> Result<(), ApiError> {
    let db = &app.db;
    match action {
        Action::Note { .. } => Ok(()),
        Action::Refund { amount, .. } if has_strays(case.kind) => stray(case)?.has(*amount).map_err(unfit),
        Action::Refund { amount, .. } => {
            let (order_id, trade_no) = payment(case)?;
            let mut tx = db.begin().await.map_err(DbError::from)?;
            settling::has_room(&mut tx, order_id, &trade_no, *amount, app.clock.now()).await.map_err(refused)
        }
        Action::Fulfil => {
            let (order_id, _) = late_payment(case)?;
            let order = orders::get(db, order_id).await?.ok_or(ApiError::OrderNotFound)?;
            fits(order.status.next(OrderEvent::PaymentHonoured).is_ok(), "the order is not closed")
        }
        Action::BookRefund { .. } => returned_elsewhere(case).map(drop),
        Action::RefundAgain | Action::AbnormalRefund => {
            let refund = refunds::by_refund_no(db, &case.subject_ref).await?;
            refund_of(case, action, refund).map(drop)
        }
        Action::AcceptAmount => stated_amount(case, refunds::by_refund_no(db, &case.subject_ref).await?).map(drop),
    }
}

/// Carries out the action, in the transaction that records it.
///
/// # Errors
/// [`ApiError::ActionUnfit`], or the error of a refused refund; the caller rolls back.
pub async fn carry_out(
    app: &App,
    tx: &mut PgConnection,
    (case, who): (&Case, &UserId),
    action: &Action,
) -> Result<Done, ApiError> {
    // Every transaction locks the order before its other rows.
    if let Some(order_id) = case.order_id {
        orders::lock_one(tx, order_id).await?;
    }
    // Under that lock no fact can add to the case, so the decision applies to exactly what the person saw.
    let now = cases::get(&mut *tx, case.id).await?.ok_or(ApiError::CaseNotFound)?;
    if now.version != case.version {
        return Err(ApiError::CaseChanged);
    }
    match action {
        Action::Refund { amount, reason } => {
            let (order_id, trade_no) = match has_strays(case.kind) {
                true => stray(case)?.record(tx, &app.clock).await?,
                false => payment(case)?,
            };
            let refund = (order_id, trade_no, *amount, reason.clone());
            request_refund(app, tx, who, refund).await
        }
        Action::Fulfil => {
            let (order_id, trade_no) = late_payment(case)?;
            fulfil(tx, (case, order_id), &trade_no).await
        }
        Action::BookRefund { refund_no, amount } => {
            let order_id = returned_elsewhere(case)?;
            let decision = Decision::BookRefund { refund_no: refund_no.clone(), amount: *amount };
            let text = format!(
                "the gateway is queried about refund {refund_no} of {amount} yuan, which is booked if it confirms it"
            );
            hand_on(tx, (case, order_id), (decision, text)).await
        }
        Action::RefundAgain => {
            let old = refund_of(case, action, refunds::by_refund_no(&mut *tx, &case.subject_ref).await?)?;
            let done = request_refund(app, tx, who, (old.order_id, old.trade_no, Some(old.amount), old.reason)).await?;
            Ok(Done { ends: true, ..done })
        }
        Action::AbnormalRefund => {
            let stuck = refund_of(case, action, refunds::by_refund_no(&mut *tx, &case.subject_ref).await?)?;
            let redirect = JobRequest::Refund(stuck.id, RefundRequest::redirect());
            jobs::request(&mut *tx, &redirect, time::Duration::ZERO).await?;
            // Whether the money arrives is not known yet, so the case stays open until a person has checked it.
            Ok(Done { text: format!("refund {} is sent to the merchant's account", stuck.refund_no), ends: false })
        }
        Action::AcceptAmount => {
            let found = refunds::by_refund_no(&mut *tx, &case.subject_ref).await?;
            let (refund, amount) = stated_amount(case, found)?;
            let accept = JobRequest::Refund(refund.id, RefundRequest::accept(amount));
            jobs::request(&mut *tx, &accept, time::Duration::ZERO).await?;
            // Once the gateway states the amount again, the refund succeeds and its case is resolved.
            Ok(Done { text: format!("refund {} is taken as {amount} yuan", refund.refund_no), ends: false })
        }
        Action::Note { note } => Ok(Done { text: note.clone(), ends: true }),
    }
}

async fn request_refund(
    app: &App,
    tx: &mut PgConnection,
    who: &UserId,
    (order_id, trade_no, amount, reason): (OrderId, TradeNo, Option<Money>, Option<String>),
) -> Result<Done, ApiError> {
    let mut request = refund_request(app, (order_id, who.as_str()), amount, reason)?;
    request.extra_trade = Some(trade_no);
    let refund = settling::request(tx, &request, app.clock.now()).await.map_err(refused)?;
    let mut text = format!("refund {} of {} yuan", refund.refund_no, refund.amount);
    let left = left_of(tx, &refund).await?;
    if left.is_positive() {
        text.push_str(&format!("; {left} yuan of the payment are left"));
    }
    // If a part of the payment is left, people still have to decide about it.
    Ok(Done { text, ends: !left.is_positive() })
}

/// The part of `refund`'s payment that no refund returns or reserves.
async fn left_of(tx: &mut PgConnection, refund: &Refund) -> Result<Money, ApiError> {
    let all = refunds::of_order(&mut *tx, refund.order_id).await?;
    let of_payment =
        all.iter().filter(|other| other.transaction_id == refund.transaction_id && other.status.reserves());
    let reserved: i64 = of_payment.map(|other| other.amount.fen()).sum();
    Ok(Money::from_fen(refund.payment_amount.fen() - reserved).unwrap_or(Money::ZERO))
}

/// Hands the fulfilment to the worker: only the worker changes an order, and only after a query to the gateway.
async fn fulfil(
    tx: &mut PgConnection,
    (case, order_id): (&Case, OrderId),
    trade_no: &TradeNo,
) -> Result<Done, ApiError> {
    if let Err(not_done) = settle::can_honour(tx, order_id, trade_no).await {
        return Err(ApiError::ActionUnfit(match not_done.refusal()? {
            NotHonoured::NoPayment => "this trade brought the order no payment",
            NotHonoured::AnotherAmount => "the payment is of another amount than the order",
            NotHonoured::AnotherOrder => "another order of the purchase is open or paid",
            NotHonoured::NotClosed => "the order is not closed",
            NotHonoured::Returned => "the payment has been returned, or is on its way back",
            NotHonoured::NotThere | NotHonoured::NotBooked => "the gateway must be queried about the payment",
        }));
    }
    let text = format!("the gateway is queried about trade {trade_no}; the order is paid if its money is there");
    hand_on(tx, (case, order_id), (Decision::Fulfil, text)).await
}

/// Hands the request to the check worker. The case stays open until the worker has carried it out.
async fn hand_on(
    tx: &mut PgConnection,
    (case, order_id): (&Case, OrderId),
    (decision, text): (Decision, String),
) -> Result<Done, ApiError> {
    let check = JobRequest::Check(order_id, CheckRequest::of_case(case.id, decision));
    jobs::request(&mut *tx, &check, time::Duration::ZERO).await?;
    Ok(Done { text, ends: false })
}

/// The payment that only a case records.
fn stray(case: &Case) -> Result<Stray, ApiError> {
    Stray::of(case).map_err(unfit)
}

fn unfit(refusal: NotReturnable) -> ApiError {
    ApiError::ActionUnfit(refusal.0)
}

/// The payment of a case, which is not the order's own payment.
fn payment(case: &Case) -> Result<(OrderId, TradeNo), ApiError> {
    let fit = matches!(case.kind, CaseKind::LatePayment | CaseKind::DoublePayment | CaseKind::RefundedElsewhere);
    fits(fit, "the case is about no late or second payment")?;
    let trade_no = TradeNo::parse(&*case.subject_ref).ok();
    case.order_id.zip(trade_no).ok_or(ApiError::ActionUnfit("the case names no payment"))
}

fn late_payment(case: &Case) -> Result<(OrderId, TradeNo), ApiError> {
    fits(settle::can_fulfil(case.kind), "the case is about no late payment")?;
    payment(case)
}

/// The order whose money was returned without this service.
fn returned_elsewhere(case: &Case) -> Result<OrderId, ApiError> {
    let fit = case.kind.actions().contains(&CaseAction::BookRefund);
    fits(fit, "the case is about no refund that was made elsewhere")?;
    case.order_id.ok_or(ApiError::ActionUnfit("the case names no order"))
}

/// The refund for which the gateway states another amount, and that amount, if it is not larger than the payment.
fn stated_amount(case: &Case, refund: Option<Refund>) -> Result<(Refund, Money), ApiError> {
    fits(case.is_about_a_refunds_amount(), "the case is about no refund")?;
    let refund = refund.ok_or(ApiError::ActionUnfit("the refund is not ours"))?;
    let open = matches!(refund.status, RefundStatus::Processing | RefundStatus::Abnormal);
    fits(open, "the refund has gone on")?;
    let amount = case.evidence["amount"].as_str().and_then(|yuan| Money::from_yuan(yuan).ok());
    let amount = amount.filter(|amount| amount.is_positive() && *amount <= refund.payment_amount);
    Ok((refund, amount.ok_or(ApiError::ActionUnfit("the payment does not hold the amount that the gateway states"))?))
}

/// The refund that a case is about, if it is in the state that the action needs.
fn refund_of(case: &Case, action: &Action, refund: Option<Refund>) -> Result<Refund, ApiError> {
    let (kind, status) = match action {
        Action::RefundAgain => (CaseKind::RefundClosed, RefundStatus::Failed),
        _ => (CaseKind::RefundAbnormal, RefundStatus::Abnormal),
    };
    fits(case.kind == kind, "the case is about no such refund")?;
    // A reopened case has its old history, so a refund is repeated only once. If the repeat fails too, it has its own
    // case.
    let again = *action == Action::RefundAgain && confirmed_before(case, "refund_again");
    fits(!again, "the refund was sent again from this case already: see that refund")?;
    let refund = refund.ok_or(ApiError::ActionUnfit("the refund is not ours"))?;
    fits(refund.status == status, "the refund has gone on")?;
    Ok(refund)
}

/// Whether two people have carried out this action from this case before.
fn confirmed_before(case: &Case, action: &str) -> bool {
    let entries = case.history.as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().any(|entry| entry["what"] == "confirmed" && entry["action"]["action"] == action)
}

fn fits(fit: bool, otherwise: &'static str) -> Result<(), ApiError> {
    if fit { Ok(()) } else { Err(ApiError::ActionUnfit(otherwise)) }
}

/// The rule of a note. Terminals show it too, so it may contain line breaks but no other character that controls the
/// display.
pub(super) fn note(text: String) -> Result<String, String> {
    let plain = text.chars().all(|c| c == '\n' || !steers(c));
    let fits = text.chars().count() <= NOTE && !text.trim().is_empty() && plain;
    if fits { Ok(text) } else { Err(format!("text of 1 to {NOTE} characters without control characters")) }
}
