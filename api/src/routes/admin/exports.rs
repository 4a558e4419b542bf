//! `POST /v1/admin/exports` and what follows: orders and refunds as files, with the filters of the lists.
//!
//! An export runs beside the requests. Its state and its file belong to this process and to the caller that made it.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use domain::shorten_chars;
use export::cell::yuan;
use export::desk::{Known, NoFile, Order, State as Stage};
use export::sums::{Sum, Sums};
use export::{Format, Kind, Selection};
use futures_util::stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use store::page::Created;
use time::OffsetDateTime;
use tokio::task::spawn_blocking;
use utoipa::{IntoParams, ToSchema};

use super::orders::{OrderFilters, names};
use super::refunds::RefundFilters;
use crate::access::caller::Caller;
use crate::answer::problem::{ApiError, FieldFault, Problem};
use crate::create::fields::{Fields, JsonBytes, one_of, short};
use crate::routes::listing::{Faults, is_within};
use crate::state::App;

/// The longest range of creation times of an export, in days.
const MOST_DAYS: i64 = 366;
const NEEDS_RANGE: &str = "an export needs a range: give created_from and created_to, at most 366 days apart, or a filter \
    with an index";
/// Bytes of a file that are in memory at once.
const PIECE: usize = 64 * 1024;

/// What to export.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read member by member")]
pub struct CreateExport {
    /// `orders` or `refunds`.
    #[schema(example = "orders")]
    kind: String,
    /// `csv` or `xlsx`.
    #[schema(example = "xlsx")]
    format: String,
    /// The parameters of `GET /v1/admin/orders` or `GET /v1/admin/refunds`, without `limit` and `cursor`, each as text. Without
    /// a filter that has an index, `created_from` is required, and the range has at most 366 days.
    #[schema(value_type = Option<Object>, example = json!({ "created_from": "2026-11-01", "created_to": "2026-11-30" }))]
    filters: Option<Value>,
}

