//! Reads JSON from a gateway whose texts are not UTF-8. Codes are always used; texts are decoded or replaced.
//!
//! We request UTF-8 from Alipay, but it still answers some errors in GBK. Names, codes and numbers are ASCII in every
//! charset that a gateway uses, so we can read the structure without knowing the charset. There is one exception: the
//! second byte of a GBK character can look like a backslash. Therefore we read such bytes in two ways, and reject a
//! message if the two readings differ (ops/decisions/0019).

use std::ops::Range;

use encoding_rs::GB18030;
use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Deserializer};
use serde_json::Value;

/// How bytes beyond ASCII are interpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Each byte separately: UTF-8, ISO 8859, and garbage.
    Single,
    /// As characters of two or four bytes, whose later bytes may look like ASCII: GBK and GB18030.
    Paired,
}

/// The readings that are possible for these bytes.
pub(super) fn readings(bytes: &[u8]) -> &'static [Reading] {
    match std::str::from_utf8(bytes) {
        Ok(_) => &[Reading::Single],
        Err(_) => &[Reading::Paired, Reading::Single],
    }
}

/// Replaces what cannot be decoded.
const LEFT_OUT: char = '\u{FFFD}';

/// Reads an object. If its bytes are not UTF-8, or a text in it is broken, both readings must give the same fields.
///
/// # Errors
/// The error of reading it strictly, as JSON in UTF-8.
pub(super) fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    let strict = match std::str::from_utf8(json).map(serde_json::from_str) {
        Ok(Ok(read)) => return Ok(read),
        Ok(Err(error)) => error,
        Err(error) => <serde_json::Error as serde::de::Error>::custom(error),
    };
    let texts = readings(json).iter().filter_map(|reading| decoded(json, *reading));
    let read: Vec<(Value, String)> =
        texts.filter_map(|text| Some((without_words(&serde_json::from_str(&text).ok()?), text))).collect();
    match read.as_slice() {
        [(codes, _), (others, _)] if codes != others => Err(strict),
        [(_, text), ..] => serde_json::from_str(text),
        [] => Err(strict),
    }
}

/// The members of an object, each with the range of its value. `None`: not an object in this reading, or a repeated
/// name.
pub(super) fn members(json: &[u8], reading: Reading) -> Option<Vec<(&[u8], Range<usize>)>> {
    let mut scan = Scan { json, at: 0, reading };
    if json.starts_with(b"\xEF\xBB\xBF") {
        scan.at = 3;
    }
    scan.expect(b'{')?;
    let mut members: Vec<(&[u8], Range<usize>)> = Vec::new();
    loop {
        scan.blanks();
        let name = scan.string()?;
        let name = &json[name.start + 1..name.end - 1];
        scan.expect(b':')?;
        let value = scan.value()?;
        if members.iter().any(|(known, _)| *known == name) {
            return None;
        }
        members.push((name, value));
        scan.blanks();
        match scan.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    scan.blanks();
    (scan.at == json.len()).then_some(members)
}

/// A text as it is, or a number as text; null and any other value give an empty text.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    })
}

/// The same JSON in UTF-8, with every text repaired. `None`: this reading gives no such JSON.
fn decoded(json: &[u8], reading: Reading) -> Option<String> {
    let json = json.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(json);
    let mut text = String::with_capacity(json.len());
    let (mut at, mut quoted) = (0, false);
    while let Some(byte) = json.get(at) {
        match byte {
            0x80.. if !quoted => return None,
            0x80.. => {
                let end = at + character(&json[at..], reading);
                match reading {
                    Reading::Paired => {
                        let character = GB18030.decode_without_bom_handling(&json[at..end]).0;
                        // If a pair is not a valid character, drop its second byte too.
                        let whole = !character.bytes().any(|byte| byte.is_ascii());
                        text.push_str(if whole { &character } else { "\u{FFFD}" });
                    }
                    Reading::Single => text.push_str(&String::from_utf8_lossy(&json[at..end])),
                }
                at = end;
                continue;
            }
            b'\\' if quoted => {
                let (kept, length) = escape(&json[at..]);
                match kept {
                    Some(kept) => text.push_str(kept),
                    None => text.push(LEFT_OUT),
                }
                at += length;
                continue;
            }
            0..0x20 if quoted => text.push(LEFT_OUT),
            byte => {
                quoted ^= *byte == b'"';
                text.push(char::from(*byte));
            }
        }
        at += 1;
    }
    (!quoted).then_some(text)
}

