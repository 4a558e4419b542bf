//! The texts of the pages, in Chinese and in English.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT_LANGUAGE;
use domain::{ExtraState, OrderStatus, PaymentMethod};
use store::tables::orders::Order;

use super::Page;

/// A language of the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Simplified Chinese.
    Chinese,
    /// Plain English.
    English,
}

impl Language {
    /// The language that the browser prefers; Chinese if the browser names neither.
    pub fn preferred(headers: &HeaderMap) -> Language {
        let value = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (mut best, mut weight) = (Language::Chinese, 0.0);
        for range in value.split(',').take(16) {
            let (tag, parameter) = range.split_once(';').unwrap_or((range, ""));
            let primary = tag.trim().split('-').next().unwrap_or_default().to_ascii_lowercase();
            let language = match primary.as_str() {
                "zh" => Language::Chinese,
                "en" => Language::English,
                _ => continue,
            };
            let q = parameter.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.parse::<f32>().ok());
            // With equal weights the first language counts. NaN is not greater than any weight.
            if let Some(q) = q.filter(|q| *q > weight && *q <= 1.0) {
                (best, weight) = (language, q);
            }
        }
        best
    }

    /// The language that the switch leads to.
    pub const fn other(self) -> Language {
        match self {
            Language::Chinese => Language::English,
            Language::English => Language::Chinese,
        }
    }

    /// The language tag in HTML.
    pub const fn tag(self) -> &'static str {
        match self {
            Language::Chinese => "zh-CN",
            Language::English => "en",
        }
    }

    /// The id of its section, which is the fragment of the switch.
    pub const fn id(self) -> &'static str {
        match self {
            Language::Chinese => "zh",
            Language::English => "en",
        }
    }

    /// The name of the language in that language.
    pub const fn name(self) -> &'static str {
        self.pick("中文", "English")
    }

    /// The one of two texts that is in this language.
    pub const fn pick(self, chinese: &'static str, english: &'static str) -> &'static str {
        match self {
            Language::Chinese => chinese,
            Language::English => english,
        }
    }

    /// The gateway's name.
    pub const fn gateway(self, method: PaymentMethod) -> &'static str {
        match method {
            PaymentMethod::Alipay => self.pick("支付宝", "Alipay"),
            PaymentMethod::Wechat => self.pick("微信支付", "WeChat Pay"),
        }
    }
}

/// The message at the top of a page.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// The colour: `done`, `open` or nothing.
    pub tone: &'static str,
    /// A symbol with the same meaning.
    pub mark: &'static str,
    /// Chinese and English.
    pub heading: (&'static str, &'static str),
    /// Chinese and English.
    pub text: (&'static str, &'static str),
}

/// For a visitor who may see no order.
pub const NEUTRAL: Said = Said {
    tone: "",
    mark: "…",
    heading: ("请回到商家查看订单", "Please look into the merchant’s app"),
    text: (
        "此页面无法显示订单。付款结果以商家应用中的订单状态为准。",
        "This page cannot show an order. Whether it is paid is told by the order in the merchant’s app.",
    ),
};

/// While our own record cannot be read.
pub const BUSY: Said = Said {
    tone: "",
    mark: "…",
    heading: ("暂时无法查询", "The order cannot be looked up right now"),
    text: ("页面会自动重试，请勿重复付款。", "This page tries again by itself. Please do not pay twice."),
};

/// The message for the order in our own record. The page that the buyer came to matters only while the order is
/// pending.
pub fn of_order(order: &Order, page: Page) -> Said {
    match (order.status, order.extra_state) {
        // The buyer has paid, but not in a way that this order could accept. This matters most.
        (OrderStatus::Pending | OrderStatus::Closed, Some(state)) => of_money_without_an_order(state),
        (OrderStatus::Pending, None) if order.close_requested_at.is_some() => CLOSING,
        (status, _) => of_status(status, page),
    }
}

/// While the close of an order is requested and the order can still be paid.
const CLOSING: Said = Said {
    tone: "open",
    mark: "…",
    heading: ("正在取消订单", "The order is being cancelled"),
    text: (
        "请不要再付款。若已付款，付款结果确认后，此页面会自动更新。",
        "Please do not pay it any more. If you have paid, this page changes by itself once the payment is confirmed.",
    ),
};

/// What happened to a payment other than the order's own, in a few words.
pub const fn of_extra(state: ExtraState) -> (&'static str, &'static str) {
    match state {
        ExtraState::Held => ("已收到，商家处理中", "received, the merchant is dealing with it"),
        ExtraState::Returning => ("退回中", "on its way back to you"),
        ExtraState::Returned => ("已退回", "returned to you"),
    }
}

