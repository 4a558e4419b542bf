//! Reads the members of a JSON object one by one and collects every fault, so that the client gets all faults in one
//! answer.

use std::fmt::Display;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use domain::Money;
use serde_json::{Map, Value};

use crate::answer::layers::unread;
use crate::answer::problem::{ApiError, FieldFault};
use crate::create::once;

/// The members that are still to be read, and the faults found so far.
pub struct Fields {
    members: Map<String, Value>,
    faults: Vec<FieldFault>,
}

impl Fields {
    /// # Errors
    /// [`ApiError::MalformedJson`], or [`ApiError::InvalidFields`] when a member appears twice in one object.
    pub fn parse(body: &Bytes) -> Result<Fields, ApiError> {
        if body.is_empty() {
            return Err(ApiError::MalformedJson("it is empty; send {} if there is nothing to say".to_owned()));
        }
        let (value, twice) = once::parse(body).map_err(|error| ApiError::MalformedJson(error.to_string()))?;
        let Value::Object(members) = value else {
            return Err(ApiError::MalformedJson("it is another JSON value".to_owned()));
        };
        // The other faults would depend on which of the two values counts.
        if !twice.is_empty() {
            let faults = twice.iter().map(|path| FieldFault::new(short(path), "comes more than once in its object"));
            return Err(ApiError::InvalidFields(faults.collect()));
        }
        Ok(Fields { members, faults: Vec::new() })
    }

    /// A member that is not read yet. `null` counts as absent.
    pub fn peek(&self, name: &str) -> Option<&Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    /// Whether a member is there that is not read yet.
    pub fn has(&self, name: &str) -> bool {
        self.peek(name).is_some()
    }

    /// Reads a member that must be present.
    pub fn required<T>(&mut self, name: &str, read: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        if !self.has(name) {
            self.fault(name, "is required");
        }
        self.optional(name, read)
    }

    /// Reads a member that may be absent. `null` counts as absent.
    pub fn optional<T>(&mut self, name: &str, read: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        let value = self.members.remove(name).filter(|value| !value.is_null())?;
        read(&value).map_err(|message| self.fault(name, message)).ok()
    }

    /// Reads a member for which `null` is a value of its own. `None`: it is absent, or has a fault.
    pub fn nullable<T>(&mut self, name: &str, read: impl FnOnce(&Value) -> Result<T, String>) -> Option<Option<T>> {
        match self.members.get(name) {
            Some(Value::Null) => {
                self.members.remove(name);
                Some(None)
            }
            _ => self.optional(name, read).map(Some),
        }
    }

    /// Adds a fault that the caller found.
    pub fn fault(&mut self, field: &str, message: impl Into<String>) {
        self.faults.push(FieldFault::new(field, message));
    }

    /// Ends the reading. Every member that was not read is an unknown field.
    ///
    /// # Errors
    /// [`ApiError::InvalidFields`] with every fault.
    pub fn finish(mut self) -> Result<(), ApiError> {
        for name in self.members.keys() {
            self.faults.push(FieldFault::new(short(name), "is not a field of this request"));
        }
        self.faults.truncate(FieldFault::MOST);
        if self.faults.is_empty() { Ok(()) } else { Err(ApiError::InvalidFields(self.faults)) }
    }
}

/// A name from a request, cut to a length that is safe to repeat in an answer.
pub(crate) fn short(name: &str) -> String {
    name.chars().take(64).collect()
}

/// The unchanged bytes of a body whose `Content-Type` is JSON.
pub struct JsonBytes(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonBytes {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<JsonBytes, ApiError> {
        let media = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::UnsupportedMediaType);
        }
        let body = Bytes::from_request(request, state).await;
        body.map(JsonBytes).map_err(|rejection| ApiError::Layer(unread(&rejection)))
    }
}

/// Reads a text member with the parser of its type.
pub fn text<T, E: Display>(parse: impl FnOnce(String) -> Result<T, E>) -> impl FnOnce(&Value) -> Result<T, String> {
    move |value| {
        let text = value.as_str().ok_or_else(|| "must be text".to_owned())?;
        parse(text.to_owned()).map_err(|rule| format!("must be {rule}"))
    }
}

/// Reads an amount of money greater than zero.
///
/// # Errors
/// The rule, as text.
pub fn money(value: &Value) -> Result<Money, String> {
    let rule = || format!("must be text in yuan with at most two decimals, \"0.01\" to \"{}\"", Money::MAX);
    let money = value.as_str().and_then(|yuan| Money::from_yuan(yuan).ok());
    money.filter(|money| money.is_positive()).ok_or_else(rule)
}

/// The rule of a choice, as text.
pub fn one_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    format!("one of {}", names.collect::<Vec<_>>().join(", "))
}
