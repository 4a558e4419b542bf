//! Odd contents of a gateway's messages: absent fields, unexpected values, another charset, and refusals with a
//! chosen code. The gateway signs all of it as it is sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::calls::CallKind;
use crate::json::set;
use crate::ledger::Gateway;

/// Fields by name with their values; `null` removes a field.
pub type Fields = BTreeMap<String, Option<Value>>;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OddFaults {
    /// Changes to notices: form fields at Alipay, JSON pointers into the resource at WeChat Pay.
    pub notices: Fields,
    /// Changes to answers that are not refusals: members at Alipay, JSON pointers at WeChat Pay. Only existing
    /// values are replaced.
    pub answers: Fields,
    /// The charset of Alipay's answers.
    pub charset: Charset,
    /// Refusals that replace answers; the first match applies.
    pub refuse: Vec<Refuse>,
}

/// The charset of Alipay's answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Charset {
    /// UTF-8, as requested.
    #[default]
    Utf8,
    /// GBK, and `content-type` says so.
    Gbk,
    /// GBK, but `content-type` does not say so.
    GbkUnnamed,
    /// The message of a refusal consists of bytes of no charset.
    Garbage,
}

/// One refusal with a chosen code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refuse {
    /// The kind of call; if absent, every kind.
    #[serde(default)]
    pub call: Option<CallKind>,
    /// The HTTP status at WeChat Pay; Alipay always answers 200.
    #[serde(default = "bad_request")]
    pub status: u16,
    /// `code`.
    pub code: String,
    /// `sub_code` at Alipay.
    #[serde(default)]
    pub sub_code: String,
    /// `message`, `sub_msg`.
    #[serde(default = "words")]
    pub message: String,
}

fn bad_request() -> u16 {
    400
}

fn words() -> String {
    "系统繁忙，请稍后再试".to_owned()
}

impl OddFaults {
    /// Names the value that is invalid.
    pub(crate) fn check(&self) -> Result<(), String> {
        for refuse in &self.refuse {
            if !(400..600).contains(&refuse.status) {
                return Err(format!("a refusal has status {}, and not 400 to 599", refuse.status));
            }
            if refuse.code.is_empty() {
                return Err("a refusal has a code".to_owned());
            }
        }
        Ok(())
    }

    /// The refusal that a call meets.
    pub(crate) fn refusal(&self, call: CallKind) -> Option<&Refuse> {
        self.refuse.iter().find(|refuse| refuse.call.is_none_or(|wanted| wanted == call))
    }

    /// The odd fields of a gateway's notices. A set for both gateways contains names for Alipay and pointers for
    /// WeChat Pay.
    pub(crate) fn notices_of(self, gateway: Gateway) -> impl Iterator<Item = (String, Option<Value>)> {
        self.notices.into_iter().filter(move |(name, _)| name.starts_with('/') == (gateway == Gateway::Wechat))
    }

    /// Changes an answer of Alipay before it is sent.
    pub(crate) fn change_members(&self, members: &mut Map<String, Value>) {
        for (name, value) in &self.answers {
            match (members.contains_key(name), value) {
                (true, Some(value)) => drop(members.insert(name.clone(), value.clone())),
                (true, None) => drop(members.remove(name)),
                (false, _) => {}
            }
        }
    }

    /// Changes an answer of WeChat Pay before it is sent.
    pub(crate) fn change(&self, answer: &mut Value) {
        for (pointer, value) in &self.answers {
            if answer.pointer(pointer).is_some() {
                set(answer, pointer, value.clone());
            }
        }
    }
}