/// A payment that came after the order was closed, or that has another amount.
const fn of_money_without_an_order(state: ExtraState) -> Said {
    match state {
        ExtraState::Held => Said {
            tone: "open",
            mark: "…",
            heading: ("已收到付款，商家处理中", "Your payment has arrived and is being dealt with"),
            text: (
                "这笔付款与订单不符（例如订单已关闭），款项在商家账户中。商家会履行订单或原路退款，请勿重复付款。",
                "It does not fit the order, which may have been closed before. The merchant has your money and will \
                 deliver or return it. Please do not pay again.",
            ),
        },
        ExtraState::Returning => Said {
            tone: "open",
            mark: "↩",
            heading: ("付款正在退回", "Your payment is on its way back"),
            text: (
                "这笔付款与订单不符，款项正在原路退回。结果确认后，此页面会自动更新。",
                "It did not fit the order and goes back the way it came. This page changes by itself once it is done.",
            ),
        },
        ExtraState::Returned => Said {
            tone: "done",
            mark: "↩",
            heading: ("付款已退回", "Your payment has been returned"),
            text: (
                "这笔付款与订单不符，款项已原路退回。如仍需购买，请回到商家应用重新下单。",
                "It did not fit the order and went back the way it came. To buy it still, place a new order in the \
                 merchant’s app.",
            ),
        },
    }
}

const fn of_status(status: OrderStatus, page: Page) -> Said {
    match (status, page) {
        (OrderStatus::Pending, Page::Success) => Said {
            tone: "open",
            mark: "…",
            heading: ("正在确认付款", "Confirming the payment"),
            text: (
                "付款结果确认后，此页面会自动更新。若已付款，请勿重复付款。",
                "This page changes by itself once the result is known. If you have paid, please do not pay again.",
            ),
        },
        (OrderStatus::Pending, Page::Cancel) => Said {
            tone: "open",
            mark: "…",
            heading: ("尚未收到付款", "Not paid so far"),
            text: (
                "如需继续付款，请回到商家应用。若已付款，此页面会自动更新。",
                "To pay, go back to the merchant’s app. If you have paid, this page changes by itself.",
            ),
        },
        (OrderStatus::Paid, _) => Said {
            tone: "done",
            mark: "✓",
            heading: ("付款成功", "Paid"),
            text: ("商家已收到付款，可以关闭此页面。", "The merchant has your payment. You can close this page."),
        },
        (OrderStatus::Closed, _) => Said {
            tone: "",
            mark: "×",
            heading: ("订单已关闭", "The order is closed"),
            text: (
                "此订单已不能再付款。如果您已付款，款项会退回或由商家处理，请勿重复付款，稍后刷新此页面查看。如未付款，请回到商家应用重新下单。",
                "It can no longer be paid. If you have paid, please do not pay again: the merchant will deliver or return \
                 your money, and this page will say so when you load it again. If not, place a new order in the \
                 merchant’s app.",
            ),
        },
        (OrderStatus::Refunding, _) => Said {
            tone: "open",
            mark: "↩",
            heading: ("退款处理中", "A refund is on its way"),
            text: ("退款结果确认后，此页面会自动更新。", "This page changes by itself once it is done."),
        },
        (OrderStatus::PartiallyRefunded, _) => Said {
            tone: "done",
            mark: "↩",
            heading: ("已部分退款", "Partly refunded"),
            text: ("退款将原路退回。", "The money goes back the way it came."),
        },
        (OrderStatus::Refunded, _) => Said {
            tone: "done",
            mark: "↩",
            heading: ("已全额退款", "Refunded in full"),
            text: ("退款将原路退回。", "The money goes back the way it came."),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_browser_chooses_the_language() {
        for (value, expected) in [
            ("", "zh"),
            ("en", "en"),
            ("EN-us,zh;q=0.9", "en"),
            ("zh-Hant-TW, en;q=0.8", "zh"),
            ("en;q=0.3,zh-CN;q=0.7", "zh"),
            ("fr,de;q=0.9,en;q=0.1", "en"),
            ("fr", "zh"),
            ("en;q=nan, *", "zh"),
            ("en;q=9,zh;q=0.1", "zh"),
            ("en;q=0", "zh"),
            (",,;;==<script>", "zh"),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_LANGUAGE, value.parse().unwrap())]);
            assert_eq!(Language::preferred(&headers).id(), expected, "{value}");
        }
        let bytes = axum::http::HeaderValue::from_bytes(b"en\xff").unwrap();
        assert_eq!(Language::preferred(&HeaderMap::from_iter([(ACCEPT_LANGUAGE, bytes)])), Language::Chinese);
    }
}
