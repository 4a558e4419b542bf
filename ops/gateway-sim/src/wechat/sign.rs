//! The texts that WeChat Pay's signatures cover, and the `Authorization` header.

/// The five lines of a request, each ended by a line feed.
pub(crate) fn request_message(method: &str, target: &str, authorization: &Authorization<'_>, body: &[u8]) -> Vec<u8> {
    let mut message =
        format!("{method}\n{target}\n{}\n{}\n", authorization.timestamp, authorization.nonce_str).into_bytes();
    message.extend_from_slice(body);
    message.push(b'\n');
    message
}

/// The three lines of an answer or a notification.
pub(crate) fn answer_message(timestamp: &str, nonce: &str, body: &[u8]) -> Vec<u8> {
    let mut message = format!("{timestamp}\n{nonce}\n").into_bytes();
    message.extend_from_slice(body);
    message.push(b'\n');
    message
}

/// The four lines of the client's invoke parameters; `last` is `prepay_id=…` for JSAPI and the bare id for App.
pub(crate) fn invoke_message(app_id: &str, timestamp: &str, nonce: &str, last: &str) -> String {
    format!("{app_id}\n{timestamp}\n{nonce}\n{last}\n")
}

/// The name of the only signature scheme, in requests and in `Wechatpay-Signature-Type`.
pub(crate) const SCHEME: &str = "WECHATPAY2-SHA256-RSA2048";

/// The five fields of the header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Authorization<'a> {
    pub(crate) mchid: &'a str,
    pub(crate) nonce_str: &'a str,
    pub(crate) timestamp: &'a str,
    pub(crate) serial_no: &'a str,
    pub(crate) signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Reads the value of the header: the scheme, one space, each field once, quoted, in any order.
    pub(crate) fn parse(header: &'a str) -> Option<Authorization<'a>> {
        let fields = header.strip_prefix(SCHEME)?.strip_prefix(' ')?;
        let mut read = Authorization::default();
        for field in fields.split(',') {
            let (name, value) = field.split_once('=')?;
            let value = value.strip_prefix('"')?.strip_suffix('"')?;
            let slot = match name {
                "mchid" => &mut read.mchid,
                "nonce_str" => &mut read.nonce_str,
                "timestamp" => &mut read.timestamp,
                "serial_no" => &mut read.serial_no,
                "signature" => &mut read.signature,
                _ => return None,
            };
            if value.is_empty() || !slot.is_empty() {
                return None;
            }
            *slot = value;
        }
        let whole = [read.mchid, read.nonce_str, read.timestamp, read.serial_no, read.signature];
        whole.iter().all(|field| !field.is_empty()).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_needs_five_quoted_fields_once_each() {
        let good = r#"WECHATPAY2-SHA256-RSA2048 mchid="1",nonce_str="n",timestamp="2",serial_no="S",signature="a=="#;
        assert!(Authorization::parse(&format!("{good}\"")).is_some_and(|read| read.signature == "a=="));
        for bad in [
            good.to_owned(),
            format!("{good}\",mchid=\"1\""),
            format!("{good}\",other=\"1\""),
            good.replace("RSA2048 ", "RSA2048  ") + "\"",
            good.replace("SHA256", "SHA1") + "\"",
            good.replace("mchid=\"1\",", "") + "\"",
            good.replace("\"n\"", "\"\"") + "\"",
            String::new(),
        ] {
            assert_eq!(Authorization::parse(&bad), None, "{bad}");
        }
    }
}
