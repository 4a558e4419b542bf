//! The body of a new order, parsed once into types that hold only valid values.

use std::net::IpAddr;
use std::sync::Arc;

use domain::{
    AccountName, MerchantOrderNo, Money, PaymentMethod, ProductType, Purchase, Scene, Subject, UserId, VouchedBy,
};
use gateway::{Gateway, NoAccount};
use serde::Serialize;
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;
use tracing::warn;
use url::{Origin, Url};
use utoipa::ToSchema;

use crate::access::addresses::Place;
use store::tables::unplaced::NO_USER;

use crate::access::caller::Identity;
use crate::answer::problem::ApiError;
use crate::answer::rarely::Few;
use crate::create::accounts::Accounts;
use crate::create::fields::{Fields, money, one_of, text};
use crate::routes::orders::vouch::{Fixed, Vouched};

/// Seconds from the creation of an order to the last moment to pay it.
const EXPIRES_IN: std::ops::RangeInclusive<i64> = 300..=604_800;
/// The default when the client sends no `expires_in`: half an hour.
const EXPIRES_IN_DEFAULT: i64 = 1800;
/// The largest `metadata`, in bytes of compact JSON.
const METADATA: usize = 4 * 1024;
const RETURN_URL: usize = 2048;

/// Limits the warning that the addresses of buyers are not known.
static UNKNOWN_BUYERS: Few = Few::new(1);

/// A new order.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CreateOrder {
    /// From a buyer: what the merchant's backend signed for this purchase, a JWS of the type `offer+jwt`. It names the
    /// product, the price and what else the order is about, so the request does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offer: Option<String>,
    /// The kind of product: 1 to 32 characters of `[0-9A-Za-z_.-]`. The fulfilment event contains it. A product of the
    /// catalogue has its title and price there, so the request of a buyer names neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "membership")]
    pub product_type: Option<String>,
    /// The title that the buyer reads: 1 to 256 characters, at least one of them visible, without control characters;
    /// at Alipay also without `/`, `=` and `&`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Premium, one month")]
    pub subject: Option<String>,
    /// In yuan, greater than zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "12.34")]
    pub amount: Option<String>,
    /// `alipay` or `wechat`.
    #[schema(example = "alipay")]
    pub payment_method: String,
    /// `page` `wap` `app` `qr` at Alipay, `native` `jsapi` `mini` `h5` `app` at WeChat Pay.
    #[schema(example = "page")]
    pub scene: String,
    /// The payer's id under the app: required for `jsapi` and `mini`, not accepted for other scenes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openid: Option<String>,
    /// Seconds until the order expires, 300 to 604800; 1800 when absent. The order of an offer that ends before then expires
    /// with the offer, but not within 1800 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<i64>,
    /// The merchant account; when absent, the first that offers the scene.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The URL that the buyer's browser returns to; its origin must be on the service's list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_url: Option<String>,
    /// The merchant's own number of the purchase: only from the merchant's backend. 1 to 64 printable ASCII characters. A
    /// purchase has at most one order that is not closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "A1002", min_length = 1, max_length = 64)]
    pub merchant_order_no: Option<String>,
    /// The user who owns the order: only from the merchant's backend, which must state it. 1 to 64 printable ASCII
    /// characters, as the `sub` of the user's tokens; more than 32 only with `LONG_USER_IDS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "7f1c2f0e-5a2b-4c1d-9e3f-0a1b2c3d4e5f", min_length = 1, max_length = 64)]
    pub user_id: Option<String>,
    /// The buyer's own IP address: only from the merchant's backend, which must state it for the scene `h5`. It is an
    /// address that a buyer on the internet has, so neither loopback nor a private one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<String>,
    /// The client's own JSON object, at most 4 KiB; events contain it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
}

