//! What names a purchase, and who vouches for the terms of its orders.

use crate::named_enum;
use crate::text::text_type;

text_type! {
    /// The merchant's own number of a purchase: 1 to 64 printable ASCII characters without spaces. A purchase has at most
    /// one order that is not closed.
    MerchantOrderNo, MerchantOrderNoError, "a number of 1 to 64 printable ASCII characters",
    |text| (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

text_type! {
    /// The `jti` of an offer, which its issuer gives to no other: 1 to 64 printable ASCII characters without spaces.
    OfferId, OfferIdError, "an id of 1 to 64 printable ASCII characters",
    |text| (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

named_enum! {
    /// Who vouches for what is sold and for the amount.
    VouchedBy {
        /// The merchant's backend, which placed the order.
        Backend = "backend",
        /// An offer that the merchant's backend signed.
        Offer = "offer",
        /// The catalogue of fixed prices.
        Catalogue = "catalogue",
        /// Only the buyer: `BUYER_PRICES` allows it.
        Buyer = "buyer",
    }
}

/// Who vouches for the terms of an order, and what names its purchase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purchase {
    /// Who vouches.
    pub vouched_by: VouchedBy,
    /// Which backend or which issuer of offers that is: `key {id}` or `service {subject}`, and `service` for the offers of
    /// the service issuer. Its keys may change, and its offers keep their ids. `None`: the catalogue, or the buyer.
    pub voucher: Option<String>,
    /// The offer.
    pub offer_id: Option<OfferId>,
    /// The merchant's own number.
    pub merchant_order_no: Option<MerchantOrderNo>,
}

impl Purchase {
    /// A purchase with the buyer's own terms.
    pub const OF_BUYER: Purchase =
        Purchase { vouched_by: VouchedBy::Buyer, voucher: None, offer_id: None, merchant_order_no: None };

    /// Whether it has a name, so that it can have only one order that is not closed.
    pub const fn is_named(&self) -> bool {
        self.offer_id.is_some() || self.merchant_order_no.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_visible_and_has_a_bound() {
        for text in ["A1002", "2026/01/05-7", "=1+1", &"9".repeat(64)] {
            assert_eq!(MerchantOrderNo::parse(text).unwrap().as_str(), text);
            assert_eq!(OfferId::parse(text).unwrap().as_str(), text);
        }
        for text in ["", " ", "A 1", "A\n", "单号", &"9".repeat(65)] {
            assert_eq!(MerchantOrderNo::parse(text), Err(MerchantOrderNoError), "{text:?}");
            assert_eq!(OfferId::parse(text), Err(OfferIdError), "{text:?}");
        }
    }
}
