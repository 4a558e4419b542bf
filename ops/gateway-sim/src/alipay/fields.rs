//! The allowed fields of `biz_content`, method by method. Any other field is refused.

use serde_json::Value;
use time::{Duration, OffsetDateTime};

use super::answer::Problem;
use crate::clock;

/// The form of a field.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Text of at most this many characters.
    Text(usize),
    /// Letters, digits, underscore.
    Number64,
    /// Without `/ = &`.
    Subject,
    /// Yuan text.
    Amount,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// `yyyy-MM-dd HH:mm:ss`.
    Time,
    /// `90m`, `2h`, `1d`, `1c`.
    Timeout,
    List,
    Object,
    Integer,
}

use Kind::{Amount, Integer, List, Number64, Object, OneOf, Subject, Text, Time, Timeout};

type Field = (&'static str, Kind);

const ORDER: &[Field] = &[("out_trade_no", Number64), ("total_amount", Amount), ("subject", Subject)];

const ORDER_OPTIONAL: &[Field] = &[
    ("body", Text(400)),
    ("time_expire", Time),
    ("timeout_express", Timeout),
    ("passback_params", Text(512)),
    ("goods_detail", List),
    ("extend_params", Object),
    ("business_params", Object),
    ("store_id", Text(32)),
    ("merchant_order_no", Text(32)),
    ("query_options", List),
];

const CLIENT_OPTIONAL: &[Field] = &[
    ("enable_pay_channels", Text(512)),
    ("disable_pay_channels", Text(512)),
    ("promo_params", Text(512)),
    ("ext_user_info", Object),
    ("settle_info", Object),
    ("royalty_info", Object),
    ("sub_merchant", Object),
    ("invoice_info", Object),
    ("agreement_sign_params", Object),
];

const PAGE_OPTIONAL: &[Field] = &[
    ("qr_pay_mode", OneOf(&["0", "1", "2", "3", "4"])),
    ("qrcode_width", Integer),
    ("integration_type", OneOf(&["PCWEB", "ALIAPP"])),
    ("request_from_url", Text(256)),
];

const QR_OPTIONAL: &[Field] = &[
    ("seller_id", Text(32)),
    ("discountable_amount", Amount),
    ("undiscountable_amount", Amount),
    ("operator_id", Text(28)),
    ("terminal_id", Text(32)),
    ("qr_code_timeout_express", Timeout),
];

const NAMES: &[Field] = &[("out_trade_no", Text(64)), ("trade_no", Text(64))];

/// The fields of one method.
struct Rules {
    must: &'static [&'static [Field]],
    may: &'static [&'static [Field]],
}

fn rules(method: &str) -> Option<Rules> {
    let rules = match method {
        "alipay.trade.page.pay" => Rules {
            must: &[ORDER, &[("product_code", OneOf(&["FAST_INSTANT_TRADE_PAY"]))]],
            may: &[ORDER_OPTIONAL, CLIENT_OPTIONAL, PAGE_OPTIONAL],
        },
        "alipay.trade.wap.pay" => Rules {
            must: &[ORDER, &[("product_code", OneOf(&["QUICK_WAP_WAY"]))]],
            may: &[ORDER_OPTIONAL, CLIENT_OPTIONAL, &[("quit_url", Text(400)), ("seller_id", Text(28))]],
        },
        "alipay.trade.app.pay" => Rules {
            must: &[ORDER],
            may: &[
                ORDER_OPTIONAL,
                CLIENT_OPTIONAL,
                &[("product_code", OneOf(&["QUICK_MSECURITY_PAY"])), ("seller_id", Text(28))],
            ],
        },
        "alipay.trade.precreate" => Rules {
            must: &[ORDER, &[("product_code", OneOf(&["QR_CODE_OFFLINE", "FACE_TO_FACE_PAYMENT"]))]],
            may: &[ORDER_OPTIONAL, QR_OPTIONAL],
        },
        "alipay.trade.query" => Rules { must: &[], may: &[NAMES, &[("query_options", List)]] },
        "alipay.trade.close" => Rules { must: &[], may: &[NAMES, &[("operator_id", Text(28))]] },
        "alipay.trade.refund" => Rules {
            must: &[&[("refund_amount", Amount)]],
            may: &[
                NAMES,
                &[
                    ("out_request_no", Text(64)),
                    ("refund_reason", Text(256)),
                    ("refund_goods_detail", List),
                    ("refund_royalty_parameters", List),
                    ("query_options", List),
                    ("related_settle_confirm_no", Text(64)),
                ],
            ],
        },
        "alipay.trade.fastpay.refund.query" => {
            Rules { must: &[&[("out_request_no", Text(64))]], may: &[NAMES, &[("query_options", List)]] }
        }
        _ => return None,
    };
    Some(rules)
}

/// Whether the simulator implements this method.
pub(crate) fn is_known(method: &str) -> bool {
    rules(method).is_some()
}

