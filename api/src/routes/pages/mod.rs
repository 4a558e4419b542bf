//! `GET /pay/success` and `GET /pay/cancel`: the pages that a buyer's browser returns to.
//!
//! The pages show what our own record says. The query string only names the order, and only with a proof: a return that
//! Alipay signed for the order's account, or a view token. Both end a day after the order expires. A visit without a
//! proof gets a page without an order, whatever else the query contains. A visit with a proof also brings forward the
//! check of a pending order, and the page waits for the result.

mod render;
mod words;

use runtime::error_chain::chain;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use domain::{OrderId, OrderNo};
use gateway::alipay;
use store::tables::orders::{self, Order};
use time::Duration;
use tracing::field::display;
use tracing::{Span, debug};
use words::Language;

use crate::access::in_hand::to_the_end;
use crate::access::view_token::AFTER_EXPIRY;
use crate::answer::problem::ApiError;
use crate::state::App;

/// How long the token in a page is valid: as long as a stream lives. A page that stays open longer reloads itself.
const TOKEN: Duration = Duration::minutes(30);

/// The page that was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Success,
    Cancel,
}

/// What the browser may see.
enum Shown {
    /// There is no valid proof, or no order that may be shown.
    Nothing,
    /// Our record cannot be read.
    Busy,
    /// The order, and a token with which the page watches it.
    Order { order: Box<Order>, view_token: String },
}

/// The routes of both pages.
pub fn router() -> Router<Arc<App>> {
    Router::new().route("/pay/success", get(success)).route("/pay/cancel", get(cancel))
}

async fn success(State(app): State<Arc<App>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    answer(app, Page::Success, query, &headers).await
}

async fn cancel(State(app): State<Arc<App>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    answer(app, Page::Cancel, query, &headers).await
}

async fn answer(app: Arc<App>, page: Page, query: Option<String>, headers: &HeaderMap) -> Response {
    let looked = to_the_end(async move { look(&app, &query.unwrap_or_default()).await }).await;
    let shown = looked.unwrap_or_else(|error| {
        // The log gets the error, as for every route. The browser gets a page.
        tracing::warn!(error = chain(&error), "A return page cannot read the order");
        Shown::Busy
    });
    render::page(page, &shown, Language::preferred(headers))
}

async fn look(app: &App, query: &str) -> Result<Shown, ApiError> {
    let found = match only(query, "sign") {
        None => by_token(app, query).await?,
        Some(_) => by_return(app, query).await?,
    };
    let now = app.clock.now();
    let Some(order) = found.filter(|order| now < order.expires_at + AFTER_EXPIRY) else { return Ok(Shown::Nothing) };
    Span::current().record("order_id", display(order.id));
    app.cache.orders.saw(&order);
    // The strongest hint: the gateway is queried now, in case its notice is late or lost.
    app.hints.came_back(&app.db, (order.id, order.status));
    // The token ends with the proof that it stands for, and usually sooner.
    let view_token = app.tokens.view.mint(order.id, order.expires_at.min(now + TOKEN - AFTER_EXPIRY))?;
    Ok(Shown::Order { order: Box::new(order), view_token })
}

/// Finds the order by `order` and `view_token`. The token must be for that order.
async fn by_token(app: &App, query: &str) -> Result<Option<Order>, ApiError> {
    let named = only(query, "order").and_then(|id| OrderId::parse(&id).ok());
    let held = only(query, "view_token").and_then(|token| app.tokens.view.open(&token).ok());
    match named.filter(|named| held == Some(*named)) {
        Some(id) => Ok(orders::get(&app.db, id).await?),
        None => Ok(None),
    }
}

/// Finds the order by a signed return. The claimed number finds the order, and the key of that order's own account
/// decides whether the claim is valid: one account cannot vouch for the orders of another.
async fn by_return(app: &App, query: &str) -> Result<Option<Order>, ApiError> {
    let Some(claimed) = only(query, alipay::RETURN_ORDER_NO).and_then(|text| OrderNo::parse(text).ok()) else {
        return Ok(None);
    };
    let Some(order) = orders::by_order_no(&app.db, &claimed).await? else { return Ok(None) };
    let Some(gateway) = app.accounts.get(order.payment_method, &order.account) else { return Ok(None) };
    match gateway.verify_return(query) {
        Ok(signed) if signed.get() == order.order_no.as_str() => Ok(Some(order)),
        Ok(_) => Ok(None),
        Err(error) => {
            debug!(error = chain(&error), "A return to a page has no valid proof");
            Ok(None)
        }
    }
}

/// The value of a parameter that appears exactly once. Two values would be ambiguous.
fn only(query: &str, name: &str) -> Option<String> {
    let mut values = url::form_urlencoded::parse(query.as_bytes()).filter(|(known, _)| known == name);
    let value = values.next()?.1.into_owned();
    values.next().is_none().then_some(value)
}
