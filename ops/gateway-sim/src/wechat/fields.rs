//! The allowed fields of a prepay body. Like the real gateway, it refuses unknown and null fields.

use std::net::IpAddr;

use serde_json::Value;
use url::{Host, Url};

use super::answer::Problem;
use crate::ledger::Product;

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Text of 1 to this many characters.
    Text(usize),
    /// 6 to 32 of `[0-9A-Za-z_\-|*]`.
    OutTradeNo,
    /// 1 to 64 of `[0-9A-Za-z_\-|*@]`.
    OutRefundNo,
    /// RFC 3339 with an offset.
    Time,
    NotifyUrl,
    /// An address that can belong to a payer.
    ClientIp,
    /// An integer, not below this minimum.
    Integer(i64),
    Currency,
    Boolean,
    TextList,
    Object(&'static [Field]),
    List(&'static [Field]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Must,
    May,
}

#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    need: Need,
    kind: Kind,
}

const fn must(name: &'static str, kind: Kind) -> Field {
    Field { name, need: Need::Must, kind }
}

const fn may(name: &'static str, kind: Kind) -> Field {
    Field { name, need: Need::May, kind }
}

use Kind::{
    Boolean, ClientIp, Currency, Integer, List, NotifyUrl, Object, OutRefundNo, OutTradeNo, Text, TextList, Time,
};

const COMMON: &[Field] = &[
    must("appid", Text(32)),
    must("mchid", Text(32)),
    must("description", Text(127)),
    must("out_trade_no", OutTradeNo),
    may("time_expire", Time),
    may("attach", Text(128)),
    must("notify_url", NotifyUrl),
    may("goods_tag", Text(32)),
    may("support_fapiao", Boolean),
    must("amount", Object(&[must("total", Integer(1)), may("currency", Currency)])),
    may("detail", Object(DETAIL)),
    may("settle_info", Object(&[may("profit_sharing", Boolean)])),
    may("limit_pay", TextList),
];

const DETAIL: &[Field] = &[
    may("cost_price", Integer(0)),
    may("invoice_id", Text(32)),
    may(
        "goods_detail",
        List(&[
            must("merchant_goods_id", Text(32)),
            may("wechatpay_goods_id", Text(32)),
            may("goods_name", Text(256)),
            must("quantity", Integer(1)),
            must("unit_price", Integer(0)),
        ]),
    ),
];

const SCENE: &[Field] =
    &[must("payer_client_ip", ClientIp), may("device_id", Text(32)), may("store_info", Object(STORE))];

const SCENE_H5: &[Field] = &[
    must("payer_client_ip", ClientIp),
    may("device_id", Text(32)),
    may("store_info", Object(STORE)),
    must("h5_info", Object(H5_INFO)),
];

const STORE: &[Field] =
    &[must("id", Text(32)), may("name", Text(256)), may("area_code", Text(32)), may("address", Text(512))];

const H5_INFO: &[Field] = &[
    must("type", Text(32)),
    may("app_name", Text(64)),
    may("app_url", Text(128)),
    may("bundle_id", Text(128)),
    may("package_name", Text(128)),
];

const ANY_SCENE: &[Field] = &[may("scene_info", Object(SCENE))];
const JSAPI: &[Field] = &[must("payer", Object(&[must("openid", Text(128))])), may("scene_info", Object(SCENE))];
const H5: &[Field] = &[must("scene_info", Object(SCENE_H5))];

/// Checks the body of a prepay of this product.
pub(crate) fn check(product: Product, body: &Value) -> Result<(), Problem> {
    let own = match product {
        Product::Jsapi => JSAPI,
        Product::H5 => H5,
        _ => ANY_SCENE,
    };
    let fields: Vec<Field> = COMMON.iter().chain(own).copied().collect();
    check_object("", &fields, body)?;
    match body.get("detail") {
        Some(detail) if detail.to_string().len() > 6144 => {
            Err(Problem::field("/detail", None, "字符数超过最大值 6144"))
        }
        _ => Ok(()),
    }
}

const REFUND: &[Field] = &[
    may("transaction_id", Text(32)),
    may("out_trade_no", OutTradeNo),
    must("out_refund_no", OutRefundNo),
    may("reason", Text(80)),
    may("notify_url", NotifyUrl),
    may("funds_account", Text(32)),
    must(
        "amount",
        Object(&[
            must("refund", Integer(1)),
            must("total", Integer(1)),
            must("currency", Currency),
            may("from", List(&[must("account", Text(32)), must("amount", Integer(1))])),
        ]),
    ),
    may(
        "goods_detail",
        List(&[
            must("merchant_goods_id", Text(32)),
            may("wechatpay_goods_id", Text(32)),
            may("goods_name", Text(256)),
            must("unit_price", Integer(0)),
            must("refund_amount", Integer(1)),
            must("refund_quantity", Integer(1)),
        ]),
    ),
];