/// Checks names and forms of fields. The ledger checks states and repeats.
pub(crate) fn check(method: &str, biz_content: &Value) -> Result<(), Problem> {
    let rules = rules(method).ok_or_else(|| Problem::invalid("isv.invalid-method", "不存在的方法名"))?;
    let Value::Object(members) = biz_content else { return Err(invalid("biz_content")) };
    let must = || rules.must.iter().copied().flatten();
    for (name, value) in members {
        let field = must().chain(rules.may.iter().copied().flatten()).find(|(known, _)| known == name);
        let Some((_, kind)) = field else { return Err(invalid(&format!("{name} 不是该接口的参数"))) };
        if !kind.accepts(value) {
            return Err(invalid(name));
        }
    }
    match must().find(|(name, _)| !members.contains_key(*name)) {
        Some((name, _)) => Err(invalid(&format!("{name} 不能为空"))),
        None if members.contains_key("enable_pay_channels") && members.contains_key("disable_pay_channels") => {
            Err(invalid("enable_pay_channels 与 disable_pay_channels 互斥"))
        }
        None => Ok(()),
    }
}

fn invalid(what: &str) -> Problem {
    Problem::business("INVALID_PARAMETER", format!("参数无效：{what}"))
}

impl Kind {
    fn accepts(self, value: &Value) -> bool {
        let text = value.as_str().filter(|text| !text.is_empty());
        match self {
            Text(limit) => text.is_some_and(|text| text.chars().count() <= limit),
            Number64 => text.is_some_and(is_number64),
            Subject => text.is_some_and(|text| text.chars().count() <= 256 && !text.contains(['/', '=', '&'])),
            Amount => text.and_then(fen).is_some(),
            OneOf(choices) => text.is_some_and(|text| choices.contains(&text)),
            Time => text.and_then(clock::parse_alipay).is_some(),
            Timeout => text.and_then(timeout).is_some(),
            List => value.as_array().is_some_and(|items| !items.is_empty()),
            Object => value.as_object().is_some_and(|members| !members.is_empty()),
            Integer => value.is_u64() || text.is_some_and(|text| text.len() <= 4 && text.parse::<u16>().is_ok()),
        }
    }
}

fn is_number64(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Yuan text to fen, within 0.01 and 100000000.
pub(crate) fn fen(text: &str) -> Option<i64> {
    let (yuan, cents) = text.split_once('.').unwrap_or((text, "00"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(yuan) || yuan.len() > 9 || !digits(cents) || cents.len() > 2 {
        return None;
    }
    let cents: i64 = if cents.len() == 1 { cents.parse::<i64>().ok()? * 10 } else { cents.parse().ok()? };
    let fen = yuan.parse::<i64>().ok()? * 100 + cents;
    (1..=10_000_000_000).contains(&fen).then_some(fen)
}

/// `1m` to `15d`; `1c` means until midnight, and counts as one day here.
fn timeout(text: &str) -> Option<Duration> {
    if text == "1c" {
        return Some(Duration::DAY);
    }
    let number: i64 = text.get(..text.len().checked_sub(1)?)?.parse().ok()?;
    let unit = match text.as_bytes().last()? {
        b'm' => Duration::MINUTE,
        b'h' => Duration::HOUR,
        b'd' => Duration::DAY,
        _ => return None,
    };
    let limit = i32::try_from(number).ok().filter(|number| (1..=21_600).contains(number))?;
    Some(unit * limit).filter(|timeout| *timeout <= Duration::days(15))
}

/// The last moment to pay: 1 minute to 15 days ahead. `time_expire` takes precedence over `timeout_express`.
pub(crate) fn expiry(biz_content: &Value, now: OffsetDateTime) -> Result<OffsetDateTime, Problem> {
    let text = |name: &str| biz_content.get(name).and_then(Value::as_str);
    if let Some(at) = text("time_expire").and_then(clock::parse_alipay) {
        // Allows about a second in each direction: the text has no fraction, and the two clocks can differ.
        let ahead = at - now;
        let good = ahead >= Duration::seconds(58) && ahead <= Duration::days(15) + Duration::seconds(2);
        return if good { Ok(at) } else { Err(invalid("time_expire 应在 1 分钟到 15 天之间")) };
    }
    Ok(now + text("timeout_express").and_then(timeout).unwrap_or(Duration::days(15)))
}

/// Yuan text of an amount in fen.
pub(crate) fn yuan(fen: i64) -> String {
    format!("{}.{:02}", fen / 100, fen % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yuan_text_is_read_exactly_or_not_at_all() {
        for (text, expected) in
            [("0.01", 1), ("88.8", 8880), ("88.88", 8888), ("20", 2000), ("100000000", 10_000_000_000)]
        {
            assert_eq!(fen(text), Some(expected), "{text}");
        }
        for text in ["0", "0.00", "0.001", "-1", "+1", "1e2", "", ".5", "5.", " 1", "100000000.01", "1,000", "９"] {
            assert_eq!(fen(text), None, "{text}");
        }
    }

    #[test]
    fn timeouts_have_whole_numbers_and_a_known_unit() {
        assert_eq!(timeout("90m"), Some(Duration::minutes(90)));
        assert_eq!(timeout("15d"), Some(Duration::days(15)));
        for text in ["1.5h", "16d", "0m", "m", "", "10", "-1m", "中"] {
            assert_eq!(timeout(text), None, "{text}");
        }
    }
}
