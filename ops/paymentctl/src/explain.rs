//! `paymentctl explain`: one order as a timeline from every source, and what is expected next. The story itself is
//! `store::story`, which leaves out everything that can identify the payer: the database role of paymentctl cannot read
//! it either.

use domain::OrderId;
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::DbError;
use store::connect::SNAPSHOT;
use store::story::Story;
use store::tables::outline::{self, Outline};
use store::tables::search::{self, Hit, HitKind, MOST, Matched, Number, SHORTEST_START};

use crate::answer::{Answer, Problem, instant, lines as shown, moment, table};
use crate::place::Place;

/// Shows the timeline of the order that a number belongs to: any number that a receipt, a case or an event shows.
///
/// # Errors
/// [`Problem`] when no order has the number, or several have it.
pub async fn run(place: &Place, number: &str) -> Result<Answer, Problem> {
    let mut tx = place.db.begin_with(SNAPSHOT).await.map_err(DbError::from)?;
    let order = order_of(&mut tx, number).await?;
    let story = Story::read(&mut tx, order).await?;
    let (moments, next) = (story.moments(), story.next(place.clock.now()));
    let order = &story.order;
    let rows: Vec<Vec<String>> =
        moments.iter().map(|line| vec![instant(line.at), line.source.to_owned(), line.what.clone()]).collect();
    let first = format!(
        "order {}, number {}: {} yuan at {} ({}, account {}), {}",
        order.id, order.order_no, order.amount, order.payment_method, order.scene, order.account, order.status,
    );
    let expected: Vec<String> = next.iter().map(|line| format!("  {line}")).collect();
    let timeline_shown = table(&["TIME", "SOURCE", "WHAT"], &rows);
    let text = format!("{}\n\n{timeline_shown}\n\nnext\n{}", shown(&[first]), shown(&expected));
    let lines: Vec<Value> = moments
        .iter()
        .map(|line| json!({ "at": instant(line.at), "source": line.source, "what": line.what }))
        .collect();
    Ok(Answer::done(text, json!({ "order": view(order), "timeline": lines, "next": next })))
}

fn view(order: &Outline) -> Value {
    json!({
        "id": order.id.to_string(),
        "order_no": order.order_no.as_str(),
        "merchant_order_no": order.merchant_order_no.as_ref().map(|number| number.as_str()),
        "vouched_by": order.vouched_by.map(|by| by.as_str()),
        "voucher": order.voucher,
        "offer_id": order.offer_id.as_ref().map(|id| id.as_str()),
        "user_id": order.user_id.as_str(),
        "product_type": order.product_type.as_str(),
        "subject": order.subject.as_str(),
        "amount": order.amount.to_string(),
        "refunded_amount": order.refunded_amount.to_string(),
        "payment_method": order.payment_method.as_str(),
        "scene": order.scene.as_str(),
        "account": order.account.as_str(),
        "status": order.status.as_str(),
        "trade_no": order.trade_no.as_ref().map(|no| no.as_str()),
        "extra_state": order.extra_state.map(|state| state.as_str()),
        "extra_amount": order.extra_amount.map(|amount| amount.to_string()),
        "expires_at": moment(order.expires_at),
        "paid_at": order.paid_at.map(moment),
        "closed_at": order.closed_at.map(moment),
        "close_requested_at": order.close_requested_at.map(moment),
        "checked_at": order.checked_at.map(moment),
        "gateway_state": order.gateway_state,
        "version": order.version,
        "created_at": moment(order.created_at),
        "updated_at": moment(order.updated_at),
    })
}

/// The one order that has this number, or a row about which has it.
async fn order_of(db: &mut PgConnection, text: &str) -> Result<Outline, Problem> {
    let whole = format!("give a whole number, or at least its first {SHORTEST_START} characters");
    let unknown = || Problem::failed(format!("there is no order {text}"), whole.as_str());
    let number = Number::parse(text).map_err(|_| unknown())?;
    let found = search::search(&mut *db, &number).await?;
    let hits = fitting(&number, found.hits);
    let mut orders: Vec<OrderId> = hits.iter().filter_map(|hit| hit.order_id).collect();
    orders.sort_unstable();
    orders.dedup();
    match (&orders[..], hits.first()) {
        ([order], _) => outline::of(&mut *db, &order.to_string()).await?.ok_or_else(unknown),
        ([], None) => Err(unknown()),
        ([], Some(hit)) => Err(without_order(hit)),
        (several, _) => {
            let more = if found.more { format!(", and more than these {MOST}") } else { String::new() };
            let named: Vec<String> = hits.iter().filter_map(named).collect();
            let said = format!("{} orders have such a number{more}:\n{}", several.len(), named.join("\n"));
            Err(Problem::failed(said, "give the id of one of them"))
        }
    }
}

/// What has the number itself comes before what only begins with it or only mentions it.
fn fitting(number: &Number, mut hits: Vec<Hit>) -> Vec<Hit> {
    let is_whole = |hit: &Hit| hit.number == number.as_str();
    if hits.iter().any(is_whole) {
        hits.retain(is_whole);
    }
    let is_own = |hit: &Hit| hit.matched != Matched::SubjectRef && hit.order_id.is_some();
    if hits.iter().any(is_own) {
        hits.retain(is_own);
    }
    hits
}

/// A hit, as one line.
fn named(hit: &Hit) -> Option<String> {
    let order = hit.order_id?;
    let status = hit.status.as_deref().unwrap_or_default();
    let what = format!("{} {}, {status} of {}", hit.matched, hit.number, moment(hit.created_at));
    Some(format!("  order {order}  {what}"))
}

fn without_order(hit: &Hit) -> Problem {
    let Hit { kind, id, .. } = hit;
    let hint = match kind {
        HitKind::User => format!("their orders: GET /v1/admin/orders?user_id={id}"),
        HitKind::Case => format!("`paymentctl cases show {id}`"),
        _ => format!("`paymentctl events show {id}`"),
    };
    Problem::failed(format!("{kind} {id} is about no single order"), hint)
}
