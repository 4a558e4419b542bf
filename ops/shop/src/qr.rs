//! The QR code that the buyer scans.

use qrcode::render::svg;
use qrcode::{EcLevel, QrCode};

/// Draws `text` as an SVG document; `None` if it is too long for a QR code.
pub(crate) fn svg(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::M).ok()?;
    Some(code.render::<svg::Color>().min_dimensions(240, 240).quiet_zone(true).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_drawn_and_a_novel_is_not() {
        assert!(svg("weixin://wxpay/bizpayurl?pr=abc").unwrap().contains("<svg"));
        assert!(svg(&"x".repeat(4000)).is_none());
    }
}
