//! Offers: the terms of an order that the merchant's backend signed for one buyer, as a JWS with the type `offer+jwt`.
//!
//! The key decides the algorithm. A key of the service issuer's JWKS is named by its `kid`. An offer with HS256 names an
//! API key as `kid` and as `iss`, and is signed with the offer secret of that key.

use domain::{
    ApiKeyId, MerchantOrderNo, Money, OfferId, PaymentMethod, ProductType, Purchase, Subject, UserId, VouchedBy,
};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, Header, decode, decode_header, get_current_timestamp};
use serde::Deserialize;
use serde_json::{Map, Number, Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::info;

use crate::access::api_keys::ApiKeys;
use crate::access::auth::{Authenticator, reason, seconds};
use crate::access::key::{Claimed, Issuer, Key, LEEWAY_S};
use crate::answer::problem::ApiError;
use crate::answer::rarely::Few;

/// How long an offer may live from its `iat`, in seconds.
const LONGEST: u64 = 24 * 3600;
/// How many refused offers are logged in a second. Any buyer can send them.
const LOGGED: u32 = 10;
/// The `typ` of an offer's header. No other token has it, and no offer goes without it.
const TYPE: &str = "offer+jwt";

static REFUSED: Few = Few::new(LOGGED);

/// The terms that an offer fixes.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// Whose offer it is, and its names.
    pub purchase: Purchase,
    /// What is sold.
    pub product_type: ProductType,
    /// What the buyer reads.
    pub subject: Subject,
    /// The price.
    pub amount: Money,
    /// For events and views; an object.
    pub metadata: Value,
    /// The gateways at which it can be paid; `None`: at each.
    pub methods: Option<Vec<PaymentMethod>>,
    /// The end of the offer.
    pub until: OffsetDateTime,
}

/// The claims. An unknown one is refused: it may be a condition that this service would not keep.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    #[serde(rename = "iss")]
    _iss: String,
    #[serde(rename = "aud")]
    _aud: Value,
    iat: Number,
    exp: Number,
    jti: String,
    sub: String,
    product_type: String,
    subject: String,
    amount: String,
    metadata: Option<Map<String, Value>>,
    merchant_order_no: Option<String>,
    methods: Option<Vec<String>>,
}

/// Why an offer is refused. The log says it; the buyer learns only whether the offer has expired.
enum Refusal {
    Expired,
    Invalid(String),
    /// At the moment it is not known which keys are valid.
    Unknown(ApiError),
}

/// Whether the type in a header is that of an offer.
pub(super) fn is_offer(header: &Header) -> bool {
    // RFC 7515, section 4.1.9: `application/` may stand before it.
    let short = |typ: &str| typ.to_ascii_lowercase().trim_start_matches("application/") == TYPE;
    header.typ.as_deref().is_some_and(short)
}

/// The `aud` of offers, for bearer tokens with this `aud`.
pub(super) fn audience(of_tokens: &str) -> String {
    format!("{of_tokens}/offers")
}

impl Offer {
    /// Verifies an offer that a buyer sends. A refusal is logged with its reason.
    ///
    /// # Errors
    /// [`ApiError::OfferExpired`], [`ApiError::OfferInvalid`], [`ApiError::KeysUnavailable`].
    pub fn verify(text: &str, buyer: &UserId, bearer: &Authenticator, keys: &ApiKeys) -> Result<Offer, ApiError> {
        let refusal = match read(text, buyer, bearer, keys) {
            Ok(offer) => return Ok(offer),
            Err(refusal) => refusal,
        };
        let (error, reason) = match refusal {
            Refusal::Expired => (ApiError::OfferExpired, "its exp has passed".to_owned()),
            Refusal::Invalid(reason) => (ApiError::OfferInvalid, reason),
            Refusal::Unknown(error) => return Err(error),
        };
        if let (true, left_out) = REFUSED.take(Instant::now()) {
            info!(reason, left_out, "An offer was refused: {reason}");
        }
        Err(error)
    }
}

fn read(text: &str, buyer: &UserId, bearer: &Authenticator, keys: &ApiKeys) -> Result<Offer, Refusal> {
    let invalid = |reason: &str| Refusal::Invalid(reason.to_owned());
    let header = decode_header(text).map_err(|_| invalid("it is not a JWS whose header this service can read"))?;
    if !is_offer(&header) {
        return Err(invalid("its typ is not offer+jwt"));
    }
    if header.crit.is_some() {
        return Err(invalid("its header has `crit`, but this service supports no extension"));
    }
    let (voucher, claims) = match header.alg {
        Algorithm::HS256 => of_key(text, &header, bearer, keys)?,
        _ => ("service".to_owned(), of_service(text, &header, bearer)?),
    };
    offer(claims, voucher, buyer)
}