/// A new order with valid fields only.
pub struct OrderRequest {
    /// The buyer who sends the request, or whom the backend names.
    pub user_id: UserId,
    /// The buyer's address, if it is known.
    pub client_ip: Option<IpAddr>,
    pub product_type: ProductType,
    pub subject: Subject,
    pub amount: Money,
    pub payment_method: PaymentMethod,
    pub scene: Scene,
    pub openid: Option<String>,
    pub expires_in: Duration,
    /// Until when the offer is valid, if an offer fixes the terms.
    pub offered_until: Option<OffsetDateTime>,
    /// The account that receives the money.
    pub gateway: Arc<dyn Gateway>,
    pub return_url: Option<String>,
    pub metadata: Value,
    /// Who vouches for the terms, and what names the purchase.
    pub purchase: Purchase,
}

/// What is sold, and for how much.
struct Terms {
    product_type: Option<ProductType>,
    subject: Option<Subject>,
    amount: Option<Money>,
    metadata: Option<Value>,
    purchase: Purchase,
}

/// Who sends the request of an order, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Sender<'a> {
    pub identity: &'a Identity,
    pub address: IpAddr,
    /// Whether a backend may name a user by more than [`UserId::SHORT`] characters.
    pub long_user_ids: bool,
}

impl OrderRequest {
    /// # Errors
    /// [`ApiError::InvalidFields`] with every fault, or what is wrong with the body as a whole.
    pub fn parse(
        mut fields: Fields,
        vouched: Vouched,
        sender: Sender<'_>,
        origins: &[Origin],
        accounts: &dyn Accounts,
    ) -> Result<OrderRequest, ApiError> {
        let user_id = owner(&mut fields, sender);
        let (payable_at, offered_until) = match &vouched {
            Vouched::Fixed(fixed) => (fixed.methods.clone(), fixed.until),
            Vouched::Body(_) => (None, None),
        };
        let Terms { product_type, subject, amount, metadata, purchase } = match vouched {
            Vouched::Fixed(fixed) => Terms::fixed(&mut fields, *fixed),
            Vouched::Body(purchase) => Terms::stated(&mut fields, purchase),
        };
        let payment_method = fields.required("payment_method", text(|name| method(name, payable_at.as_deref())));
        if let Some(unfit) = subject.as_ref().zip(payment_method).and_then(|(subject, at)| subject.unfit_at(at)) {
            fields.fault("subject", unfit);
        }
        let scene = scene(&mut fields, payment_method);
        let openid = openid(&mut fields, scene);
        let expires_in = fields.optional("expires_in", expires_in);
        let gateway = gateway(&mut fields, accounts, payment_method, scene);
        let is_real = gateway.as_ref().is_some_and(|to| accounts.is_production(to.method(), to.account()));
        let client_ip = client_ip(&mut fields, sender, scene, is_real);
        let return_url = fields.optional("return_url", text(|url| return_url(&url, origins)));
        fields.finish()?;
        let request = || {
            Some(OrderRequest {
                user_id: user_id?,
                client_ip,
                product_type: product_type?,
                subject: subject?,
                amount: amount?,
                payment_method: payment_method?,
                scene: scene?,
                openid,
                expires_in: Duration::seconds(expires_in.unwrap_or(EXPIRES_IN_DEFAULT)),
                offered_until,
                gateway: gateway?,
                return_url,
                metadata: metadata.unwrap_or_else(|| json!({})),
                purchase,
            })
        };
        // A missing field was recorded as a fault, so `finish` has already returned an error.
        request().ok_or_else(|| ApiError::InvalidFields(Vec::new()))
    }

    /// The last moment to pay an order that is placed now. An offer's price must not hold for days because a buyer asks
    /// for that: it holds as long as the offer, or for half an hour.
    pub fn expires_at(&self, now: OffsetDateTime) -> OffsetDateTime {
        let asked = now + self.expires_in;
        let shortest = now + Duration::seconds(EXPIRES_IN_DEFAULT);
        self.offered_until.map_or(asked, |until| asked.min(until.max(shortest)))
    }
}