const REDIRECT: &[Field] = &[
    must("out_refund_no", OutRefundNo),
    must("type", Text(32)),
    may("bank_type", Text(16)),
    may("bank_account", Text(1024)),
    may("real_name", Text(1024)),
];

/// Checks the body of a refund.
pub(crate) fn check_refund(body: &Value) -> Result<(), Problem> {
    check_object("", REFUND, body)?;
    if body.get("transaction_id").is_none() && body.get("out_trade_no").is_none() {
        return Err(Problem::field("/out_trade_no", None, "transaction_id与out_trade_no二选一"));
    }
    Ok(())
}

/// Checks the body of an abnormal refund.
pub(crate) fn check_redirect(body: &Value) -> Result<(), Problem> {
    check_object("", REDIRECT, body)?;
    match body.get("type").and_then(Value::as_str) {
        Some("USER_BANK_CARD" | "MERCHANT_BANK_CARD") => Ok(()),
        _ => Err(Problem::field("/type", body.get("type"), "应为 USER_BANK_CARD 或 MERCHANT_BANK_CARD")),
    }
}

/// Checks the body of a close.
pub(crate) fn check_close(body: &Value) -> Result<(), Problem> {
    check_object("", &[must("mchid", Text(32))], body)
}

fn check_object(path: &str, fields: &[Field], value: &Value) -> Result<(), Problem> {
    let Value::Object(members) = value else { return Err(Problem::field(path, Some(value), "应为对象")) };
    for (name, value) in members {
        let path = format!("{path}/{name}");
        match fields.iter().find(|field| field.name == name) {
            Some(field) => field.kind.check(&path, value)?,
            None => return Err(Problem::field(&path, Some(value), "不是该接口的参数")),
        }
    }
    match fields.iter().find(|field| field.need == Need::Must && !members.contains_key(field.name)) {
        Some(field) => Err(Problem::field(&format!("{path}/{}", field.name), None, "缺少必填参数")),
        None => Ok(()),
    }
}

impl Kind {
    fn check(self, path: &str, value: &Value) -> Result<(), Problem> {
        let issue = match self {
            Object(fields) => return check_object(path, fields, value),
            List(fields) => match value.as_array() {
                Some(items) if !items.is_empty() => {
                    return items
                        .iter()
                        .enumerate()
                        .try_for_each(|(index, item)| check_object(&format!("{path}/{index}"), fields, item));
                }
                _ => "应为非空数组",
            },
            _ if self.accepts(value) => return Ok(()),
            Text(_) => "应为非空字符串，且长度不超过限制",
            OutTradeNo => "应为 6 到 32 位的数字、大小写字母、_-|*",
            OutRefundNo => "应为 1 到 64 位的数字、大小写字母、_-|*@",
            Time => "应为 RFC 3339 格式，带时区",
            NotifyUrl => "应为 https 地址，不带参数，长度不超过 255",
            ClientIp => "应为用户的 IP 地址",
            Integer(_) => "应为整数，且不小于最小值",
            Currency => "货币类型不支持",
            Boolean => "应为布尔值",
            TextList => "应为字符串数组",
        };
        Err(Problem::field(path, Some(value), issue))
    }

    fn accepts(self, value: &Value) -> bool {
        let text = value.as_str().filter(|text| !text.is_empty());
        match self {
            Text(limit) => text.is_some_and(|text| text.chars().count() <= limit),
            OutTradeNo => text.is_some_and(is_out_trade_no),
            OutRefundNo => text.is_some_and(is_out_refund_no),
            Time => text.is_some_and(|text| text.len() <= 64 && crate::clock::parse_wechat(text).is_some()),
            NotifyUrl => text.is_some_and(is_notify_url),
            ClientIp => text.is_some_and(|text| text.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified())),
            Integer(least) => value.as_i64().is_some_and(|number| number >= least),
            Currency => text == Some("CNY"),
            Boolean => value.is_boolean(),
            TextList => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
            Object(_) | List(_) => false,
        }
    }
}

pub(crate) fn is_out_trade_no(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-|*".contains(&byte);
    (6..=32).contains(&text.len()) && text.bytes().all(known)
}

fn is_out_refund_no(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-|*@".contains(&byte);
    text.len() <= 64 && text.bytes().all(known)
}

/// https without a query. Plain http is accepted only for addresses of a development machine.
fn is_notify_url(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let near = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback() || ip.is_private(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => !name.contains('.'), // localhost, or a container's name.
        None => return false,
    };
    let scheme = url.scheme() == "https" || (url.scheme() == "http" && near);
    scheme && text.len() <= 255 && url.query().is_none() && url.fragment().is_none() && url.username().is_empty()
}

/// The address that H5 payments navigate to.
pub(crate) fn h5_url(prepay_id: &str, package: &str) -> String {
    format!("https://wx.tenpay.com/cgi-bin/mmpayweb-bin/checkmweb?prepay_id={prepay_id}&package={package}")
}
