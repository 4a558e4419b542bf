//! `GET /pay/success` and `GET /pay/cancel`: where a buyer's browser comes back to.
//!
//! The pages show what our own record says. The query string only names the order, and only with a proof: a return that
//! Alipay signed for the order's account, or a view token. Both end a day after the order's expiry. Whoever brings no
//! proof sees a page without an order, whatever else the visit brings. A visit with a proof also has the gateway asked about a
//! pending order, and the page waits for the answer.

mod render;
mod words;

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

use crate::problem::ApiError;
use crate::state::{App, to_the_end};
use crate::view_token::AFTER_EXPIRY;

/// How long the token in a page is good; as long as a stream. A page that outlives it loads itself again.
const TOKEN: Duration = Duration::minutes(30);

/// Which page was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Success,
    Cancel,
}

/// What the browser may see.
enum Shown {
    /// No proof, or of an order that is not there.
    Nothing,
    /// Our record cannot be read.
    Busy,
    /// The order, and a token with which the page waits for news of it.
    Order { order: Box<Order>, view_token: String },
}

/// Both pages.
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
        // Told to the log like every other error, and to the browser as a page.
        tracing::warn!(error = %error, "A return page cannot read the order");
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
    Span::current().record("orderId", display(order.id));
    app.cache.orders.saw(&order);
    // The best hint that there is: the gateway is asked now, should its notice be late or lost.
    app.hints.came_back(&app.db, (order.id, order.status));
    // Ends with the proof that it stands for, and mostly sooner.
    let view_token = app.view_tokens.mint(order.id, order.expires_at.min(now + TOKEN - AFTER_EXPIRY))?;
    Ok(Shown::Order { order: Box::new(order), view_token })
}

/// By `order` and `view_token`, which must be of one another.
async fn by_token(app: &App, query: &str) -> Result<Option<Order>, ApiError> {
    let named = only(query, "order").and_then(|id| OrderId::parse(&id).ok());
    let held = only(query, "view_token").and_then(|token| app.view_tokens.open(&token).ok());
    match named.filter(|named| held == Some(*named)) {
        Some(id) => Ok(orders::get(&app.db, id).await?),
        None => Ok(None),
    }
}

/// By a return. Its claim finds the order, and the key of that order's own account decides whether the claim counts:
/// one account cannot vouch for the orders of another.
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
            debug!(%error, "A return that proves nothing");
            Ok(None)
        }
    }
}

/// The value of a parameter that comes exactly once: two values must not be a choice.
fn only(query: &str, name: &str) -> Option<String> {
    let mut values = url::form_urlencoded::parse(query.as_bytes()).filter(|(known, _)| known == name);
    let value = values.next()?.1.into_owned();
    values.next().is_none().then_some(value)
}
