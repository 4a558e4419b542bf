//! The texts that Alipay's signatures cover.

/// Name and value, decoded.
pub(crate) type Pair = (String, String);

/// A request: every parameter except `sign` and those without a value; `sign_type` is included.
pub(crate) fn request_content(params: &[Pair]) -> String {
    join(params.iter().filter(|(name, value)| name != "sign" && !value.is_empty()))
}

/// A notification or return: every parameter except `sign` and `sign_type`.
pub(crate) fn notice_content(params: &[Pair]) -> String {
    join(params.iter().filter(|(name, _)| name != "sign" && name != "sign_type"))
}

fn join<'a>(params: impl Iterator<Item = &'a Pair>) -> String {
    let mut params: Vec<_> = params.collect();
    params.sort();
    let mut text = String::with_capacity(params.iter().map(|(name, value)| name.len() + value.len() + 2).sum());
    for (name, value) in params {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        text.push_str(value);
    }
    text
}
