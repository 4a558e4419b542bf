//! Compares and reads JSON values.

use serde_json::Value;

use crate::crypto::sha256;

/// A digest that is the same for equal JSON, whatever the order of members and the whitespace.
pub(crate) fn digest(value: &Value) -> [u8; 32] {
    let mut text = String::new();
    canonical(value, &mut text);
    sha256(text.as_bytes())
}

fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            text.push('{');
            for (name, value) in members {
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                canonical(value, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        plain => text.push_str(&plain.to_string()),
    }
}

/// The member `name`, if it exists and is text.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// The same as an owned string.
pub(crate) fn owned(value: &Value, name: &str) -> Option<String> {
    text(value, name).map(str::to_owned)
}

/// Sets the value at a JSON pointer and creates missing objects on the path; `None` removes it.
pub(crate) fn set(root: &mut Value, pointer: &str, value: Option<Value>) {
    let (parent, name) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    let mut at = root;
    for step in parent.split('/').filter(|step| !step.is_empty()) {
        let Value::Object(members) = at else { return };
        at = members.entry(step).or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    let Value::Object(members) = at else { return };
    match value {
        Some(value) => members.insert(name.to_owned(), value),
        None => members.remove(name),
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_digest_sees_values_and_not_their_order() {
        let parse = |text: &str| digest(&serde_json::from_str(text).unwrap());
        assert_eq!(parse(r#"{"a":1,"b":{"c":[1,2]}}"#), parse(r#" {"b": {"c": [1, 2]}, "a": 1}"#));
        for other in [r#"{"a":1,"b":{"c":[2,1]}}"#, r#"{"a":"1","b":{"c":[1,2]}}"#, r#"{"a":1}"#] {
            assert_ne!(parse(r#"{"a":1,"b":{"c":[1,2]}}"#), parse(other));
        }
    }

    #[test]
    fn a_pointer_sets_and_removes() {
        let mut value = json!({ "a": { "b": 1 } });
        set(&mut value, "/a/b", None);
        set(&mut value, "/c/d", Some(json!(2)));
        set(&mut value, "/c/d/e", Some(json!(3))); // The path leads through a number, so nothing is set.
        assert_eq!(value, json!({ "a": {}, "c": { "d": 2 } }));
    }
}