impl Terms {
    /// The terms in the body of the request.
    fn stated(fields: &mut Fields, purchase: Purchase) -> Terms {
        let number = match purchase.vouched_by {
            VouchedBy::Backend => fields.optional("merchant_order_no", text(MerchantOrderNo::parse)),
            _ => fields.optional("merchant_order_no", only_from_a_backend),
        };
        let _: Option<String> =
            fields.optional("offer", |_| Err("is for buyers, where BUYER_PRICES has `offer`".into()));
        Terms {
            product_type: fields.required("product_type", text(ProductType::parse)),
            subject: fields.required("subject", text(Subject::title)),
            amount: fields.required("amount", money),
            metadata: fields.optional("metadata", metadata),
            purchase: Purchase { merchant_order_no: number, ..purchase },
        }
    }

    /// Terms that the request does not name. It would be ambiguous if it did.
    fn fixed(fields: &mut Fields, fixed: Fixed) -> Terms {
        let by_offer = fixed.purchase.vouched_by == VouchedBy::Offer;
        let by = if by_offer { "is fixed by the offer" } else { "is fixed by the catalogue" };
        for name in ["subject", "amount", "metadata", "merchant_order_no"] {
            let _: Option<String> = fields.optional(name, |_| Err(by.to_owned()));
        }
        let _: Option<String> =
            fields.optional("product_type", |_| if by_offer { Err(by.to_owned()) } else { Ok(String::new()) });
        if let Err(wrong) = metadata(&fixed.metadata) {
            fields.fault("offer", format!("its metadata {wrong}"));
        }
        Terms {
            product_type: Some(fixed.product_type),
            subject: Some(fixed.subject),
            amount: Some(fixed.amount),
            metadata: Some(fixed.metadata),
            purchase: fixed.purchase,
        }
    }
}

/// A buyer owns the order that it places. A backend names the owner.
fn owner(fields: &mut Fields, sender: Sender<'_>) -> Option<UserId> {
    let named = |text: String| {
        let user = UserId::parse(text).map_err(|rule| rule.to_string())?;
        if user.as_str() == NO_USER {
            return Err("a user: this one owns the orders that no buyer placed".to_owned());
        }
        if user.is_long() && !sender.long_user_ids {
            return Err(format!("of at most {} characters, because LONG_USER_IDS is off", UserId::SHORT));
        }
        Ok(user)
    };
    match sender.identity {
        Identity::Buyer(user) => {
            let _: Option<UserId> = fields.optional("user_id", only_from_a_backend);
            Some(user.clone())
        }
        Identity::Key(_) | Identity::Service(_) | Identity::Staff(_) => fields.required("user_id", text(named)),
    }
}

/// A buyer's address is where the request comes from. A backend states it, because the request comes from the backend.
/// The gateway of the scene `h5` gets it, and judges the buyer by it: an address that no buyer has is refused where it is
/// stated, and where real money (`is_real`) would be paid. Simulated buyers have the addresses of documents.
fn client_ip(fields: &mut Fields, sender: Sender<'_>, scene: Option<Scene>, is_real: bool) -> Option<IpAddr> {
    let is_h5 = scene == Some(Scene::H5);
    let of_a_buyer = |address: IpAddr| match Place::of(address) {
        Place::Internet => true,
        Place::Documents => !is_real,
        Place::Nowhere => false,
    };
    let stated = text(|text: String| {
        let address = text.parse::<IpAddr>().map_err(|_| "an IPv4 or IPv6 address")?.to_canonical();
        if of_a_buyer(address) { Ok(address) } else { Err("an address that a buyer on the internet has") }
    });
    match sender.identity {
        Identity::Buyer(_) => {
            let _: Option<IpAddr> = fields.optional("client_ip", only_from_a_backend);
            if is_h5 && is_real && !of_a_buyer(sender.address) {
                let fault = unknown_buyer(sender.address);
                if let (true, left_out) = UNKNOWN_BUYERS.take(Instant::now()) {
                    warn!(left_out, "An order was refused: client_ip {fault}");
                }
                fields.fault("client_ip", fault);
            }
            Some(sender.address)
        }
        _ if is_h5 => fields.required("client_ip", stated),
        _ => fields.optional("client_ip", stated),
    }
}

