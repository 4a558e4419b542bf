//! Who vouches for the terms of a new order: the merchant's backend, an offer that it signed, the catalogue, or only
//! the buyer where `BUYER_PRICES` allows that.

use domain::{Money, PaymentMethod, ProductType, Purchase, Subject, UserId, VouchedBy};
use serde_json::{Value, json};
use store::tables::catalogue;
use time::OffsetDateTime;

use crate::access::caller::Identity;
use crate::access::offers::Offer;
use crate::answer::problem::ApiError;
use crate::create::fields::{Fields, text};
use crate::state::App;

/// Where the terms of an order stand.
pub enum Vouched {
    /// In the body of the request. The merchant's own number stands there too, if a backend sends it.
    Body(Purchase),
    /// Elsewhere.
    Fixed(Box<Fixed>),
}

/// Terms that the request does not name.
pub struct Fixed {
    /// Who fixed them, and what names the purchase.
    pub purchase: Purchase,
    pub product_type: ProductType,
    pub subject: Subject,
    pub amount: Money,
    pub metadata: Value,
    /// The gateways at which it can be paid; `None`: at each.
    pub methods: Option<Vec<PaymentMethod>>,
    /// The end of the offer; `None`: the catalogue has none.
    pub until: Option<OffsetDateTime>,
}

/// Finds the terms of a new order.
///
/// # Errors
/// [`ApiError::PriceNotVouched`], and the errors of an offer. A product that is not in the catalogue is a fault of the
/// fields.
pub async fn vouched(app: &App, identity: &Identity, fields: &mut Fields) -> Result<Vouched, ApiError> {
    match identity {
        Identity::Buyer(buyer) => of_buyer(app, buyer, fields).await,
        Identity::Key(_) | Identity::Service(_) | Identity::Staff(_) => {
            let voucher = Some(identity.to_string());
            Ok(Vouched::Body(Purchase { vouched_by: VouchedBy::Backend, voucher, ..Purchase::OF_BUYER }))
        }
    }
}

async fn of_buyer(app: &App, buyer: &UserId, fields: &mut Fields) -> Result<Vouched, ApiError> {
    let prices = &app.settings.buyer_prices;
    if prices.offer && fields.has("offer") {
        let offer = fields.required("offer", text(Ok::<String, String>));
        let offer = offer.ok_or_else(|| ApiError::field("offer", "must be text"))?;
        app.tokens.bearer.learn(&offer).await;
        let offer = Offer::verify(&offer, buyer, &app.tokens.bearer, &app.tokens.keys)?;
        return Ok(Vouched::Fixed(Box::new(offer.into())));
    }
    let names_terms = ["amount", "subject", "metadata"].iter().any(|name| fields.has(name));
    if prices.catalogue
        && !names_terms
        && let Some(fixed) = listed(app, fields).await?
    {
        return Ok(Vouched::Fixed(Box::new(fixed)));
    }
    if prices.takes_any(app.accounts.are_simulated()) {
        metrics::counter!("buyer_prices_any_total").increment(1);
        return Ok(Vouched::Body(Purchase::OF_BUYER));
    }
    if prices.catalogue && !names_terms && !fields.has("offer") {
        let wrong = if fields.has("product_type") { "is not sold: it is not in the catalogue" } else { "is required" };
        return Err(ApiError::field("product_type", wrong));
    }
    Err(ApiError::PriceNotVouched)
}

/// The terms of a product that is sold.
async fn listed(app: &App, fields: &Fields) -> Result<Option<Fixed>, ApiError> {
    let name = fields.peek("product_type").and_then(Value::as_str).map(ProductType::parse);
    let Some(Ok(name)) = name else { return Ok(None) };
    let product = catalogue::get(&app.db, &name).await?.filter(|product| product.active);
    Ok(product.map(|product| Fixed {
        purchase: Purchase { vouched_by: VouchedBy::Catalogue, ..Purchase::OF_BUYER },
        product_type: product.product_type,
        subject: product.subject,
        amount: product.amount,
        metadata: json!({}),
        methods: None,
        until: None,
    }))
}

impl From<Offer> for Fixed {
    fn from(offer: Offer) -> Fixed {
        let Offer { purchase, product_type, subject, amount, metadata, methods, until } = offer;
        Fixed { purchase, product_type, subject, amount, metadata, methods, until: Some(until) }
    }
}
