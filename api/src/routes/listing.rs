//! The query parameters of lists: page, state, gateway, time. Every list reads them in the same way.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::{PaymentMethod, UnknownName};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use store::page::Wanted;
use time::format_description::well_known::{Iso8601, Rfc3339};
use time::macros::offset;
use time::{Date, OffsetDateTime, Time};
use utoipa::IntoParams;

use crate::answer::problem::{ApiError, FieldFault};
use crate::create::fields::{one_of, short};

/// A query string in which the OpenAPI document names each parameter, and each appears once. Otherwise a misspelt
/// filter would return everything.
pub struct Known<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + IntoParams> FromRequestParts<S> for Known<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Known<T>, ApiError> {
        let known: Vec<String> = T::into_params(|| None).into_iter().map(|parameter| parameter.name).collect();
        let rule = format!("is not a parameter of this list; it has {}", known.join(", "));
        let (mut seen, mut faults) = (Vec::new(), Faults::default());
        let query = parts.uri.query().unwrap_or_default();
        for (name, _) in url::form_urlencoded::parse(query.as_bytes()).take(FieldFault::MOST) {
            if !known.iter().any(|known| *known == name) {
                faults.0.push(FieldFault::new(short(&name), rule.as_str()));
            } else if seen.contains(&name) {
                faults.0.push(FieldFault::new(name, "comes more than once"));
            } else {
                seen.push(name);
            }
        }
        faults.finish()?;
        let read = Query::try_from_uri(&parts.uri).map_err(|rejection| ApiError::Layer(rejection.status()))?;
        Ok(Known(read.0))
    }
}

/// Selects a part of the list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// 1 to 100, 20 when absent.
    #[param(value_type = Option<u8>)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    cursor: Option<String>,
    /// Only entries in this state.
    status: Option<String>,
    /// `alipay` or `wechat`: only entries of this gateway.
    method: Option<String>,
    /// Only entries that were created at this time or later: RFC 3339, or a date in Beijing.
    #[param(example = "2026-01-01")]
    from: Option<String>,
    /// Only entries that were created before this time (RFC 3339), or until the end of this date in Beijing.
    #[param(example = "2026-01-31")]
    to: Option<String>,
}

impl Filter {
    /// The query of the database. It reads one row more than is shown, to find out whether there is a next page.
    ///
    /// # Errors
    /// [`ApiError::InvalidFields`] with every fault.
    pub fn read<Id, S: FromStr<Err = UnknownName>>(
        &self,
        id: impl Fn(&str) -> Option<Id>,
        states: &[&'static str],
    ) -> Result<Wanted<Id, S>, ApiError> {
        let mut faults = Faults::default();
        let limit = faults.limit(self.limit.as_deref());
        let before = faults.cursor(self.cursor.as_deref(), id);
        let status = faults.choice("status", self.status.as_deref(), states);
        let methods: Vec<&str> = PaymentMethod::ALL.iter().map(|method| method.as_str()).collect();
        let method = faults.choice("method", self.method.as_deref(), &methods);
        let rule = "must be a time such as 2026-01-31T08:00:00Z or a date such as 2026-01-31";
        let from = faults.read("from", self.from.as_deref(), |text| moment(text, false), rule);
        let to = faults.read("to", self.to.as_deref(), |text| moment(text, true), rule);
        faults.finish()?;
        Ok(Wanted { before, status, method, from, to, limit: limit + 1 })
    }
}

/// Collects the faults of a query.
#[derive(Default)]
pub struct Faults(Vec<FieldFault>);

impl Faults {
    /// The size of a page: 1 to 100, or 20.
    pub fn limit(&mut self, text: Option<&str>) -> i64 {
        let rule = "must be a number from 1 to 100";
        let fits = |text: &str| text.parse().ok().filter(|limit| (1..=100).contains(limit));
        self.read("limit", text, fits, rule).unwrap_or(20)
    }

    /// The id in one of our cursors.
    pub fn cursor<Id>(&mut self, text: Option<&str>, id: impl Fn(&str) -> Option<Id>) -> Option<Id> {
        let read = |text: &str| id(std::str::from_utf8(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?);
        self.read("cursor", text, read, "must be the next_cursor of an earlier page")
    }

    /// One of a few names.
    pub fn choice<T: FromStr<Err = UnknownName>>(
        &mut self,
        field: &str,
        text: Option<&str>,
        names: &[&str],
    ) -> Option<T> {
        let rule = format!("must be {}", one_of(names.iter().copied()));
        self.read(field, text, |text| text.parse().ok(), &rule)
    }

    /// The result of `read` for a text. `None` from `read` is a fault.
    pub fn read<T>(
        &mut self,
        field: &str,
        text: Option<&str>,
        read: impl Fn(&str) -> Option<T>,
        rule: &str,
    ) -> Option<T> {
        let value = read(text?);
        if value.is_none() {
            self.0.push(FieldFault::new(field, rule));
        }
        value
    }

    /// # Errors
    /// [`ApiError::InvalidFields`] if there is a fault.
    pub fn finish(self) -> Result<(), ApiError> {
        if self.0.is_empty() { Ok(()) } else { Err(ApiError::InvalidFields(self.0)) }
    }
}

/// The rows to show and the cursor of the next page, from rows that may be one more than shown.
pub fn page<T>(mut found: Vec<T>, requested: i64, id: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
    let shown = usize::try_from(requested - 1).unwrap_or(0);
    let more = found.len() > shown;
    found.truncate(shown);
    let cursor = found.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(id(last)));
    (found, cursor)
}

/// A date in Beijing.
pub fn date(text: &str) -> Option<Date> {
    Date::parse(text, &Iso8601::DATE).ok().filter(|date| (1970..=9998).contains(&date.year()))
}

/// The beginning of a date in Beijing.
pub fn midnight(date: Date) -> OffsetDateTime {
    date.with_time(Time::MIDNIGHT).assume_offset(offset!(+8))
}

fn moment(text: &str, end: bool) -> Option<OffsetDateTime> {
    match date(text) {
        Some(date) if end => date.next_day().map(midnight),
        Some(date) => Some(midnight(date)),
        None => {
            let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
            Some(at).filter(|at| (1970..=9998).contains(&at.year()))
        }
    }
}