/// The number of bytes at the start that belong together. The first byte is beyond ASCII.
fn character(bytes: &[u8], reading: Reading) -> usize {
    if reading == Reading::Single {
        return bytes.iter().position(u8::is_ascii).unwrap_or(bytes.len());
    }
    match bytes {
        [0x81..=0xFE, b'0'..=b'9', 0x81..=0xFE, b'0'..=b'9', ..] => 4,
        [0x81..=0xFE, 0x40..=0x7E | 0x80..=0xFE, ..] => 2,
        _ => 1,
    }
}

/// The escape at the start of these bytes if it is valid, and its length. Half of a surrogate pair is not valid.
fn escape(bytes: &[u8]) -> (Option<&str>, usize) {
    let unit = |bytes: &[u8]| {
        let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
        let digits = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u16::from_str_radix(digits, 16).ok()
    };
    let whole = |length: usize| (bytes.get(..length).and_then(|kept| std::str::from_utf8(kept).ok()), length);
    match (bytes.get(1), unit(bytes)) {
        (_, Some(0xD800..=0xDBFF)) => match bytes.get(6..).and_then(unit) {
            Some(0xDC00..=0xDFFF) => whole(12),
            _ => (None, 6),
        },
        (_, Some(0xDC00..=0xDFFF)) => (None, 6),
        (_, Some(_)) => whole(6),
        (Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't'), None) => whole(2),
        _ => (None, 1),
    }
}

/// The value without texts for people. Codes consist of printable ASCII only; every other text becomes null.
fn without_words(value: &Value) -> Value {
    match value {
        Value::String(text) if !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') => Value::Null,
        Value::Array(values) => values.iter().map(without_words).collect(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), without_words(value))).collect(),
        other => other.clone(),
    }
}

