//! The order that the path of a refund names, by our id or by another of its numbers.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use domain::{OrderId, OrderRef};
use store::tables::outline;
use tracing::Span;
use tracing::field::display;

use crate::access::caller::Caller;
use crate::access::tokens::Viewer;
use crate::answer::problem::ApiError;
use crate::state::App;

/// The name of an order in a path. A text that names none is an unknown order.
pub struct NamedOrder(pub OrderRef);

impl FromRequestParts<Arc<App>> for NamedOrder {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<NamedOrder, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(text) = path.map_err(|_| ApiError::OrderNotFound)?;
        OrderRef::parse(&text).map(NamedOrder).map_err(|_| ApiError::OrderNotFound)
    }
}

/// Finds the order among those that the caller may see, so that no answer says that another user's order exists.
///
/// # Errors
/// [`ApiError::OrderNotFound`], or [`ApiError::AmbiguousNumber`] if two orders have the number.
pub(super) async fn find(app: &App, caller: &Caller, name: &OrderRef) -> Result<OrderId, ApiError> {
    let id = match name {
        OrderRef::Id(id) => *id,
        OrderRef::OrderNo(_) | OrderRef::MerchantOrderNo(_) | OrderRef::TradeNo(_) | OrderRef::RefundNo(_) => {
            let mut found = outline::named(&app.db, name).await?;
            let viewer = Viewer::of(caller);
            found.retain(|order| viewer.may_see(order.id, &order.user_id));
            match found.as_slice() {
                [] => return Err(ApiError::OrderNotFound),
                [order] => order.id,
                _ => return Err(ApiError::AmbiguousNumber),
            }
        }
    };
    Span::current().record("order_id", display(id));
    Ok(id)
}
