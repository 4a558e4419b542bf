//! Observability of a process: JSON lines on standard output, and metrics for Prometheus.
//!
//! A log line is one JSON object with `timestamp`, `level`, `service`, `target` and `message` at the top level. The
//! fields of the event and of the spans around it are on the same level. Library logs that would show a message's
//! content are switched off.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use metrics_exporter_prometheus::PrometheusHandle;

use crate::clock::Clock;
use crate::env::Fault;
use crate::panics::Panicked;

/// Bounds of every histogram of seconds. An alert looks for callbacks slower than 30 s, so 30 is one of the bounds.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Bounds of every histogram of counts.
const SIZES: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// How often the recorder processes the samples that the histograms have collected.
const UPKEEP: Duration = Duration::from_secs(5);

/// Chooses the crypto provider for all TLS in this process. Call it in the first line of every `main`; otherwise the
/// first library that connects chooses one.
pub fn install_crypto() {
    // Fails only if a provider was chosen before, and every caller chooses this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Log levels of the AMQP client library that no `RUST_LOG` can raise. The library prints message bodies, headers and
/// credentials, and returned messages as a whole; it also logs every refused topology check as an error. It returns its
/// errors to us as well, and we log them in our own words.
const LOG_CAPS: [&str; 2] = ["lapin=off", "amq_protocol=info"];

/// Sends this process's logs to standard output as JSON; `RUST_LOG` chooses the levels, `info` by default.
///
/// # Errors
/// The fault of an unreadable `RUST_LOG`; logging still works, with the default levels.
pub fn init(service: &'static str) -> Result<(), Fault> {
    let requested = std::env::var("RUST_LOG").ok().filter(|value| !value.is_empty());
    let (filter, fault) = match EnvFilter::try_new(requested.as_deref().unwrap_or("info")) {
        Ok(filter) => (filter, Ok(())),
        Err(_) => (
            EnvFilter::new("info"),
            Err(Fault::new(
                "RUST_LOG",
                "it cannot be read",
                "set it to a level or to directives such as info,sqlx=warn",
            )),
        ),
    };
    panic::set_hook(Box::new(move |panicked| to_stdout(&panic_line(service, panicked))));
    // Fails only if logging was set up before, as tests in one process do.
    let _ = lines(filter, JsonLines { service, write: to_stdout }).try_init();
    fault
}

/// Collects metrics from now on; the handle renders them (see [`crate::health`]). Call it once, inside the runtime.
///
/// # Errors
/// If a recorder was installed before.
pub(crate) fn install_metrics() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &SIZES)?
        .install_recorder()?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// The events that `filter` allows and no cap forbids, written as lines.
fn lines<W>(filter: EnvFilter, json: JsonLines<W>) -> impl Subscriber + Send + Sync
where
    W: Fn(&[u8]) + Send + Sync + 'static,
{
    // The caps are a separate filter. Inside `RUST_LOG` they would lose to any directive that names a longer part of a
    // target.
    let mut caps = Targets::new().with_default(filter.max_level_hint().unwrap_or(LevelFilter::TRACE));
    caps.extend(LOG_CAPS.iter().filter_map(|cap| cap.parse::<Targets>().ok()).flatten());
    tracing_subscriber::registry().with(filter).with(caps).with(json)
}

fn to_stdout(line: &[u8]) {
    // If standard output is closed, there is no place left to report that.
    let _ = std::io::stdout().lock().write_all(line);
}

/// A panic as one log line, with its source location. It is written by hand because a panic may happen during logging.
/// The code that catches the panic logs what the work was about.
fn panic_line(service: &str, panicked: &PanicHookInfo<'_>) -> Vec<u8> {
    let place = panicked.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let now = Clock::system().now().format(&Rfc3339).unwrap_or_default();
    let mut line = Line::default();
    line.put("timestamp", &json(&now));
    line.put("level", &json("ERROR"));
    line.put("service", &json(service));
    line.put("target", &json("panic"));
    line.put("message", &json(format!("A thread panicked at {place}")));
    line.put("panic", &json(Panicked::of(panicked.payload()).message()));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        line.put("backtrace", &json(backtrace.to_string()));
    }
    line.text.extend_from_slice(b"}\n");
    line.text
}

