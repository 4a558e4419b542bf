//! Renders a page as bytes and headers. Nothing in it comes from a request: it holds our own texts, fields of our
//! record and a token that we created.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::OrderStatus;
use sha2::{Digest, Sha256};
use store::tables::orders::Order;
use time::OffsetDateTime;
use time::macros::{format_description, offset};

use super::words::{BUSY, Language, NEUTRAL, Said, of_extra, of_order};
use super::{Page, Shown};
use crate::routes::orders::is_final;

const PAGE: &str = include_str!("page.html");
const SECTION: &str = include_str!("section.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Without JavaScript the browser reloads the page by itself.
const REFRESH: &str = "<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>\n";

/// Allows style and script by their hash only, images only as data URLs, and connections only to ourselves.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())));
    format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT),
    )
});

/// The answer is always 200, because a buyer who returns should see a page and not an error.
pub fn page(page: Page, shown: &Shown, language: Language) -> Response {
    let headers: [(HeaderName, &str); 8] = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, &POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (CACHE_CONTROL, "no-store"),
        (VARY, "accept-language"),
        (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
    ];
    (headers, html(page, shown, language)).into_response()
}

fn html(page: Page, shown: &Shown, language: Language) -> String {
    let said = match shown {
        Shown::Nothing => NEUTRAL,
        Shown::Busy => BUSY,
        Shown::Order { order, .. } => of_order(order, page),
    };
    let sections = section(&said, shown, language.other()) + &section(&said, shown, language);
    let waits = match shown {
        Shown::Nothing => false,
        Shown::Busy => true,
        Shown::Order { order, .. } => !is_final(order),
    };
    let script = match shown {
        _ if !waits => String::new(),
        Shown::Order { order, view_token } => {
            let address = format!("/v1/orders/{}/stream?view_token={view_token}", order.id);
            let (stream, version) = (escape(&address), order.version);
            format!("<div id=\"live\" data-stream=\"{stream}\" data-version=\"{version}\" hidden></div>\n")
                + &format!("<script>{SCRIPT}</script>\n")
        }
        _ => format!("<script>{SCRIPT}</script>\n"),
    };
    fill(
        PAGE,
        &[
            ("lang", language.tag()),
            ("title", language.pick(said.heading.0, said.heading.1)),
            ("style", STYLE),
            ("refresh", if waits { REFRESH } else { "" }),
            ("tone", said.tone),
            ("sections", &sections),
            ("script", &script),
        ],
    )
}

fn section(said: &Said, shown: &Shown, language: Language) -> String {
    let other = language.other();
    let order = match shown {
        Shown::Order { order, .. } => details(order, language),
        Shown::Nothing | Shown::Busy => String::new(),
    };
    fill(
        SECTION,
        &[
            ("id", language.id()),
            ("lang", language.tag()),
            ("mark", said.mark),
            ("heading", language.pick(said.heading.0, said.heading.1)),
            ("text", language.pick(said.text.0, said.text.1)),
            ("order", &order),
            ("other_id", other.id()),
            ("other_lang", other.tag()),
            ("other_name", other.name()),
        ],
    )
}

fn details(order: &Order, language: Language) -> String {
    let mut rows = vec![
        (language.pick("商品", "For"), order.subject.to_string()),
        (language.pick("支付方式", "Paid through"), language.gateway(order.payment_method).to_owned()),
        (language.pick("订单号", "Order number"), order.order_no.to_string()),
    ];
    if order.status == OrderStatus::Pending {
        rows.push((language.pick("付款截止", "To be paid until"), beijing(order.expires_at)));
    }
    rows.extend(order.paid_at.map(|at| (language.pick("付款时间", "Paid at"), beijing(at))));
    if order.refunded_amount.is_positive() {
        rows.push((language.pick("已退款", "Refunded"), format!("¥{}", order.refunded_amount)));
    }
    // The top of the page is about the order's own payment, or about this one if the order has none.
    if let Some(state) = order.extra_state {
        let amount = order.extra_amount.map(|amount| format!("¥{amount} · ")).unwrap_or_default();
        let (chinese, english) = of_extra(state);
        rows.push((language.pick("另一笔付款", "Another payment"), amount + language.pick(chinese, english)));
    }
    let mut html = format!("<p class=\"amount\">¥{}</p>\n<dl>\n", order.amount);
    for (name, value) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(html, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    html + "</dl>\n"
}

/// The time in Beijing, with its offset.
fn beijing(at: OffsetDateTime) -> String {
    let clock = format_description!("[year]-[month]-[day] [hour]:[minute] UTC+8");
    at.checked_to_offset(offset!(+8)).and_then(|local| local.format(clock).ok()).unwrap_or_default()
}

/// Fills a template in one pass, so that a value is never mistaken for a placeholder.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut html = String::with_capacity(template.len() + values.iter().map(|(_, value)| value.len()).sum::<usize>());
    let mut parts = template.split("{{");
    html.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or(("", part));
        html.push_str(values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value));
        html.push_str(rest);
    }
    html
}

/// Escapes for text, and for attributes in double quotes.
fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_never_taken_for_a_name() {
        assert_eq!(fill("a {{x}} b {{y}}{{none}}.", &[("x", "{{y}}"), ("y", "2")]), "a {{y}} b 2.");
    }

    #[test]
    fn every_place_of_the_templates_is_filled() {
        let whole = html(Page::Success, &Shown::Busy, Language::English);
        assert!(!whole.contains("{{") && !whole.contains("}}"), "{whole}");
        // The policy allows exactly the text between the tags.
        assert!(
            whole.contains(&format!("<style>{STYLE}</style>")) && whole.contains(&format!("<script>{SCRIPT}</script>"))
        );
    }

    #[test]
    fn markup_becomes_text() {
        assert_eq!(escape("<b title=\"x\">'&"), "&lt;b title=&quot;x&quot;&gt;&#39;&amp;");
    }
}