/// An export.
#[derive(Serialize, ToSchema)]
pub struct ExportView {
    /// 32 hex digits.
    id: String,
    /// `orders` or `refunds`.
    #[schema(value_type = String, example = "orders")]
    kind: Kind,
    /// `csv` or `xlsx`.
    #[schema(value_type = String, example = "xlsx")]
    format: Format,
    /// The filters of the request.
    #[schema(value_type = Object)]
    filters: Value,
    /// `running` `done` `failed`.
    #[schema(example = "running")]
    state: &'static str,
    /// How many rows are written.
    rows_written: i64,
    /// How many rows it has; null while they are counted.
    rows_total: Option<i64>,
    /// Only when it is done: the bytes of the file.
    bytes: Option<u64>,
    /// Only when it is done: SHA-256 of the file, in hex digits.
    sha256: Option<String>,
    /// Only when it is done: the sums of its rows, as in the file.
    sums: Option<ExportSums>,
    /// Only when it has failed.
    error: Option<ExportFailure>,
    /// When it was requested.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    ended_at: Option<OffsetDateTime>,
    /// When its file is deleted and its id forgotten; null while it runs.
    #[serde(with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

/// Why an export has failed.
#[derive(Serialize, ToSchema)]
pub struct ExportFailure {
    /// `too_many_rows` `sums_differ` `disk` `cell` `database` `cancelled` `too_long`.
    #[schema(example = "too_many_rows")]
    code: &'static str,
    /// The reason in words.
    #[schema(example = "1200000 rows match, and an export has at most 1000000: narrow the filters")]
    message: String,
}

/// The sums of an export.
#[derive(Serialize, ToSchema)]
pub struct ExportSums {
    /// Over all rows.
    #[serde(flatten)]
    total: ExportSum,
    /// Of each state at each gateway that has rows.
    groups: Vec<ExportGroup>,
}

/// A sum over rows.
#[derive(Serialize, ToSchema)]
pub struct ExportSum {
    /// How many rows.
    count: i64,
    /// Their amounts, in yuan.
    #[schema(example = "300.00")]
    amount: String,
    /// Of orders: what was refunded, in yuan.
    #[schema(example = "0.00")]
    refunded_amount: String,
}

/// The sum of one state at one gateway.
#[derive(Serialize, ToSchema)]
pub struct ExportGroup {
    /// The state of the orders or refunds.
    #[schema(example = "paid")]
    status: &'static str,
    /// `alipay` or `wechat`.
    #[schema(example = "wechat")]
    payment_method: &'static str,
    /// Over its rows.
    #[serde(flatten)]
    sum: ExportSum,
}

impl ExportSum {
    fn of(sum: Sum) -> ExportSum {
        ExportSum { count: sum.count, amount: yuan(sum.amount), refunded_amount: yuan(sum.refunded) }
    }
}

impl ExportSums {
    fn of(sums: &Sums) -> ExportSums {
        let group = |(status, method, sum): (&'static str, domain::PaymentMethod, Sum)| ExportGroup {
            status,
            payment_method: method.as_str(),
            sum: ExportSum::of(sum),
        };
        ExportSums { total: ExportSum::of(sums.total()), groups: sums.groups().map(group).collect() }
    }
}

impl ExportView {
    fn of(id: &str, known: Known) -> ExportView {
        let mut view = ExportView {
            id: id.to_owned(),
            kind: known.kind,
            format: known.format,
            filters: known.filters,
            state: "running",
            rows_written: known.written,
            rows_total: known.total,
            bytes: None,
            sha256: None,
            sums: None,
            error: None,
            created_at: known.at,
            ended_at: known.ended_at,
            expires_at: known.expires_at,
        };
        match known.state {
            Stage::Running => {}
            Stage::Done { sealed, sums } => {
                (view.state, view.bytes, view.sha256) = ("done", Some(sealed.bytes), Some(sealed.sha256));
                view.sums = Some(ExportSums::of(&sums));
            }
            Stage::Failed { code, message } => {
                (view.state, view.error) = ("failed", Some(ExportFailure { code, message }));
            }
        }
        view
    }
}

/// A request for an export.
struct Requested {
    selection: Selection,
    format: Format,
    filters: Value,
}

impl Requested {
    fn parse(body: &Bytes, now: OffsetDateTime) -> Result<Requested, ApiError> {
        let mut fields = Fields::parse(body)?;
        let kind = fields.required("kind", |value| named(value, &names(Kind::ALL, Kind::as_str)));
        let format = fields.required("format", |value| named(value, &names(Format::ALL, Format::as_str)));
        let filters = fields.optional("filters", |value| {
            value.as_object().cloned().ok_or_else(|| "must be an object with the parameters of the list".to_owned())
        });
        fields.finish()?;
        // Without a fault both are there.
        let (Some(kind), Some(format)) = (kind, format) else { return Err(ApiError::field("kind", "is required")) };
        let filters = filters.unwrap_or_default();
        let (selection, created, is_narrow) = match kind {
            Kind::Orders => {
                let filter = read::<OrderFilters, _>(&filters, OrderFilters::read)?;
                (Selection::Orders(filter.clone()), filter.created, filter.has_an_index())
            }
            Kind::Refunds => {
                let filter = read::<RefundFilters, _>(&filters, RefundFilters::read)?;
                (Selection::Refunds(filter.clone()), filter.created, filter.has_an_index())
            }
        };
        bounded(&created, is_narrow, now)?;
        Ok(Requested { selection, format, filters: Value::Object(filters) })
    }
}

/// An export may read more than a list, because no request waits for it, and not everything.
fn bounded(created: &Created, is_narrow: bool, now: OffsetDateTime) -> Result<(), ApiError> {
    let fits = is_narrow || is_within(created, now, MOST_DAYS);
    if fits { Ok(()) } else { Err(ApiError::RangeRequired(NEEDS_RANGE)) }
}

fn named<T: std::str::FromStr>(value: &Value, all: &[&str]) -> Result<T, String> {
    let named = value.as_str().and_then(|name| name.parse().ok());
    named.ok_or_else(|| format!("must be {}", one_of(all.iter().copied())))
}

/// Reads the filters as the list reads its parameters. A misspelt one would select everything, so it is a fault.
fn read<T: DeserializeOwned + IntoParams, F>(
    filters: &Map<String, Value>,
    parse: impl Fn(&T, &mut Faults) -> F,
) -> Result<F, ApiError> {
    let known: Vec<String> = T::into_params(|| None).into_iter().map(|parameter| parameter.name).collect();
    let (mut texts, mut faults) = (Map::new(), Faults::default());
    for (name, value) in filters.iter().take(FieldFault::MOST) {
        match value {
            _ if !known.contains(name) => {
                faults.fault(&short(name), &format!("is not a parameter of this list; it has {}", known.join(", ")))
            }
            Value::Null => {}
            Value::String(_) => drop(texts.insert(name.clone(), value.clone())),
            Value::Bool(is) => drop(texts.insert(name.clone(), json!(is.to_string()))),
            _ => faults.fault(name, "must be text"),
        }
    }
    let typed: T = serde_json::from_value(Value::Object(texts)).map_err(ApiError::internal)?;
    let filter = parse(&typed, &mut faults);
    faults.finish().map_err(within_filters)?;
    Ok(filter)
}

/// The names of fields as they are in the body.
fn within_filters(error: ApiError) -> ApiError {
    let ApiError::InvalidFields(mut faults) = error else { return error };
    for fault in &mut faults {
        fault.field = format!("filters.{}", fault.field);
    }
    ApiError::InvalidFields(faults)
}

/// Export orders or refunds as a file.
#[utoipa::path(
    post, path = "/v1/admin/exports", tag = "admin", request_body = CreateExport,
    security(("backend" = ["payments:read"])),
    responses(
        (status = 202, description = "It runs; read its state at `Location`, from the same process", body = ExportView),
        (status = 400, description = "`invalid_fields`, `malformed_json`; `range_required`: an export without an indexed filter needs a range of at most 366 days", body = Problem),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 429, description = "`too_many_exports`: two run in this process already; `too_many_requests`: repeat after `Retry-After`", body = Problem),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonBytes(body): JsonBytes,
) -> Result<Response, ApiError> {
    let Requested { selection, format, filters } = Requested::parse(&body, app.clock.now())?;
    let (maker, subject) = (caller.identity.to_string(), shorten_chars(&caller.name(), 64).to_owned());
    let order = Order { maker: maker.clone(), subject, selection, format, filters };
    let id = app.exports.begin(order).map_err(|_| ApiError::TooManyExports)?;
    let known = app.exports.get(&id, &maker).ok_or(ApiError::ExportNotFound)?;
    let location = format!("/v1/admin/exports/{id}");
    Ok((StatusCode::ACCEPTED, [(LOCATION, location)], Json(ExportView::of(&id, known))).into_response())
}