/// The claims of an offer that an API key's offer secret signed.
fn of_key(text: &str, header: &Header, bearer: &Authenticator, keys: &ApiKeys) -> Result<(String, Claims), Refusal> {
    let id = header.kid.as_deref().and_then(|kid| ApiKeyId::parse(kid).ok());
    let id = id.ok_or_else(|| Refusal::Invalid("its kid is not the id of an API key".to_owned()))?;
    let secrets = keys.offer_secrets(id).map_err(Refusal::Unknown)?;
    let claimed = Claimed { of: Issuer::Offers, issuer: id.to_string(), audience: bearer.offer_audience().to_owned() };
    let signers: Vec<Key> = secrets.iter().map(|secret| Key::of_secret(secret, &claimed, None)).collect();
    if signers.is_empty() {
        return Err(Refusal::Invalid(format!(
            "API key {id} is not active, or has no right to vouch, or no offer secret"
        )));
    }
    Ok((format!("key {id}"), verified(text, &signers.iter().collect::<Vec<_>>())?))
}

/// The claims of an offer that a key of the service issuer signed.
fn of_service(text: &str, header: &Header, bearer: &Authenticator) -> Result<Claims, Refusal> {
    bearer.with_keys_for(Issuer::Offers, header, |signers| {
        if signers.is_empty() {
            return Err(Refusal::Invalid("no key of the service issuer has its kid and alg".to_owned()));
        }
        verified(text, signers)
    })
}

fn verified(text: &str, signers: &[&Key]) -> Result<Claims, Refusal> {
    for signer in signers {
        match decode::<Claims>(text, &signer.key, &signer.validation) {
            Ok(token) => return Ok(token.claims),
            // The secret before this one may have signed it.
            Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
            Err(error) => return Err(refusal(&error, signer)),
        }
    }
    Err(Refusal::Invalid("no key verifies its signature".to_owned()))
}

fn refusal(error: &Error, signer: &Key) -> Refusal {
    match error.kind() {
        ErrorKind::ExpiredSignature => Refusal::Expired,
        // The signature is valid, so the issuer reads which claim is wrong.
        ErrorKind::Json(error) => Refusal::Invalid(format!("its claims do not fit: {error}")),
        _ => Refusal::Invalid(reason(error, &signer.validation)),
    }
}

/// The terms, once the signature, `iss`, `aud` and `exp` are right.
fn offer(claims: Claims, voucher: String, buyer: &UserId) -> Result<Offer, Refusal> {
    fn fits<T, E: std::fmt::Display>(claim: &str, read: Result<T, E>) -> Result<T, Refusal> {
        read.map_err(|rule| Refusal::Invalid(format!("its {claim} must be {rule}")))
    }
    let invalid = |reason: &str| Refusal::Invalid(reason.to_owned());
    if claims.sub != buyer.as_str() {
        return Err(invalid("it is for another user than the one who sends it"));
    }
    let issued = seconds(&claims.iat).ok_or_else(|| invalid("its iat is not a time"))?;
    let ends = seconds(&claims.exp).ok_or_else(|| invalid("its exp is not a time"))?;
    if issued > get_current_timestamp().saturating_add(LEEWAY_S) {
        return Err(invalid("its iat is in the future"));
    }
    if ends.saturating_sub(issued) > LONGEST {
        return Err(invalid("it lives more than 24 hours from its iat"));
    }
    let until = i64::try_from(ends).ok().and_then(|ends| OffsetDateTime::from_unix_timestamp(ends).ok());
    let amount = Money::from_yuan(&claims.amount).ok().filter(|amount| amount.is_positive());
    let method = |name: &String| fits("methods", name.parse::<PaymentMethod>().map_err(|_| "names of gateways"));
    let number = claims.merchant_order_no.map(MerchantOrderNo::parse).transpose();
    Ok(Offer {
        purchase: Purchase {
            vouched_by: VouchedBy::Offer,
            voucher: Some(voucher),
            offer_id: Some(fits("jti", OfferId::parse(claims.jti))?),
            merchant_order_no: fits("merchant_order_no", number)?,
        },
        product_type: fits("product_type", ProductType::parse(claims.product_type))?,
        subject: fits("subject", Subject::title(claims.subject))?,
        amount: amount.ok_or_else(|| invalid("its amount is not text in yuan with at most two decimals"))?,
        metadata: claims.metadata.map_or_else(|| json!({}), Value::Object),
        until: until.ok_or_else(|| invalid("its exp is not a time"))?,
        methods: claims.methods.map(|names| names.iter().map(method).collect::<Result<_, _>>()).transpose()?,
    })
}
