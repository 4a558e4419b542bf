//! The requests of people, or of a policy, to a check. The check carries them out with a fresh answer of the gateway.

use domain::message::job::{CheckRequest, Decision};
use domain::{CaseId, Fact, Money, RefundNo, RefundState, Verdict};
use gateway::{Gateway, GatewayError, RefundOrder};
use runtime::clock::Clock;
use sqlx::{PgConnection, PgPool};
use store::DbError;
use store::connect::in_time;
use store::settle::{self, Found, RequestedBooking};
use store::tables::orders::Order;
use store::tables::{cases, transactions};
use time::OffsetDateTime;

use crate::jobs::job::JobError;

/// The requests, with the gateway's answer about each refund to book.
pub struct Wanted {
    fulfil: Vec<CaseId>,
    book: Vec<RequestedBooking>,
}

/// Why the gateway's answer is not there.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The gateway did not answer.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The job cannot go on.
    #[error(transparent)]
    Job(#[from] JobError),
}

/// Queries the gateway about the refunds to book. Runs outside any transaction. If the gateway does not answer, all
/// requests stay in the job.
pub async fn query(
    gateway: &dyn Gateway,
    order: &Order,
    request: &CheckRequest,
    now: OffsetDateTime,
    db: &PgPool,
) -> Result<Wanted, QueryError> {
    let mut wanted = Wanted { fulfil: Vec::new(), book: Vec::new() };
    for (case, decision) in &request.of_cases {
        match decision {
            Decision::Fulfil => wanted.fulfil.push(*case),
            Decision::BookRefund { refund_no, amount } => {
                let found = match refund_query(db, order, *case, refund_no, *amount).await? {
                    Some(request) => confirm(gateway, &request, now).await?,
                    None => Found::Unconfirmed("the case names no payment of this order".to_owned()),
                };
                wanted.book.push(RequestedBooking { case_id: *case, refund_no: refund_no.clone(), found });
            }
        }
    }
    Ok(wanted)
}

/// The query about a refund that we never sent. `None`: the case names no payment of this order.
async fn refund_query(
    db: &PgPool,
    order: &Order,
    case: CaseId,
    refund_no: &RefundNo,
    amount: Money,
) -> Result<Option<RefundOrder>, JobError> {
    let case = in_time(cases::get(db, case)).await?;
    let Some(trade_no) = case.and_then(|case| settle::trade_of(&case)) else { return Ok(None) };
    let mut connection = db.acquire().await?;
    let payment = in_time(transactions::payment_of_trade(&mut connection, order, &trade_no)).await?;
    Ok(payment.map(|payment| RefundOrder {
        order_no: order.order_no.clone(),
        trade_no,
        refund_no: refund_no.clone(),
        amount,
        total: payment.amount,
        reason: None,
        notify_url: String::new(),
    }))
}

/// Queries one refund.
async fn confirm(gateway: &dyn Gateway, request: &RefundOrder, now: OffsetDateTime) -> Result<Found, GatewayError> {
    let unconfirmed = |reason: &str| Ok(Found::Unconfirmed(reason.to_owned()));
    let report = match gateway.query_refund(request, now).await {
        Ok(report) => report,
        // The numbers or the amount are not those of a refund of this payment.
        Err(GatewayError::Protocol(what)) => return unconfirmed(&format!("the gateway states something else: {what}")),
        Err(GatewayError::Refused { code, .. } | GatewayError::NotNow { code, .. }) => {
            return unconfirmed(&format!("the gateway refused the query: {code}"));
        }
        // The gateway gave no answer about the refund: the query is repeated later.
        Err(error @ (GatewayError::Unavailable(_) | GatewayError::Unknown(_) | GatewayError::Misconfigured { .. })) => {
            return Err(error);
        }
    };
    match (report.state, report.amount) {
        (RefundState::Succeeded, Some(stated)) if stated != request.amount => {
            unconfirmed(&format!("the gateway states another amount: {stated} yuan"))
        }
        (RefundState::Succeeded, _) => {
            let (gateway_refund_no, at) = (report.gateway_refund_no, report.at);
            Ok(Found::Confirmed { amount: request.amount, gateway_refund_no, at })
        }
        (RefundState::Absent, _) => unconfirmed("the gateway knows no refund of this number"),
        (RefundState::Processing, _) => unconfirmed("the gateway has not finished this refund"),
        (RefundState::Closed, _) => unconfirmed("the gateway closed this refund: nothing went back"),
        (RefundState::Abnormal, _) => unconfirmed("the gateway could not deliver this refund"),
    }
}

/// Carries out the requests in the transaction that has settled the gateway's answer. `None`: they had no effect.
pub async fn carry_out(
    tx: &mut PgConnection,
    order: &Order,
    wanted: &Wanted,
    said: Option<&Fact>,
    clock: &Clock,
) -> Result<Option<Verdict>, DbError> {
    let mut verdicts = Vec::new();
    for requested in &wanted.book {
        verdicts.push(settle::book_requested(tx, order.id, requested, clock).await?);
    }
    for case in &wanted.fulfil {
        verdicts.push(settle::fulfil(tx, order.id, *case, said, clock).await?);
    }
    let settled = verdicts.contains(&Verdict::Settled).then_some(Verdict::Settled);
    Ok(settled.or(verdicts.into_iter().find(|verdict| *verdict != Verdict::Ignored)))
}
