//! The page itself: one document that fetches nothing from other servers.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

const PAGE: &str = include_str!("page.html");

/// A product.
pub(super) struct Product {
    /// `product_type` of the order.
    pub(super) kind: &'static str,
    pub(super) chinese: &'static str,
    english: &'static str,
    price: &'static str,
}

/// All products of the shop. The prices are suggestions: the page accepts any amount.
pub(super) const CATALOGUE: &[Product] = &[
    Product { kind: "membership", chinese: "会员月卡", english: "Membership, one month", price: "12.34" },
    Product { kind: "photo_credits", chinese: "照片点数 10 张", english: "Photo credits, 10", price: "6.00" },
    Product { kind: "goods", chinese: "明信片一套", english: "A set of postcards", price: "0.01" },
];

/// `GET /`. The policy allows only the scripts and styles of the page itself, with a nonce that is new each time.
pub(super) async fn page() -> Response {
    let nonce = Uuid::now_v7().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, PAGE.replace("{{nonce}}", &nonce).replace("{{catalogue}}", &catalogue())).into_response()
}

fn catalogue() -> String {
    let option = |product: &Product| {
        let Product { kind, chinese, english, price } = product;
        format!("<option value=\"{kind}\" data-price=\"{price}\">{chinese} · {english}</option>")
    };
    CATALOGUE.iter().map(option).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_and_style_carries_the_nonce_and_nothing_is_fetched_from_elsewhere() {
        for tag in ["<script", "<style"] {
            assert_eq!(PAGE.matches(tag).count(), PAGE.matches(&format!("{tag} nonce=\"{{{{nonce}}}}\"")).count());
        }
        for foreign in [" src=\"http", " href=\"http", "@import", "style=\"", "onclick="] {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn the_catalogue_needs_no_escaping() {
        let harmless = |text: &str| !text.contains(['<', '>', '"', '&']);
        assert!(CATALOGUE.iter().all(|p| harmless(p.kind) && harmless(p.chinese) && harmless(p.english)));
    }
}
