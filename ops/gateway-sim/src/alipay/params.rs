//! The public parameters of a call: read from URL and body, and checked in the gateway's order.

use std::sync::Arc;

use serde_json::Value;
use time::{Duration, OffsetDateTime};
use url::{Url, form_urlencoded};

use super::answer::Problem;
use super::sign::{Pair, request_content};
use crate::clock;
use crate::keys::{AlipayMerchant, SimKeys};

/// All parameters of one call.
pub(crate) struct Params {
    all: Vec<Pair>,
    charset_in_url: bool,
}

/// A call whose signature was verified.
pub(crate) struct Call {
    pub(crate) merchant: Arc<AlipayMerchant>,
    /// Whether it uses certificate mode.
    pub(crate) certified: bool,
    pub(crate) biz_content: Value,
    pub(crate) notify_url: Option<String>,
    pub(crate) return_url: Option<String>,
}

/// How old a signature may be: a page URL waits for its user, a call does not.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Freshness {
    Call,
    Page,
}

impl Params {
    /// The parameters of URL and body together.
    pub(crate) fn read(query: &str, body: &[u8]) -> Params {
        let in_url: Vec<Pair> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let charset_in_url = in_url.iter().any(|(name, _)| name == "charset");
        let mut all = in_url;
        all.extend(form_urlencoded::parse(body).into_owned());
        Params { all, charset_in_url }
    }

    #[cfg(test)]
    pub(crate) fn all(&self) -> &[Pair] {
        &self.all
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.all.iter().find(|(known, _)| known == name)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }

    pub(crate) fn method(&self) -> &str {
        self.get("method").unwrap_or_default()
    }

    /// Checks everything that does not depend on the method. It finds the app before it verifies the signature.
    pub(crate) fn check(&self, keys: &SimKeys, freshness: Freshness, now: OffsetDateTime) -> Result<Call, Problem> {
        self.check_forms()?;
        let app_id = self.must("app_id", "isv.missing-app-id")?;
        let Some(merchant) = keys.alipay_app(app_id) else {
            return Err(Problem::invalid("isv.invalid-app-id", "无效的AppID参数"));
        };
        let sign = self.must("sign", "isv.missing-signature")?;
        let content = request_content(&self.all);
        if !merchant.app_key.accepts(content.as_bytes(), sign) {
            let hint = "验签出错，建议检查签名字符串或签名私钥与应用公钥是否匹配，网关生成的验签字符串为：";
            return Err(Problem::invalid("isv.invalid-signature", &format!("{hint}{content}")));
        }
        let certified = self.check_certificates(merchant)?;
        self.check_timestamp(freshness, now)?;
        let url = |name: &str, sub_code: &str| {
            self.get(name).map(|url| check_url(url).ok_or_else(|| Problem::invalid(sub_code, "无效的地址"))).transpose()
        };
        let text = self.must("biz_content", "isv.missing-biz-content")?;
        let biz_content = serde_json::from_str(text).ok().filter(Value::is_object);
        Ok(Call {
            merchant: Arc::clone(merchant),
            certified,
            biz_content: biz_content
                .ok_or_else(|| Problem::invalid("isv.invalid-parameter", "biz_content 不是 JSON 对象"))?,
            notify_url: url("notify_url", "isv.invalid-notify-url")?,
            return_url: url("return_url", "isv.invalid-return-url")?,
        })
    }

    /// Requires both numbers or none, and returns whether the call uses certificate mode.
    fn check_certificates(&self, merchant: &AlipayMerchant) -> Result<bool, Problem> {
        let (app, root) = match (self.get("app_cert_sn"), self.get("alipay_root_cert_sn")) {
            (None, None) => return Ok(false),
            (Some(app), Some(root)) => (app, root),
            (None, _) => return Err(Problem::invalid("isv.missing-app-cert-sn", "缺少应用公钥证书SN")),
            (_, None) => return Err(Problem::invalid("isv.missing-root-cert-sn", "缺少支付宝根证书SN")),
        };
        let mode = merchant.certificates.as_ref();
        if mode.is_none_or(|mode| mode.app_sn != app) {
            return Err(Problem::invalid("isv.invalid-app-cert-sn", "应用公钥证书SN错误"));
        }
        if mode.is_none_or(|mode| mode.authority.sn != root) {
            return Err(Problem::invalid("isv.invalid-root-cert-sn", "支付宝根证书SN错误"));
        }
        Ok(true)
    }

    fn check_forms(&self) -> Result<(), Problem> {
        let mut names: Vec<_> = self.all.iter().map(|(name, _)| name).collect();
        names.sort();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Problem::invalid("isv.suspected-attack", "参数重复"));
        }
        self.must("method", "isv.missing-method")?;
        let charset = self.must("charset", "isv.missing-charset")?;
        if !self.charset_in_url || !charset.eq_ignore_ascii_case("utf-8") {
            let why = "编码错误：charset 必须在 URL 中，且模拟器只支持 utf-8";
            return Err(Problem::invalid("isv.invalid-charset", why));
        }
        if self.must("sign_type", "isv.missing-signature-type")? != "RSA2" {
            return Err(Problem::invalid("isv.invalid-signature-type", "无效签名类型"));
        }
        if self.must("version", "isv.missing-version")? != "1.0" {
            return Err(Problem::invalid("isv.invalid-version", "无效的版本"));
        }
        match self.get("format") {
            Some(format) if !format.eq_ignore_ascii_case("json") => {
                Err(Problem::invalid("isv.invalid-format", "无效的数据格式"))
            }
            _ => Ok(()),
        }
    }

    /// The real tolerance is not published. One hour detects a clock that runs in another time zone.
    fn check_timestamp(&self, freshness: Freshness, now: OffsetDateTime) -> Result<(), Problem> {
        let at = clock::parse_alipay(self.must("timestamp", "isv.missing-timestamp")?);
        let past = match freshness {
            Freshness::Call => Duration::HOUR,
            Freshness::Page => Duration::DAY,
        };
        match at {
            Some(at) if at - now <= Duration::HOUR && now - at <= past => Ok(()),
            _ => Err(Problem::invalid("isv.invalid-timestamp", "非法的时间戳参数")),
        }
    }

    fn must(&self, name: &str, sub_code: &str) -> Result<&str, Problem> {
        self.get(name).ok_or_else(|| Problem::new("40001", sub_code, format!("缺少{name}参数")))
    }
}

fn check_url(url: &str) -> Option<String> {
    let parsed = Url::parse(url).ok()?;
    let good = url.len() <= 256 && matches!(parsed.scheme(), "http" | "https") && parsed.has_host();
    good.then(|| url.to_owned())
}