/// Scans JSON bytes without recursion.
struct Scan<'a> {
    json: &'a [u8],
    at: usize,
    reading: Reading,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        self.blanks();
        (self.next()? == wanted).then_some(())
    }

    /// A text including its quotes.
    fn string(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        self.expect(b'"')?;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(start..self.at);
                }
                b'\\' => self.at += 2,
                0x80.. => self.at += character(&self.json[self.at..], self.reading),
                _ => self.at += 1,
            }
        }
    }

    fn value(&mut self) -> Option<Range<usize>> {
        self.blanks();
        let start = self.at;
        let mut open: Vec<u8> = Vec::new();
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'{' => {
                    open.push(b'}');
                    self.at += 1;
                }
                b'[' => {
                    open.push(b']');
                    self.at += 1;
                }
                close @ (b'}' | b']') if !open.is_empty() => {
                    if open.pop() != Some(close) {
                        return None;
                    }
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if !open.is_empty() => self.at += 1,
                byte if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.') => {
                    while matches!(self.peek(), Some(byte) if byte.is_ascii_alphanumeric() || b"-+.".contains(&byte)) {
                        self.at += 1;
                    }
                }
                _ => return None,
            }
            if open.is_empty() {
                return Some(start..self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use encoding_rs::{BIG5, EUC_KR, SHIFT_JIS, WINDOWS_1252};
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    const BOTH: [Reading; 2] = [Reading::Paired, Reading::Single];

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    struct Failure {
        code: String,
        #[serde(default, deserialize_with = "text")]
        sub_code: String,
        #[serde(default, deserialize_with = "text")]
        sub_msg: String,
    }

    fn failure(words: &[u8]) -> Vec<u8> {
        [br#"{"code":"40004","sub_msg":""#, words, br#"","sub_code":"ACQ.TRADE_NOT_EXIST"}"#].concat()
    }

    fn words_of(json: &[u8]) -> String {
        let read: Failure = read(json).unwrap();
        assert_eq!((read.code.as_str(), read.sub_code.as_str()), ("40004", "ACQ.TRADE_NOT_EXIST"));
        read.sub_msg
    }

    #[test]
    fn codes_count_in_every_charset_and_gbk_is_decoded() {
        for words in ["没有这笔交易", "誠", "誠a", "a誠乗b", "𠮷野家", "交易\u{3000}不存在"] {
            assert_eq!(words_of(&failure(words.as_bytes())), words);
            let (gbk, _, lossy) = GB18030.encode(words);
            assert!(!lossy);
            assert_eq!(words_of(&failure(&gbk)), words, "{gbk:x?}");
        }
        for charset in [BIG5, EUC_KR, SHIFT_JIS, WINDOWS_1252] {
            for words in ["交易不存在", "取引が存在しない", "거래", "échoué", "功"] {
                words_of(&failure(&charset.encode(words).0));
            }
        }
    }

    #[test]
    fn garbage_is_left_out() {
        for words in [
            &b"\xff\xfe\xff"[..],
            b"\x80",
            b"\xe4\xb8",
            b"\xe4",
            b"a\x00b\nc",
            br"\ud83d cut",
            br"\udc00",
            br"\x \q",
            br"\u12",
        ] {
            words_of(&failure(words));
        }
        assert_eq!(words_of(&failure(br"\ud83d\ude00\u0041")), "\u{1F600}A");
    }

    #[test]
    fn what_the_two_readings_do_not_agree_on_is_not_believed() {
        // UTF-8 with a broken character. Read in pairs, the backslash belongs to the last character and the text ends
        // early.
        let words = "大\\\",\\\"code\\\":\\\"10000\\\",\\\"x\\\":\\\"".as_bytes();
        let crafted = [br#"{"cut":""#, &b"\xe5"[..], br#"","title":""#, words, br#"","sub_code":"S","code":"40004"}"#];
        let read = read::<Failure>(&crafted.concat());
        assert!(!matches!(&read, Ok(read) if read.code == "10000"), "{read:?}");
        // The same in GBK, where the single reading ends the text early.
        let gbk = [br#"{"title":""#, &b"\xd5\\"[..], br#"","body":",\"code\":\"10000\",\"x\":\"","code":"40004"}"#];
        let read = super::read::<Failure>(&gbk.concat());
        assert!(!matches!(&read, Ok(read) if read.code == "10000"), "{read:?}");
    }

    #[test]
    fn a_text_may_be_a_number_or_absent() {
        for (json, sub_code) in [
            (r#"{"code":"1","sub_code":7}"#, "7"),
            (r#"{"code":"1","sub_code":null}"#, ""),
            (r#"{"code":"1"}"#, ""),
            (r#"{"code":"1","sub_code":["x"]}"#, ""),
        ] {
            assert_eq!(read::<Failure>(json.as_bytes()).unwrap().sub_code, sub_code);
        }
    }

    #[test]
    fn members_are_found_in_bytes() {
        let body =
            b"\xEF\xBB\xBF { \"a\" : {\"x\":[1,{\"}\":\"\\\"]\"}]} ,\"sign\":\"s\\\\\",\"n\":-1.5e+3,\"t\":true}\n";
        for reading in BOTH {
            let found = members(body, reading).unwrap();
            let texts: Vec<(&str, &str)> = found
                .iter()
                .map(|(name, place)| {
                    (std::str::from_utf8(name).unwrap(), std::str::from_utf8(&body[place.clone()]).unwrap())
                })
                .collect();
            let wanted = [("a", r#"{"x":[1,{"}":"\"]"}]}"#), ("sign", r#""s\\""#), ("n", "-1.5e+3"), ("t", "true")];
            assert_eq!(texts, wanted);
        }
        for broken in [
            &b""[..],
            b"{",
            b"{}",
            b"[]",
            b"{\"a\":1,\"a\":2}",
            b"{\"a\":[}]}",
            b"{\"a\":1}x",
            b"{\"a\"}",
            b"{\"a\":\"\\",
        ] {
            for reading in BOTH {
                assert_eq!(members(broken, reading), None, "{broken:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read::<Value>(&bytes);
            for reading in BOTH {
                let _ = members(&bytes, reading);
            }
            let _ = read::<Value>(&failure(&bytes));
        }

        #[test]
        fn bytes_without_quotes_and_backslashes_spoil_no_code(words in proptest::collection::vec(
            any::<u8>().prop_filter("no structure", |byte| !matches!(byte, b'"' | b'\\')), 0..40)) {
            prop_assert_eq!(words_of(&failure(&words)).is_empty(), words.is_empty());
        }

        #[test]
        fn members_are_those_of_the_json_library(object in "\\{(\"[a-c]\":(1|\"x\"|\\{\"a\":\\[\\]\\}),?){0,3}\\}") {
            let known: Result<std::collections::HashMap<String, &serde_json::value::RawValue>, _> =
                serde_json::from_str(&object);
            for reading in BOTH {
                if let Some(found) = members(object.as_bytes(), reading) {
                    let known = known.as_ref().unwrap();
                    prop_assert_eq!(found.len(), known.len());
                    for (name, place) in found {
                        let name = std::str::from_utf8(name).unwrap();
                        prop_assert_eq!(known[name].get().as_bytes(), &object.as_bytes()[place]);
                    }
                }
            }
        }
    }
}
