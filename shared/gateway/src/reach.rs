//! What a harmless query shows about the connection to a gateway, and an order number for that query.

use domain::OrderNo;
use reqwest::header::{DATE, HeaderMap};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::error::GatewayError;
use crate::keys::nonce;

/// The answer to a query for an order that cannot exist.
#[derive(Debug)]
pub struct Reach {
    /// The gateway's clock, to the second, from the `Date` header of the answer.
    pub date: Option<OffsetDateTime>,
    /// `Ok` if the gateway answered that there is no such order: it accepted our signature. Otherwise the error.
    pub taken: Result<(), GatewayError>,
}

impl Reach {
    /// Reads the gateway's clock from the headers of an answer.
    pub(super) fn date_of(headers: &HeaderMap) -> Option<OffsetDateTime> {
        let text = headers.get(DATE)?.to_str().ok()?;
        OffsetDateTime::parse(text, &Rfc2822).ok()
    }
}

/// An order number that no order has: our own numbers have another form, and it is long enough to be unique.
pub(super) fn number_of_no_order() -> Result<OrderNo, GatewayError> {
    let random: String = nonce()?.chars().filter(char::is_ascii_alphanumeric).take(24).collect();
    OrderNo::parse(format!("DOCTOR_{random}")).map_err(|error| GatewayError::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read() {
        let mut headers = HeaderMap::new();
        assert_eq!(Reach::date_of(&headers), None);
        headers.insert(DATE, "Mon, 05 Jan 2026 02:21:08 GMT".parse().unwrap());
        assert_eq!(Reach::date_of(&headers), Some(datetime!(2026-01-05 02:21:08 UTC)));
        headers.insert(DATE, "yesterday".parse().unwrap());
        assert_eq!(Reach::date_of(&headers), None);
    }

    #[test]
    fn each_number_is_another_and_fits() {
        let (one, two) = (number_of_no_order().unwrap(), number_of_no_order().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.as_str().len(), 31);
    }
}