/// Get the state of an export.
#[utoipa::path(
    get, path = "/v1/admin/exports/{id}", tag = "admin", security(("backend" = ["payments:read"])),
    params(("id" = String, Path, description = "The id of the export")),
    responses(
        (status = 200, description = "The export", body = ExportView),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 404, description = "`export_not_found`: this process has no such export of this caller", body = Problem),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    ExportPath(id): ExportPath,
) -> Result<Json<ExportView>, ApiError> {
    let known = app.exports.get(&id, &caller.identity.to_string()).ok_or(ApiError::ExportNotFound)?;
    Ok(Json(ExportView::of(&id, known)))
}

/// Get the file of an export.
#[utoipa::path(
    get, path = "/v1/admin/exports/{id}/file", tag = "admin", security(("backend" = ["payments:read"])),
    params(("id" = String, Path, description = "The id of the export")),
    responses(
        (status = 200, description = "The file", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = Problem),
        (status = 403, description = "`scope_missing`", body = Problem),
        (status = 404, description = "`export_not_found`: this process has no such export of this caller", body = Problem),
        (status = 409, description = "`export_not_ready`: it runs, or it has failed", body = Problem),
    )
)]
pub async fn file(
    State(app): State<Arc<App>>,
    caller: Caller,
    ExportPath(id): ExportPath,
) -> Result<Response, ApiError> {
    let maker = caller.identity.to_string();
    let opened = spawn_blocking(move || app.exports.fetch(&id, &maker)).await.map_err(ApiError::internal)?;
    let download = opened.map_err(|none| match none {
        NoFile::Unknown => ApiError::ExportNotFound,
        NoFile::NotReady => ApiError::ExportNotReady,
        NoFile::Disk(error) => ApiError::internal(error),
    })?;
    let name = HeaderValue::try_from(format!("attachment; filename=\"{}\"", download.name));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(download.format.media_type())),
        (CONTENT_LENGTH, HeaderValue::from(download.bytes)),
        (CONTENT_DISPOSITION, name.map_err(ApiError::internal)?),
    ];
    Ok((headers, in_pieces(download.file)).into_response())
}

/// The body that reads a file piece by piece, as the client takes them.
fn in_pieces(file: File) -> Body {
    Body::from_stream(stream::try_unfold(file, |mut file| async move {
        let read = spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let length = file.read(&mut piece)?;
            piece.truncate(length);
            std::io::Result::Ok((Bytes::from(piece), file))
        });
        let (piece, file) = read.await.map_err(std::io::Error::other)??;
        std::io::Result::Ok((!piece.is_empty()).then_some((piece, file)))
    }))
}

/// The id in a path.
pub struct ExportPath(String);

impl<S: Send + Sync> FromRequestParts<S> for ExportPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<ExportPath, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(id)| ExportPath(id)).map_err(|_| ApiError::ExportNotFound)
    }
}