/// Writes each event as one line of JSON, so that no logged input can forge a line.
struct JsonLines<W> {
    service: &'static str,
    write: W,
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn(&[u8]) + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Line::default();
        // A time outside the years 0 to 9999 cannot be written; a line with an empty timestamp is better than none.
        let now = Clock::system().now().format(&Rfc3339).unwrap_or_default();
        line.put("timestamp", &json(&now));
        line.put("level", &json(event.metadata().level().as_str()));
        line.put("service", &json(self.service));
        line.put("target", &json(event.metadata().target()));
        let mut said = Fields::default();
        event.record(&mut said);
        line.put_all(&said);
        line.put("message", "\"\"");
        // From the innermost span outwards: the nearest value of a field is used.
        for span in context.event_scope(event).into_iter().flatten() {
            line.put("span", &json(span.name()));
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.put_all(fields);
            }
        }
        line.text.extend_from_slice(b"}\n");
        (self.write)(&line.text);
    }
}

/// A line that is being written.
#[derive(Default)]
struct Line {
    text: Vec<u8>,
    names: Vec<Cow<'static, str>>,
}

impl Line {
    /// Writes a field, unless a field of this name is already written. The name is snake_case in code and camelCase on the
    /// line, as the specification's log format has `orderId` and `userId`.
    fn put(&mut self, name: &'static str, json_value: &str) {
        let name = camel_case(name);
        if self.names.contains(&name) {
            return;
        }
        self.text.push(if self.names.is_empty() { b'{' } else { b',' });
        self.text.extend_from_slice(json(&name).as_bytes());
        self.text.push(b':');
        self.text.extend_from_slice(json_value.as_bytes());
        self.names.push(name);
    }

    fn put_all(&mut self, fields: &Fields) {
        for (name, value) in &fields.0 {
            self.put(name, value);
        }
    }
}

/// `order_no` becomes `orderNo`. A name without `_` stays as it is.
fn camel_case(name: &'static str) -> Cow<'static, str> {
    if !name.contains('_') {
        return name.into();
    }
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel.into()
}

/// The fields of an event, or of a span, which stores them for the events inside it: names, and values as JSON.
#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Fields {
    fn set(&mut self, field: &Field, value: impl Serialize) {
        let value = json(value);
        match self.0.iter_mut().find(|(name, _)| *name == field.name()) {
            Some((_, earlier)) => *earlier = value,
            None => self.0.push((field.name(), value)),
        }
    }
}

