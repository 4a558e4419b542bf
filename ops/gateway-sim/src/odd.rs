//! What is odd about a gateway's words: fields that are absent or hold unexpected values, another charset, refusals by a
//! code of choice. All of it is signed as it is sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::calls::CallKind;
use crate::json::set;
use crate::ledger::Gateway;

/// Fields by name, with what they hold; `null` leaves one out.
pub type Fields = BTreeMap<String, Option<Value>>;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OddFaults {
    /// Of notices: form fields at Alipay, JSON pointers into the resource at WeChat Pay.
    pub notices: Fields,
    /// Of answers that are no refusals: members at Alipay, JSON pointers at WeChat Pay. A value replaces only what is there.
    pub answers: Fields,
    /// How Alipay writes its answers.
    pub charset: Charset,
    /// Refusals in the place of answers; the first that fits.
    pub refuse: Vec<Refuse>,
}

/// How Alipay writes its answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Charset {
    /// As it was asked to.
    #[default]
    Utf8,
    /// In GBK, and it says so in `content-type`.
    Gbk,
    /// In GBK, and it does not say so.
    GbkUnnamed,
    /// The words of a refusal are bytes of no charset.
    Garbage,
}

/// One refusal of choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refuse {
    /// Of which call; absent, of each.
    #[serde(default)]
    pub call: Option<CallKind>,
    /// The HTTP status at WeChat Pay; Alipay says 200.
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
    /// Says which value cannot be.
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

    /// The odd fields of a gateway's notices: a set for both gateways holds names for the one and pointers for the other.
    pub(crate) fn notices_of(self, gateway: Gateway) -> impl Iterator<Item = (String, Option<Value>)> {
        self.notices.into_iter().filter(move |(name, _)| name.starts_with('/') == (gateway == Gateway::Wechat))
    }

    /// An answer of Alipay as it goes out.
    pub(crate) fn change_members(&self, members: &mut Map<String, Value>) {
        for (name, value) in &self.answers {
            match (members.contains_key(name), value) {
                (true, Some(value)) => drop(members.insert(name.clone(), value.clone())),
                (true, None) => drop(members.remove(name)),
                (false, _) => {}
            }
        }
    }

    /// An answer of WeChat Pay as it goes out.
    pub(crate) fn change(&self, answer: &mut Value) {
        for (pointer, value) in &self.answers {
            if answer.pointer(pointer).is_some() {
                set(answer, pointer, value.clone());
            }
        }
    }
}