/// What an operator must change so that the buyer's address is known.
fn unknown_buyer(address: IpAddr) -> String {
    format!(
        "is not known: the request comes from {address}, which no buyer on the internet has. Set TRUSTED_PROXIES of \
         payment-api to the proxies in front of it; a backend orders with an API key and states client_ip"
    )
}

fn only_from_a_backend<T>(_: &Value) -> Result<T, String> {
    Err("is only for the merchant's backend".to_owned())
}

/// A gateway; one of these, if an offer names them.
fn method(text: String, payable_at: Option<&[PaymentMethod]>) -> Result<PaymentMethod, String> {
    let offered = payable_at.unwrap_or(PaymentMethod::ALL);
    let method = text.parse().ok().filter(|method| offered.contains(method));
    method.ok_or_else(|| one_of(offered.iter().map(|method| method.as_str())))
}

/// A scene of the gateway, or of any gateway if the gateway is not known.
fn scene(fields: &mut Fields, method: Option<PaymentMethod>) -> Option<Scene> {
    let offered = method.map_or(Scene::ALL, PaymentMethod::scenes);
    fields.required(
        "scene",
        text(|name| {
            let scene = name.parse().ok().filter(|scene| offered.contains(scene));
            scene.ok_or_else(|| one_of(offered.iter().map(|scene| scene.as_str())))
        }),
    )
}

/// The named account, or the first that offers the scene.
fn gateway(
    fields: &mut Fields,
    accounts: &dyn Accounts,
    method: Option<PaymentMethod>,
    scene: Option<Scene>,
) -> Option<Arc<dyn Gateway>> {
    let account = fields.optional("account", text(AccountName::parse));
    let refusal = match accounts.for_new_order(method?, scene?, account.as_ref()) {
        Ok(gateway) => return Some(gateway),
        Err(refusal) => refusal,
    };
    let field = match refusal {
        NoAccount::Unknown | NoAccount::Retired => "account",
        NoAccount::Scene => "scene",
    };
    fields.fault(field, refusal.to_string());
    None
}

/// The openid is used in the gateway's parameters and nowhere else.
fn openid(fields: &mut Fields, scene: Option<Scene>) -> Option<String> {
    let fits = |text: String| {
        let fits = (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(text) } else { Err("1 to 128 visible ASCII characters") }
    };
    match scene {
        Some(Scene::Jsapi | Scene::Mini) => fields.required("openid", text(fits)),
        Some(_) => fields.optional("openid", |_| Err("is only for the scenes jsapi and mini".to_owned())),
        None => fields.optional("openid", text(fits)),
    }
}

fn expires_in(value: &Value) -> Result<i64, String> {
    let seconds = value.as_i64().filter(|seconds| EXPIRES_IN.contains(seconds));
    seconds.ok_or_else(|| format!("must be a number of seconds from {} to {}", EXPIRES_IN.start(), EXPIRES_IN.end()))
}

fn return_url(text: &str, origins: &[Origin]) -> Result<String, &'static str> {
    let rule = "an http or https URL of at most 2048 characters, whose origin is in RETURN_URL_ORIGINS";
    let url = Url::parse(text).ok().filter(|_| text.len() <= RETURN_URL);
    let allowed = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && origins.contains(&url.origin())
    };
    // The URL is stored as the parser understood it, so that no browser understands it differently.
    url.filter(allowed).map(String::from).ok_or(rule)
}

fn metadata(value: &Value) -> Result<Value, String> {
    let Value::Object(members) = value else { return Err("must be a JSON object".to_owned()) };
    if value.to_string().len() > METADATA {
        return Err(format!("must have at most {METADATA} bytes"));
    }
    if has_nul(members) {
        return Err("must not hold the character U+0000".to_owned());
    }
    Ok(value.clone())
}

/// Whether a name or a text contains U+0000, which JSON in the database cannot contain.
fn has_nul(members: &Map<String, Value>) -> bool {
    fn within(value: &Value) -> bool {
        match value {
            Value::String(text) => text.contains('\0'),
            Value::Array(values) => values.iter().any(within),
            Value::Object(members) => has_nul(members),
            _ => false,
        }
    }
    members.iter().any(|(name, value)| name.contains('\0') || within(value))
}
