//! The catalogue: products with a fixed price, for buyers who order without a backend that names the price. A change is in
//! force for the next order, and is recorded with the person who made it.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use domain::{Money, ProductType, Subject};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::DbError;
use store::tables::audit::{self, Act};
use store::tables::catalogue::{self, Product};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::actions::note;
use crate::access::in_hand::to_the_end;
use crate::access::tokens::Person;
use crate::answer::problem::{ApiError, Problem};
use crate::create::fields::{Fields, JsonBytes, money, text};
use crate::routes::listing::{Faults, Known, page};
use crate::state::App;

/// A product with a fixed price.
#[derive(Serialize, ToSchema)]
pub struct ProductView {
    /// Its name, by which an order names it.
    #[schema(value_type = String, example = "membership")]
    product_type: ProductType,
    /// What the buyer reads.
    #[schema(value_type = String, example = "Premium, one month")]
    subject: Subject,
    /// The price, in yuan.
    #[schema(value_type = String, example = "12.34")]
    amount: Money,
    /// Whether it is sold.
    active: bool,
    /// Increases with each change. A change names the version that was seen.
    version: i64,
    /// Who made the last change.
    updated_by: String,
    /// By our clock.
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl From<Product> for ProductView {
    fn from(product: Product) -> ProductView {
        let Product { product_type, subject, amount, active, version, updated_by, updated_at } = product;
        ProductView { product_type, subject, amount, active, version, updated_by, updated_at }
    }
}

/// Products, by name.
#[derive(Serialize, ToSchema)]
pub struct ProductPage {
    products: Vec<ProductView>,
    /// The cursor of the next page; null on the last page.
    next_cursor: Option<String>,
}

/// Selects a part of the list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ProductFilter {
    /// 1 to 100, 20 when absent.
    #[param(value_type = Option<u8>)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    cursor: Option<String>,
}

/// List the catalogue, by name, with the products that are not sold any more.
#[utoipa::path(
    get, path = "/v1/admin/catalogue", tag = "admin", params(ProductFilter), security(("backend" = ["payments:read"])),
    responses(
        (status = 200, description = "A page of products", body = ProductPage),
        (status = 400, description = "`invalid_fields`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Known(filter): Known<ProductFilter>,
) -> Result<Json<ProductPage>, ApiError> {
    let mut faults = Faults::default();
    let limit = faults.limit(filter.limit.as_deref()) + 1;
    let after = faults.cursor(filter.cursor.as_deref(), |name| ProductType::parse(name).ok());
    faults.finish()?;
    let found = to_the_end(async move { Ok(catalogue::list(&app.db, after.as_ref(), limit).await?) }).await?;
    let (shown, next_cursor) = page(found, limit, |product| product.product_type.to_string());
    Ok(Json(ProductPage { products: shown.into_iter().map(ProductView::from).collect(), next_cursor }))
}

/// A product as it is to be.
#[derive(Serialize, ToSchema)]
pub struct PutProduct {
    /// The `version` that was seen; 0 for a new product.
    pub version: i64,
    /// What the buyer reads: 1 to 256 characters.
    #[schema(example = "Premium, one month")]
    pub subject: String,
    /// The price, in yuan, greater than zero.
    #[schema(example = "12.34")]
    pub amount: String,
    /// Whether it is sold; true when absent.
    pub active: Option<bool>,
    /// The reason, at most 2000 characters.
    pub note: Option<String>,
}

/// The parsed body of a change.
struct ProductRequest {
    version: i64,
    subject: Subject,
    amount: Money,
    active: bool,
    note: Option<String>,
}

impl ProductRequest {
    fn parse(body: &Bytes) -> Result<ProductRequest, ApiError> {
        let mut fields = Fields::parse(body)?;
        let rule = || "must be the version that you have seen, or 0 for a new product".to_owned();
        let version = fields
            .required("version", |value| value.as_i64().filter(|seen| (0..i64::MAX).contains(seen)).ok_or_else(rule));
        let subject = fields.required("subject", text(Subject::title));
        let amount = fields.required("amount", money);
        let active = fields.optional("active", |value| value.as_bool().ok_or_else(|| "must be true or false".into()));
        let note = fields.optional("note", text(note));
        fields.finish()?;
        let request = || {
            let (version, subject, amount) = (version?, subject?, amount?);
            Some(ProductRequest { version, subject, amount, active: active.unwrap_or(true), note })
        };
        // A missing field was recorded as a fault, so `finish` has already returned an error.
        request().ok_or_else(|| ApiError::InvalidFields(Vec::new()))
    }
}

/// Add a product to the catalogue, or change it. The price is in force for the next order.
///
/// Existing orders keep their price: they can still be paid, and a repeated creation gets its saved answer.
#[utoipa::path(
    put, path = "/v1/admin/catalogue/{product_type}", tag = "admin", request_body = PutProduct,
    security(("staff" = ["payments:config"])),
    params(("product_type" = String, Path, description = "1 to 32 characters of `[0-9A-Za-z_.-]`")),
    responses(
        (status = 200, description = "The product after the change", body = ProductView),
        (status = 400, description = "`invalid_fields`, `malformed_json`", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`; `person_required`: a key or a service sends it", body = Problem),
        (status = 409, description = "`config_changed`: another change was faster", body = Problem),
    )
)]
pub async fn put(
    State(app): State<Arc<App>>,
    Person(who): Person,
    Path(name): Path<String>,
    JsonBytes(body): JsonBytes,
) -> Result<Json<ProductView>, ApiError> {
    let name = ProductType::parse(name);
    let product_type = name.map_err(|rule| ApiError::field("product_type", format!("must be {rule}")))?;
    let request = ProductRequest::parse(&body)?;
    to_the_end(async move { write(&app, product_type, request, who.to_string()).await }).await
}

async fn write(
    app: &App,
    product_type: ProductType,
    request: ProductRequest,
    who: String,
) -> Result<Json<ProductView>, ApiError> {
    let ProductRequest { version, subject, amount, active, note } = request;
    let (version, updated_at) = (version + 1, app.clock.now());
    let mut tx = app.db.begin().await.map_err(DbError::from)?;
    let before = catalogue::get(&mut *tx, &product_type).await?.map(|product| json!(ProductView::from(product)));
    let product = Product { product_type, subject, amount, active, version, updated_by: who, updated_at };
    match catalogue::put(&mut tx, &product).await {
        Err(DbError::Moved) => return Err(ApiError::ConfigChanged),
        done => done?,
    }
    let (who, object) = (product.updated_by.clone(), format!("catalogue:{}", product.product_type));
    let view = ProductView::from(product);
    let detail = json!({ "before": before, "after": view, "note": note });
    let act = Act { subject: &who, act: "catalogue.changed", object, detail: &detail };
    audit::record(&mut tx, &act).await?;
    tx.commit().await.map_err(DbError::from)?;
    tracing::info!(
        user_id = who, product_type = %view.product_type, amount = %view.amount, active = view.active,
        "The catalogue was changed: {} costs {} yuan", view.product_type, view.amount
    );
    Ok(Json(view))
}
