//! `paymentctl export`: orders or refunds as a file for the finance department.
//!
//! It changes no order and no refund, so it takes no `--yes`. It writes a file, and a row in the log of people's actions.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use domain::{PaymentMethod, UnknownName};
use export::desk::{MADE, detail};
use export::{ExportError, Format, Limits, Selection, Task, make};
use runtime::beijing::midnight;
use runtime::error_chain::chain;
use serde_json::{Value, json};
use store::DbError;
use store::page::Created;
use store::tables::audit::{self, Act};
use store::tables::order_list::OrderFilter;
use store::tables::refund_list::RefundFilter;
use time::macros::format_description;
use time::{Date, OffsetDateTime};
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, Problem, lines, moment};
use crate::place::{Place, signature};
use crate::when;

/// What to export.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Export orders.
    Orders(Export),
    /// Export refunds.
    Refunds(Export),
}

/// Which rows, and where to.
#[derive(Debug, Clone, Args)]
pub struct Export {
    /// Only those that were created at this time or later: 2026-11-01 (in Beijing), 2026-11-01T08:00:00+08:00, or 30d (ago).
    #[arg(long, value_name = "TIME", value_parser = when::moment)]
    pub from: when::Moment,
    /// Only those that were created before this time, or until the end of this date in Beijing.
    #[arg(long, value_name = "TIME", value_parser = end)]
    pub to: when::Moment,
    /// Only those at this gateway: alipay or wechat.
    #[arg(long, value_name = "METHOD", value_parser = name::<PaymentMethod>)]
    pub method: Option<PaymentMethod>,
    /// csv or xlsx.
    #[arg(long, value_name = "FORMAT", value_parser = name::<Format>)]
    pub format: Format,
    /// The file to write. It must not exist. Only this user may read it.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

fn name<T: std::str::FromStr<Err = UnknownName>>(text: &str) -> Result<T, UnknownName> {
    text.parse()
}

/// The end of a range: a date is in it.
fn end(text: &str) -> Result<when::Moment, String> {
    let date = Date::parse(text, format_description!("[year]-[month]-[day]")).ok().and_then(Date::next_day);
    date.map_or_else(|| when::moment(text), |next| Ok(when::Moment::At(midnight(next))))
}

/// Runs the command. The operator is recorded.
///
/// # Errors
/// [`Problem`]; then there is no file.
pub async fn run(place: &Place, command: &Command, operator: Option<&str>) -> Result<Answer, Problem> {
    let signature = signature(true, operator)?.unwrap_or_default();
    let (Command::Orders(export) | Command::Refunds(export)) = command;
    let now = place.clock.now();
    let task = task(command, export, now)?;
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    let made = make(&place.db, &task, &export.out, &Arc::default(), &stop).await;
    let made = made.map_err(|error| problem(&error, export))?;
    let detail = detail(task.kind(), task.format, &filters(export, now), &made);
    let object = format!("export:{:032x}", place.clock.fresh_bits());
    let act = Act { subject: &signature, act: MADE, object, detail: &detail };
    if let Err(error) = record(place, &act).await {
        // An export that is not recorded must not leave the house.
        let _ = std::fs::remove_file(&export.out);
        return Err(error.into());
    }
    let total = made.sums.total();
    let said = [
        format!("{} {} in {}, {} bytes", total.count, task.kind(), export.out.display(), made.sealed.bytes),
        format!("SHA-256 {}", made.sealed.sha256),
    ];
    let json = json!({
        "file": export.out.display().to_string(), "rows": total.count, "amount": export::cell::yuan(total.amount),
        "refunded_amount": export::cell::yuan(total.refunded), "bytes": made.sealed.bytes, "sha256": made.sealed.sha256,
    });
    Ok(Answer::done(lines(&said), json))
}

fn task(command: &Command, export: &Export, now: OffsetDateTime) -> Result<Task, Problem> {
    let created = Created { from: Some(export.from.at(now)), to: Some(export.to.at(now)) };
    if created.from >= created.to {
        return Err(Problem::usage("--to is not after --from", "give the beginning of the range with --from"));
    }
    let payment_method = export.method;
    let selection = match command {
        Command::Orders(_) => Selection::Orders(OrderFilter { created, payment_method, ..OrderFilter::default() }),
        Command::Refunds(_) => Selection::Refunds(RefundFilter { created, payment_method, ..RefundFilter::default() }),
    };
    let filters = filters(export, now).to_string();
    Ok(Task { selection, format: export.format, filters, at: now, limits: Limits::default() })
}

/// The filters, by the names that the API gives them.
fn filters(export: &Export, now: OffsetDateTime) -> Value {
    let mut filters = json!({ "created_from": moment(export.from.at(now)), "created_to": moment(export.to.at(now)) });
    if let Some(method) = export.method {
        filters["payment_method"] = json!(method);
    }
    filters
}

async fn record(place: &Place, act: &Act<'_>) -> Result<(), DbError> {
    let mut connection = place.db.acquire().await?;
    audit::record_operator(&mut connection, act).await
}

fn problem(error: &ExportError, export: &Export) -> Problem {
    let hint = match error {
        ExportError::TooManyRows { .. } => "take a shorter range, and a file for each".to_owned(),
        ExportError::Disk(_) => format!("{} must not exist, and its folder must have room", export.out.display()),
        ExportError::SumsDiffer(_) | ExportError::Cell(_) => "report this: the exporter has a defect".to_owned(),
        ExportError::Db(_) | ExportError::Audit(_) => "`paymentctl doctor` checks the database".to_owned(),
        ExportError::Cancelled | ExportError::TooLong(_) => "no file is left; run it again".to_owned(),
    };
    Problem::failed(chain(error), hint)
}
