//! `POST /v1/callbacks/{alipay|wechat}/{account}`: verifies the sender, makes the bytes durable, answers. A worker
//! settles the payment.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::ALLOW;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use domain::message::callback::Callback;
use domain::{AccountName, PaymentMethod};
use gateway::{CallbackError, callback_headers};
use runtime::crash::{self, Point};
use tracing::field::display;
use tracing::{Span, warn};

use crate::access::guard::{ClientIp, is_allowed, is_listed, unknown_proxy};
use crate::answer::layers::unread;
use crate::answer::problem::Rendered;
use crate::create::intake::Receipt;
use crate::routes::callback_answers::{CallbackOutcome, CallbackRefusal, accepted, refused};
use crate::routes::layers::{BodyTime, Bounds, bounded};
use crate::state::App;

/// The time limit for the whole answer. The gateways stop waiting after 5 s.
const ANSWER: Duration = Duration::from_millis(4400);
/// The time limits for the body. The gateways send it at once, and their 5 s must also cover the rest.
const BODY: BodyTime = BodyTime { gap: Duration::from_secs(1), whole: Duration::from_secs(3) };

/// The routes of both gateways, with their own bounds.
pub fn router(app: &Arc<App>) -> Router<Arc<App>> {
    let bounds = Bounds { answer: ANSWER, body: BODY };
    let route = |method: PaymentMethod| {
        let path = format!("/v1/callbacks/{method}/{{account}}");
        let routes = Router::new().route(&path, post(callback).fallback(not_so));
        bounded(routes, app, &bounds).layer(middleware::from_fn(finish)).layer(Extension(method))
    };
    route(PaymentMethod::Alipay).merge(route(PaymentMethod::Wechat))
}

/// Handles one callback.
async fn callback(
    State(app): State<Arc<App>>,
    Extension(method): Extension<PaymentMethod>,
    Extension(client): Extension<ClientIp>,
    Path(account): Path<String>,
    request: Request,
) -> Response {
    warn_of_unknown_proxy(&app, &request);
    match take(&app, method, client, &account, request).await {
        Ok(receipt) => accepted(method, receipt),
        Err(refusal) => {
            if let Some(strike) = refusal.strike(method)
                && !is_listed(client.0, &app.callers.of(method))
            {
                app.strikes.add(strike, client.0, tokio::time::Instant::now());
            }
            refused(method, refusal)
        }
    }
}

/// Warns of a proxy that is not trusted. All callbacks behind it come from one address, so forged callbacks block the
/// genuine ones. Any client can send the header, too, so the warning is rare.
fn warn_of_unknown_proxy(app: &App, request: &Request) {
    let Some(peer) = unknown_proxy(request, &app.settings.trusted_proxies) else { return };
    if app.unknown_proxy.is_due(tokio::time::Instant::now()) {
        warn!(
            %peer,
            "A callback with X-Forwarded-For came from {peer}, which is not in TRUSTED_PROXIES. If it is your proxy, \
             add it: until then all that it forwards counts as its own, and forged callbacks block the genuine ones"
        );
    }
}

/// Runs the cheap checks first, verifies the signature, and stores the callback last.
async fn take(
    app: &App,
    method: PaymentMethod,
    ClientIp(address): ClientIp,
    account: &str,
    request: Request,
) -> Result<Receipt, CallbackRefusal> {
    let listed = admit(app, method, address)?;
    let account = AccountName::parse(account).map_err(|_| CallbackRefusal::UnknownAccount)?;
    let gateway = app.accounts.get(method, &account).ok_or(CallbackRefusal::UnknownAccount)?;
    Span::current().record("account", account.as_str());

    // A slow body holds a share of its address. It takes a slot only after it has arrived.
    let share = if listed { None } else { Some(app.in_hand.bodies.take(address).ok_or(CallbackRefusal::TooMany)?) };
    let callback = read(app, method, account, request).await?;
    drop(share);
    crash::at(Point::IntakeRead);
    let _slot = app.in_hand.callbacks.try_acquire().map_err(|_| CallbackRefusal::Unavailable)?;
    let verified = gateway.verify_arriving(callback, app.clock.now()).await.map_err(explain)?;
    crash::at(Point::IntakeVerified);
    app.intake.store(verified).await.map_err(|lost| {
        note(&lost);
        CallbackRefusal::Unavailable
    })
}

/// Refuses an address that is blocked because of strikes, or that may not send callbacks. Returns whether the gateway's
/// list has the address. A listed address is never blocked because of strikes.
fn admit(app: &App, method: PaymentMethod, address: IpAddr) -> Result<bool, CallbackRefusal> {
    let known = app.callers.of(method);
    let listed = is_listed(address, &known);
    if !listed && app.strikes.is_out(address, tokio::time::Instant::now()) {
        return Err(CallbackRefusal::TooMany);
    }
    if is_allowed(address, &known) { Ok(listed) } else { Err(CallbackRefusal::WrongAddress) }
}

/// Reads the unchanged bytes, at most 64 KiB (`LONGEST_BODY`), and only those headers that the signature needs.
async fn read(
    app: &App,
    method: PaymentMethod,
    account: AccountName,
    request: Request,
) -> Result<Callback, CallbackRefusal> {
    let stored = callback_headers(method).iter().filter_map(|name| {
        let value = request.headers().get(*name)?;
        Some(value.to_str().map(|value| ((*name).to_owned(), value.to_owned())))
    });
    let headers = stored.collect::<Result<_, _>>().map_err(|_| CallbackRefusal::Malformed)?;
    let body = Bytes::from_request(request, &()).await;
    let body = body.map_err(|rejection| CallbackRefusal::of_layer(unread(&rejection)))?;
    Ok(Callback { method, account, headers, body, received_at: app.clock.now(), job_id: None })
}

fn explain(error: CallbackError) -> CallbackRefusal {
    note(&error);
    error.into()
}

/// Adds to the request's log line the reason that the answer does not reveal.
fn note(reason: &dyn std::fmt::Display) {
    Span::current().record("reason", display(reason));
}

async fn not_so() -> StatusCode {
    StatusCode::METHOD_NOT_ALLOWED
}

/// Counts and times each callback, and renders the bare answers of layers in the gateway's format.
async fn finish(Extension(method): Extension<PaymentMethod>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let mut response = next.run(request).await;
    if response.extensions().get::<Rendered>().is_none() {
        let allowed = response.headers_mut().remove(ALLOW);
        response = refused(method, CallbackRefusal::of_layer(response.status()));
        response.headers_mut().extend(allowed.map(|methods| (ALLOW, methods)));
    }
    let outcome = response.extensions().get::<CallbackOutcome>().map_or("unknown", |outcome| outcome.0);
    Span::current().record("outcome", outcome);
    let labels = [("gateway", method.as_str()), ("outcome", outcome)];
    metrics::counter!("callbacks_received_total", &labels).increment(1);
    metrics::histogram!("callback_answer_duration_seconds", &labels).record(began.elapsed().as_secs_f64());
    response
}
