//! The query parameters of lists: page, state, gateway, time. Every list reads them in the same way.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::{Money, PaymentMethod, UnknownName};
pub use runtime::beijing::midnight;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use store::page::{Created, Mark, Part, Wanted};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterIn};

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
        let from = faults.begin("from", self.from.as_deref());
        let to = faults.end("to", self.to.as_deref());
        faults.finish()?;
        Ok(Wanted { before, status, method, from, to, limit: limit + 1 })
    }
}

/// A page of a filtered list: the parameters of the filter, and these.
#[derive(Deserialize)]
pub struct Paged<T> {
    /// What restricts the list.
    #[serde(flatten)]
    pub filter: T,
    /// Which part of the list.
    #[serde(flatten)]
    pub slice: Slice,
}

impl<T: IntoParams> IntoParams for Paged<T> {
    fn into_params(parameter_in: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let mut all = T::into_params(&parameter_in);
        all.extend(Slice::into_params(&parameter_in));
        all
    }
}

/// Selects a page of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Slice {
    /// 1 to 100, 20 when absent.
    #[param(value_type = Option<u8>)]
    limit: Option<String>,
    /// `next_cursor` of the previous page of the same list.
    cursor: Option<String>,
}

impl Slice {
    /// How many rows to read (one more than is shown), and the id in the cursor. `list` is the name of the list: a cursor
    /// of another list is a fault.
    pub fn read<Id>(&self, faults: &mut Faults, list: &str, id: impl Fn(&str) -> Option<Id>) -> (i64, Option<Id>) {
        let limit = faults.limit(self.limit.as_deref()) + 1;
        let of_list = |text: &str| id(text.strip_prefix(list)?.strip_prefix(':')?);
        (limit, faults.cursor(self.cursor.as_deref(), of_list))
    }
}

/// The longest range of creation times of a list whose filters have no index, in days.
pub const MOST_DAYS: i64 = 31;

/// Whether a list is restricted to a range of creation times that is short enough to read all of it.
pub fn is_bounded(created: &Created, now: OffsetDateTime) -> bool {
    is_within(created, now, MOST_DAYS)
}

/// Whether a list is restricted to a range of creation times of at most so many days.
pub fn is_within(created: &Created, now: OffsetDateTime, days: i64) -> bool {
    created.from.is_some_and(|from| created.to.unwrap_or(now) - from <= Duration::days(days))
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

    /// Several of a few names, with commas between them.
    pub fn choices<T: FromStr<Err = UnknownName>>(
        &mut self,
        field: &str,
        text: Option<&str>,
        names: &[&str],
    ) -> Vec<T> {
        let rule = format!("must be {}, or several of them with commas", one_of(names.iter().copied()));
        let read = |text: &str| text.split(',').map(|name| name.parse().ok()).collect::<Option<Vec<T>>>();
        self.read(field, text, read, &rule).unwrap_or_default()
    }

    /// An amount in yuan.
    pub fn money(&mut self, field: &str, text: Option<&str>) -> Option<Money> {
        self.read(field, text, |yuan| Money::from_yuan(yuan).ok(), "must be an amount in yuan such as 12.34")
    }

    /// The beginning of a range of time: RFC 3339, or a date in Beijing.
    pub fn begin(&mut self, field: &str, text: Option<&str>) -> Option<OffsetDateTime> {
        self.read(field, text, |text| moment(text, false), TIME)
    }

    /// The end of a range of time, which is not in it: RFC 3339, or a date in Beijing, which is in it.
    pub fn end(&mut self, field: &str, text: Option<&str>) -> Option<OffsetDateTime> {
        self.read(field, text, |text| moment(text, true), TIME)
    }

    /// Adds a fault that the caller found.
    pub fn fault(&mut self, field: &str, rule: &str) {
        self.0.push(FieldFault::new(field, rule));
    }

    /// Adds a fault of `field` if its range is empty.
    pub fn ordered<T: PartialOrd>(&mut self, field: &str, from: Option<&T>, to: Option<&T>) {
        if from.zip(to).is_some_and(|(from, to)| from > to) {
            self.fault(field, "must not be before the beginning of its range");
        }
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

/// The same of a page that may have ended before it was full: the cursor then stands after the last row that was looked at.
pub fn part<T, Id>(
    found: Part<T, Id>,
    requested: i64,
    of_row: impl Fn(&T) -> Id,
    cursor: impl Fn(Id) -> String,
) -> (Vec<T>, Option<String>) {
    let (shown, next) = page(found.rows, requested, |row| cursor(of_row(row)));
    let looked_to = found.looked_to.map(|id| URL_SAFE_NO_PAD.encode(cursor(id)));
    (shown, next.or(looked_to))
}

/// Reads the mark in a cursor of a list that is in the order of a time: microseconds since 1970, a colon, and the id.
pub fn mark<Id>(text: &str, id: impl Fn(&str) -> Option<Id>) -> Option<Mark<Id>> {
    let (micros, rest) = text.split_once(':')?;
    let micros: i64 = micros.parse().ok()?;
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).ok()?;
    Some(Mark { at: Some(at).filter(|at| (1970..=9998).contains(&at.year()))?, id: id(rest)? })
}

/// What stands in a cursor of a list that is in the order of a time. The database has microseconds.
pub fn marked<Id: Display>(list: &str, mark: &Mark<Id>) -> String {
    format!("{list}:{}:{}", mark.at.unix_timestamp_nanos() / 1000, mark.id)
}

/// A date in Beijing, and nothing behind it: a parser of ISO 8601 also takes the date of a whole time.
pub fn date(text: &str) -> Option<Date> {
    let date = Date::parse(text, format_description!("[year]-[month]-[day]")).ok();
    date.filter(|date| (1970..=9998).contains(&date.year()))
}

const TIME: &str = "must be a time such as 2026-01-31T08:00:00Z or a date such as 2026-01-31";

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

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    /// A time of day was read as its whole day.
    #[test]
    fn a_time_is_no_date() {
        assert_eq!(moment("2026-01-31T08:00:00Z", false), Some(datetime!(2026-01-31 08:00 UTC)));
        assert_eq!(moment("2026-01-31T08:00:00Z", true), Some(datetime!(2026-01-31 08:00 UTC)));
        assert_eq!(moment("2026-01-31", false), Some(datetime!(2026-01-30 16:00 UTC)));
        assert_eq!(moment("2026-01-31", true), Some(datetime!(2026-01-31 16:00 UTC)));
        for wrong in
            ["2026-01-31 08:00", "2026-01-3", "2026-01-31Z", "20260131", "2026-W05-6", "9999-12-31", "1969-12-31"]
        {
            assert_eq!(moment(wrong, false), None, "{wrong}");
        }
    }
}
