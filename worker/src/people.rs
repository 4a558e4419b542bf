//! The requests of people, or of a policy, to a check. The check carries them out with a fresh answer of the gateway.

use domain::message::job::{Asked, CheckRequest};
use domain::{CaseId, Fact, Money, RefundNo, Verdict};
use gateway::{Gateway, GatewayError, RefundOrder, RefundState};
use runtime::clock::Clock;
use sqlx::{PgConnection, PgPool};
use store::DbError;
use store::connect::in_time;
use store::settle::{self, Confirmed};
use store::tables::orders::Order;
use store::tables::{cases, transactions};
use time::OffsetDateTime;

use crate::jobs::JobError;

/// The requests, with the gateway's answer about each refund to book.
pub struct Wanted {
    fulfil: Vec<CaseId>,
    book: Vec<(CaseId, RefundNo, Result<Confirmed, String>)>,
}

/// Queries the gateway about the refunds to book. Runs outside any transaction. If the gateway does not answer, all
/// requests stay in the job.
pub async fn ask(
    gateway: &dyn Gateway,
    order: &Order,
    (request, now): (&CheckRequest, OffsetDateTime),
    db: &PgPool,
) -> Result<Result<Wanted, GatewayError>, JobError> {
    let mut wanted = Wanted { fulfil: Vec::new(), book: Vec::new() };
    for (case, asked) in &request.of_cases {
        match asked {
            Asked::Fulfil => wanted.fulfil.push(*case),
            Asked::BookRefund { refund_no, amount } => {
                let Some(request) = refund_query(db, order, *case, (refund_no, *amount)).await? else {
                    wanted.book.push((
                        *case,
                        refund_no.clone(),
                        Err("the case names no payment of this order".to_owned()),
                    ));
                    continue;
                };
                match confirm(gateway, &request, now).await {
                    Ok(confirmed) => wanted.book.push((*case, refund_no.clone(), confirmed)),
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
    }
    Ok(Ok(wanted))
}

/// The query about a refund that we never sent. `None`: the case names no payment of this order.
async fn refund_query(
    db: &PgPool,
    order: &Order,
    case: CaseId,
    (refund_no, amount): (&RefundNo, Money),
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

/// Queries one refund. The inner `Err` says why the gateway does not confirm it.
async fn confirm(
    gateway: &dyn Gateway,
    request: &RefundOrder,
    now: OffsetDateTime,
) -> Result<Result<Confirmed, String>, GatewayError> {
    Ok(match gateway.query_refund(request, now).await {
        Ok(RefundState::Succeeded { amount: Some(stated), .. }) if stated != request.amount => {
            Err(format!("the gateway states another amount: {stated} yuan"))
        }
        Ok(RefundState::Succeeded { gateway_refund_no, at, .. }) => {
            Ok(Confirmed { amount: request.amount, gateway_refund_no, at })
        }
        Ok(RefundState::Absent) => Err("the gateway knows no refund of this number".to_owned()),
        Ok(RefundState::Processing { .. }) => Err("the gateway has not finished this refund".to_owned()),
        Ok(RefundState::Closed { .. }) => Err("the gateway closed this refund: nothing went back".to_owned()),
        Ok(RefundState::Abnormal { .. }) => Err("the gateway could not deliver this refund".to_owned()),
        // The numbers or the amount are not those of a refund of this payment.
        Err(GatewayError::Protocol(what)) => Err(format!("the gateway states something else: {what}")),
        Err(GatewayError::Refused { code, .. } | GatewayError::NotNow { code, .. }) => {
            Err(format!("the gateway refused the query: {code}"))
        }
        // The gateway gave no answer about the refund: the query is repeated later.
        Err(error @ (GatewayError::Unavailable(_) | GatewayError::Unknown(_) | GatewayError::Misconfigured { .. })) => {
            return Err(error);
        }
    })
}

/// Carries out the requests in the transaction that has settled the gateway's answer. `None`: they had no effect.
pub async fn carry_out(
    tx: &mut PgConnection,
    order: &Order,
    (wanted, said): (&Wanted, Option<&Fact>),
    clock: &Clock,
) -> Result<Option<Verdict>, DbError> {
    let mut verdicts = Vec::new();
    for (case, refund_no, confirmed) in &wanted.book {
        verdicts.push(settle::book_asked(tx, (order.id, *case), (refund_no, confirmed), clock).await?);
    }
    for case in &wanted.fulfil {
        verdicts.push(settle::fulfil(tx, (order.id, *case), said, clock).await?);
    }
    let settled = verdicts.contains(&Verdict::Settled).then_some(Verdict::Settled);
    Ok(settled.or(verdicts.into_iter().find(|verdict| *verdict != Verdict::Ignored)))
}