/// Everything that is logged can be written as JSON: texts, numbers, booleans.
fn json(value: impl Serialize) -> String {
    serde_json::to_string(&value).unwrap_or_else(|_| "null".to_owned())
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.set(field, crate::error_chain::chain(value));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Map, Value};
    use time::OffsetDateTime;

    use super::*;

    /// The lines that are logged while `work` runs under this `RUST_LOG`.
    fn written(directives: &str, work: impl FnOnce()) -> Vec<String> {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = written.clone();
        let write = move |line: &[u8]| sink.lock().unwrap().push(line.to_vec());
        let subscriber = lines(EnvFilter::new(directives), JsonLines { service: "test", write });
        tracing::subscriber::with_default(subscriber, work);
        let written = written.lock().unwrap();
        written.iter().map(|line| String::from_utf8(line.clone()).unwrap()).collect()
    }

    /// The same lines, each parsed.
    fn logged(directives: &str, work: impl FnOnce()) -> Vec<Map<String, Value>> {
        written(directives, work).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn the_nearest_value_of_a_field_counts_and_stands_there_once() {
        let lines = written("trace", || {
            let outer = tracing::info_span!("outer", account = "far", outcome = "far", route = "/a");
            let inner = outer.in_scope(|| tracing::info_span!("inner", account = "near", outcome = 1));
            inner.record("outcome", 2.5);
            inner.in_scope(
                || tracing::info!(account = "nearest", ok = true, why = ?Some("\"x\"\n"), service = "forged"),
            );
        });
        let line: Map<String, Value> = serde_json::from_str(&lines[0]).unwrap();
        for (field, value) in
            [("account", "nearest"), ("route", "/a"), ("span", "inner"), ("service", "test"), ("message", "")]
        {
            assert_eq!(line[field], value);
            assert_eq!(lines[0].matches(&format!("{field:?}:")).count(), 1, "{}", lines[0]);
        }
        assert_eq!((&line["outcome"], &line["ok"]), (&2.5.into(), &true.into()));
        assert_eq!(line["why"], "Some(\"\\\"x\\\"\\n\")");
        assert_eq!(lines[0].matches('\n').count(), 1, "one line");
    }

    #[test]
    fn a_line_has_its_fields_at_the_top() {
        let lines = logged("trace", || {
            let span = tracing::info_span!("job", order_id = "o1", amount_fen = tracing::field::Empty);
            span.record("amount_fen", 5);
            span.in_scope(|| tracing::warn!(user_id = "u1", service = "forged", "Two\nlines"));
        });
        let line = &lines[0];
        for (field, value) in [("message", "Two\nlines"), ("level", "WARN"), ("service", "test"), ("orderId", "o1")] {
            assert_eq!(line[field], value);
        }
        assert_eq!((&line["userId"], &line["amountFen"], &line["span"]), (&"u1".into(), &5.into(), &"job".into()));
        OffsetDateTime::parse(line["timestamp"].as_str().unwrap(), &Rfc3339).unwrap();
    }

    #[test]
    fn message_bodies_stay_out_of_the_log_whatever_is_requested() {
        for directives in [
            "trace",
            "lapin=trace",
            "lapin::returned_messages=warn",
            "info,lapin::returned_messages=trace,lapin::channel=trace,amq_protocol::frame=trace",
            "[{message}]=trace,[job]=trace",
        ] {
            let lines = logged(&format!("{directives},shared=debug"), || {
                let _job = tracing::info_span!("job").entered();
                tracing::warn!(target: "lapin::returned_messages", "body");
                tracing::error!(target: "lapin", "refused");
                tracing::debug!(target: "lapin::channel", "frame");
                tracing::trace!(target: "amq_protocol::frame::parsing", "frame");
                tracing::debug!(target: "shared", "kept");
            });
            let messages: Vec<&Value> = lines.iter().map(|line| &line["message"]).collect();
            assert_eq!(messages, ["kept"], "{directives}");
        }
    }

    #[test]
    fn a_panic_is_one_line_with_its_place() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = written.clone();
        let standard = panic::take_hook();
        // Other tests may panic at the same time.
        panic::set_hook(Box::new(move |panicked| sink.lock().unwrap().push(panic_line("test", panicked))));
        let caught = crate::panics::caught_now(|| -> () { panic!("two\nlines, of a hook's test") });
        panic::set_hook(standard);
        assert!(caught.is_err());
        let written = written.lock().unwrap();
        let texts = written.iter().map(|line| std::str::from_utf8(line).unwrap());
        let text = texts.filter(|text| text.contains("of a hook's test")).collect::<String>();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let line: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let message = line["message"].as_str().unwrap();
        assert!(message.starts_with("A thread panicked at shared/runtime/src/telemetry.rs:"), "{message}");
        assert_eq!((&line["panic"], &line["level"]), (&"two\nlines, of a hook's test".into(), &"ERROR".into()));
    }

    #[test]
    fn the_caps_lift_no_level() {
        let lines = logged("warn", || {
            tracing::info!(target: "amq_protocol", "not asked for");
            tracing::info!(target: "shared", "not asked for");
            tracing::warn!(target: "amq_protocol", "kept");
        });
        assert_eq!(lines.len(), 1);
    }
}
