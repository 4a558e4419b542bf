//! Reads JSON and finds members that appear twice in one object. `serde_json` alone silently uses the last of two
//! values, and other parsers use the first, so two values would be ambiguous.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::answer::problem::FieldFault;

/// Parses a whole text. The second part names each member that appears twice, by its path: `metadata.cart.size`.
///
/// # Errors
/// The JSON error of the text.
pub fn parse(text: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let twice = RefCell::default();
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Place { path: "", twice: &twice }.deserialize(&mut reader)?;
    reader.end()?;
    Ok((value, twice.into_inner()))
}

/// The path of a value, and the duplicates found so far.
struct Place<'a> {
    path: &'a str,
    twice: &'a RefCell<Vec<String>>,
}

impl Place<'_> {
    fn member(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(Place { path: self.path, twice: self.twice })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut read = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let path = self.member(&name);
            let value = members.next_value_seed(Place { path: &path, twice: self.twice })?;
            let mut twice = self.twice.borrow_mut();
            if read.insert(name, value).is_some() && twice.len() < FieldFault::MOST && !twice.contains(&path) {
                twice.push(path);
            }
        }
        Ok(Value::Object(read))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_that_comes_twice_is_named_at_any_depth() {
        for (text, twice) in [
            (r#"{"a":1,"b":2}"#, &[][..]),
            (r#"{"a":1,"a":1}"#, &["a"]),
            // One name, written in two ways.
            (r#"{"a":1,"\u0061":2,"a":3}"#, &["a"]),
            (r#"{"a":{"b":1,"b":2},"b":{"b":[{"c":1},{"c":1,"c":2}]}}"#, &["a.b", "b.b.c"]),
            (r#"[{"x":null,"x":null}]"#, &["x"]),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().1, twice, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_stays_an_error() {
        for text in ["", "{", "{\"a\":1}x", "nul", "{\"a\" 1}", "\u{feff}{}", "1e999"] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(parse(deep.as_bytes()).is_err(), "a depth without a bound");
        let many: String = (0..100).map(|n| format!("\"k{n}\":1,\"k{n}\":2,")).collect();
        assert_eq!(parse(format!("{{{many}\"z\":1}}").as_bytes()).unwrap().1.len(), FieldFault::MOST);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e300..1e300_f64).prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(".{0,4}", inner, 0..4)
                    .prop_map(|members| json!(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_value_is_read_as_serde_json_reads_it(value in value()) {
            let text = value.to_string();
            let plain: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parse(text.as_bytes()).unwrap(), (plain, Vec::new()));
        }
    }
}
