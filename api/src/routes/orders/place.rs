//! Places an order: one statement creates it, then the gateway gives the credential, then the answer is saved.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Bytes;
use domain::message::job::{CheckRequest, JobRequest};
use domain::message::schedule::CHECKS;
use domain::{OrderId, OrderNo, OrderNoError, OrderStatus, Scene, VouchedBy, first_id_at};
use gateway::{Gateway, GatewayError, Payment, PrepayOrder, PrepayRequest};
use runtime::crash::{self, Point};
use runtime::error_chain::chain;
use serde::Deserialize as _;
use serde_json::Value;
use store::DbError;
use store::tables::jobs;
use store::tables::orders::{self, Created, NewOrder, Order};
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;
use tracing::field::display;
use tracing::{Span, info};

use super::body::{OrderRequest, Sender};
use super::close::request_close_and_check;
use super::view::{OrderView, PayableOrder, created};
use super::vouch::vouched;
use crate::access::caller::Identity;
use crate::answer::problem::{ApiError, FieldFault};
use crate::create::credentials;
use crate::create::fields::Fields;
use crate::create::idempotency::{Answer, Earlier, Hold, Request, in_flight};
use crate::create::numbers::{dated, microseconds};
use crate::state::App;

/// No order that is older waits for a payment: `expires_in` is a week at most.
const PENDING: Duration = Duration::days(8);

/// Everything that placing an order needs, owned: the work continues when the client has gone.
pub struct Placement {
    pub app: Arc<App>,
    pub request: Request,
    pub identity: Identity,
    pub client_ip: IpAddr,
    pub body: Bytes,
}

impl Placement {
    /// Places the order, or continues with the order that an earlier request placed.
    pub async fn run(self) -> Result<Answer, ApiError> {
        let began = Instant::now();
        let App { turns, db, clock, .. } = self.app.as_ref();
        let _turn = self.request.turn(turns, db, clock).await?;
        let drafted = self.draft().await;
        let labels = drafted.as_ref().ok().map(|Draft { new, .. }| (new.payment_method.as_str(), new.scene.as_str()));
        let judged = match drafted {
            Ok(draft) => self.judge(draft).await,
            Err(refusal) => Err(refusal.into()),
        };
        let done = self.place(judged, began).await;
        if let Some((method, scene)) = labels {
            let label = |(how, answer): &(&'static str, Answer)| if answer.is_refusal() { "refused" } else { *how };
            let outcome = done.as_ref().map_or_else(outcome, label);
            let labels = [("method", method), ("scene", scene), ("outcome", outcome)];
            metrics::counter!("orders_created_total", &labels).increment(1);
        }
        done.map(|(_, answer)| answer)
    }

    /// Checks that buyers may currently choose this payment method, scene and amount, that the buyer does not hold too many
    /// open orders, and that the purchase has no other order.
    async fn judge(&self, draft: Draft) -> Result<Draft, NotNew> {
        let new = &draft.new;
        let App { cache, db, settings, .. } = self.app.as_ref();
        let config = cache.config.get(db).await.map_err(ApiError::from)?;
        config.check(new.payment_method, new.scene, new.amount).map_err(ApiError::NotOffered)?;
        if let Some(order) = orders::of_purchase(db, &new.purchase).await.map_err(ApiError::from)? {
            return Err(NotNew::Another(Box::new(order), Box::new(draft)));
        }
        let most = settings.pending_per_user;
        if most > 0 && matches!(self.identity, Identity::Buyer(_)) {
            // No order lives longer than a week, so older ones are not pending for long.
            let first = OrderId::from_u128(first_id_at(new.created_at - PENDING));
            if orders::pending_of(db, &new.user_id, first, new.created_at, most).await.map_err(ApiError::from)? >= most
            {
                return Err(ApiError::TooManyPending(most).into());
            }
        }
        Ok(draft)
    }

    async fn place(&self, judged: Result<Draft, NotNew>, began: Instant) -> Result<(&'static str, Answer), ApiError> {
        let Draft { mut new, prepay } = match judged {
            Ok(draft) => draft,
            // A request that was accepted once is not checked again by rules that have changed since.
            Err(NotNew::Refused(refusal)) => return self.resume(began).await?.ok_or(refusal),
            Err(NotNew::Another(order, draft)) => return self.instead(*order, &draft, began).await,
        };
        Span::current().record("order_id", display(new.id));
        let order = created(&new);
        new.answer = self.answer_here(&order)?;
        if new.answer.is_some() {
            new.key = self.request.answered_key(new.created_at, new.expires_at);
        }
        crash::at(Point::OrderDrafted);
        let held_until = new.key.held_until;
        let named = new.purchase.is_named().then(|| new.clone());
        let made = match (self.app.writer.create(new).await, named) {
            // Another request placed it at this moment.
            (Err(DbError::PurchaseTaken(_)), Some(new)) => {
                let order = orders::of_purchase(&self.app.db, &new.purchase).await?;
                let order = order.ok_or(ApiError::RequestInFlight)?;
                return self.instead(order, &Draft { new, prepay }, began).await;
            }
            (made, _) => made.map_err(in_flight)?,
        };
        crash::at(Point::OrderPlaced);
        match made {
            Created::Answered(saved) => Ok(("created", Answer::fresh(order.id.to_string(), saved))),
            Created::Unanswered => {
                let hold = held_until.map(|until| self.request.hold(&self.app.db, until));
                let hold = hold.ok_or_else(|| ApiError::Internal("a new key without a hold".into()))?;
                Ok(("created", self.answer(&order, hold).await?))
            }
            // So an order exists, unless the key expired at this very moment.
            Created::Taken => self.resume(began).await?.ok_or(ApiError::RequestInFlight),
        }
    }

    /// The answer to a request whose purchase has an order already: the first answer, if this request placed it, or else
    /// that order, if it is the one that the request describes.
    async fn instead(&self, order: Order, draft: &Draft, began: Instant) -> Result<(&'static str, Answer), ApiError> {
        let new = &draft.new;
        if let Some(earlier) = self.resume(began).await? {
            return Ok(earlier);
        }
        Span::current().record("order_id", display(order.id));
        let by_offer = new.purchase.offer_id.is_some();
        let may_see = order.user_id == new.user_id || !matches!(self.identity, Identity::Buyer(_));
        let order_id = may_see.then_some(order.id);
        if order.status.was_paid() {
            return Err(ApiError::PurchaseUsed { by_offer, order_id });
        }
        let is_open = order.expires_at > new.created_at && order.close_requested_at.is_none();
        if !is_open || !self.is_same(&order, draft)? {
            return Err(ApiError::PurchaseOpen { by_offer, order_id });
        }
        let answer = value(renewed(&self.app, &order).await?)?;
        Ok(("found", Answer::found(order.id.to_string(), answer, new.expires_at)))
    }

    /// The answer, if the credential needs no call to the gateway. The answer is then written together with the order,
    /// so that no crash can separate the two. If signing fails, [`payable`] tries again and returns the error.
    fn answer_here(&self, order: &Order) -> Result<Option<Value>, ApiError> {
        let payment = account_of(&self.app, order)?.prepay_here(&stored(order)?, order.created_at);
        payment.ok().flatten().map(|payment| value(shown(&self.app, order, payment)?)).transpose()
    }

    /// The result of an earlier request with this key. If that request broke off, this one completes its work.
    async fn resume(&self, began: Instant) -> Result<Option<(&'static str, Answer)>, ApiError> {
        let (order_id, hold) = match self.request.take_up(&self.app.db, &self.app.clock, began).await? {
            None => return Ok(None),
            Some(Earlier::Answered(answer)) => return Ok(Some(("repeated", answer))),
            Some(Earlier::Unfinished(order_id, hold)) => (order_id, hold),
        };
        Span::current().record("order_id", display(order_id));
        let order = orders::get(&self.app.db, order_id).await?.ok_or(ApiError::Db(DbError::Moved))?;
        Ok(Some(("resumed", self.answer(&order, hold).await?)))
    }

    async fn answer(&self, order: &Order, hold: Hold) -> Result<Answer, ApiError> {
        let done = payable(&self.app, order).await.and_then(value);
        crash::at(Point::OrderOffered);
        let saved = hold.store(order.id, done).await;
        crash::at(Point::OrderAnswered);
        saved
    }

    /// The order as it will be written; nothing is written yet.
    async fn draft(&self) -> Result<Draft, ApiError> {
        let app = &self.app;
        let mut fields = Fields::parse(&self.body)?;
        let vouched = vouched(app, &self.identity, &mut fields).await?;
        let long_user_ids = app.tokens.bearer.takes_long_user_ids();
        let sender = Sender { identity: &self.identity, address: self.client_ip, long_user_ids };
        let origins = &app.settings.return_url_origins;
        let request = OrderRequest::parse(fields, vouched, sender, origins, app.accounts.as_ref())?;
        let (method, scene, account) = (request.payment_method, request.scene, request.gateway.account().clone());

        let id = app.clock.fresh_id();
        let now = microseconds(app.clock.now());
        let order_no = order_no(id, now).map_err(|error| ApiError::Internal(error.into()))?;
        let prepay = PrepayOrder {
            order_no: order_no.clone(),
            subject: request.subject.clone(),
            amount: request.amount,
            scene,
            // Whole seconds, because the gateways count in whole seconds.
            expires_at: request.expires_at(now).replace_nanosecond(0).unwrap_or(now),
            notify_url: format!("{}/v1/callbacks/{method}/{account}", app.settings.public_url),
            return_url: request.return_url,
            openid: request.openid,
            client_ip: request.client_ip,
        };
        let expires_at = prepay.expires_at;
        let params = request.gateway.prepay_request(&prepay).map_err(unfit)?;
        let new = NewOrder {
            id,
            user_id: request.user_id,
            order_no,
            product_type: request.product_type,
            subject: request.subject,
            amount: request.amount,
            payment_method: method,
            scene,
            account,
            expires_at,
            purchase: request.purchase,
            client_ip: request.client_ip,
            metadata: request.metadata,
            prepay: serde_json::to_value(params).map_err(|error| ApiError::Internal(error.into()))?,
            check_in: CHECKS[0],
            created_at: now,
            key: self.request.held_key(now, expires_at),
            answer: None,
        };
        Ok(Draft { new, prepay })
    }

    /// Whether an order is the one that a request describes. A buyer who has chosen another way to pay closes it first.
    fn is_same(&self, order: &Order, Draft { new, prepay }: &Draft) -> Result<bool, ApiError> {
        let chosen =
            (order.payment_method, order.scene, &order.account) == (new.payment_method, new.scene, &new.account);
        let sold = (&order.product_type, &order.subject, order.amount) == (&new.product_type, &new.subject, new.amount);
        let number = order.merchant_order_no == new.purchase.merchant_order_no;
        if !(chosen && sold && number && order.user_id == new.user_id && order.metadata == new.metadata) {
            return Ok(false);
        }
        // A phone may get another address at any time.
        if order.scene == Scene::H5 {
            return Ok(true);
        }
        let (order_no, expires_at) = (order.order_no.clone(), order.expires_at);
        let prepay = PrepayOrder { order_no, expires_at, ..prepay.clone() };
        Ok(account_of(&self.app, order)?.prepay_request(&prepay).map_err(unfit)? == stored(order)?)
    }
}

/// An order as it will be written, and what the gateway is to be asked for it.
struct Draft {
    new: NewOrder,
    prepay: PrepayOrder,
}

/// Why a request creates no order.
enum NotNew {
    /// It is refused.
    Refused(ApiError),
    /// The purchase has this order. The other one is what the request would have created.
    Another(Box<Order>, Box<Draft>),
}

impl From<ApiError> for NotNew {
    fn from(refusal: ApiError) -> NotNew {
        NotNew::Refused(refusal)
    }
}

/// Requests the first credential of an order from the gateway, with the parameters that were fixed when it was placed.
pub async fn payable(app: &App, order: &Order) -> Result<PayableOrder, ApiError> {
    match offer(app, order).await? {
        Offer::Made(payment) => shown(app, order, payment),
        Offer::NotMade(error) => Err(failed(app, order.id, error).await),
    }
}

/// Requests a fresh credential for an order whose last credential the buyer may already use. So a refusal does not
/// close the order, and the last credential is returned again while it is valid, also if the order has had too many.
pub async fn renewed(app: &App, order: &Order) -> Result<PayableOrder, ApiError> {
    can_be_paid(app, order)?;
    let calls = account_of(app, order)?.credential_lives(order.scene).is_some();
    if calls && let Err(too_many) = app.limits.credential(order.id).await {
        let last = credentials::last(&app.db, app.seal.as_deref(), order, app.clock.now()).await?;
        return shown(app, order, last.ok_or(too_many)?);
    }
    let error = match offer(app, order).await? {
        Offer::Made(payment) => return shown(app, order, payment),
        Offer::NotMade(error) => error,
    };
    // The gateway may have created a credential although its answer was lost, and a new credential can invalidate the
    // last one. A repeat gets a credential that works.
    if matches!(error, GatewayError::Unknown(_) | GatewayError::Protocol(_)) {
        return Err(unmade(error));
    }
    let ended = if error.says_paid() {
        Some("paid at the gateway")
    } else {
        error.says_closed().then_some("closed at the gateway")
    };
    if let Some(ended) = ended {
        // No credential works any more. The check finds the payment, or finds that the order is closed.
        jobs::request(&app.db, &JobRequest::Check(order.id, CheckRequest::default()), Duration::ZERO).await?;
        return Err(ApiError::OrderNotPayable(ended));
    }
    let last = credentials::last(&app.db, app.seal.as_deref(), order, app.clock.now()).await?;
    let outcome = if last.is_some() { "kept" } else { "none" };
    metrics::counter!("credentials_refused_total", "gateway" => order.payment_method.as_str(), "answered" => outcome)
        .increment(1);
    match (last, error) {
        (Some(payment), error) => {
            info!(error = chain(&error), order_id = %order.id, "The gateway gave no fresh credential; the last one is returned again");
            shown(app, order, payment)
        }
        (None, error @ GatewayError::Refused { .. }) => Err(ApiError::CredentialRefused(error)),
        (None, error) => Err(unmade(error)),
    }
}

/// What the gateway answered to a request for a credential.
enum Offer {
    /// With it the buyer can pay.
    Made(Payment),
    /// There is none; the caller decides what this means for the order.
    NotMade(GatewayError),
}

/// Checks that a credential of the order would be of use.
///
/// # Errors
/// [`ApiError::OrderNotPayable`], [`ApiError::PriceNotVouched`].
fn can_be_paid(app: &App, order: &Order) -> Result<(), ApiError> {
    // A refusal reveals the order's state, too: from now on the cache must not show an older one.
    app.cache.orders.saw(order);
    if order.status != OrderStatus::Pending {
        return Err(ApiError::OrderNotPayable(order.status.as_str()));
    }
    if order.expires_at <= app.clock.now() {
        return Err(ApiError::OrderNotPayable("expired"));
    }
    // Such as an order from the days of a simulator, whose account takes real money since.
    let is_real = app.accounts.is_production(order.payment_method, &order.account);
    let by_buyer = order.vouched_by == Some(VouchedBy::Buyer);
    if by_buyer && is_real && !app.settings.buyer_prices.takes_any(app.accounts.are_simulated()) {
        return Err(ApiError::PriceNotVouched);
    }
    Ok(())
}

/// Requests a credential and stores it.
async fn offer(app: &App, order: &Order) -> Result<Offer, ApiError> {
    can_be_paid(app, order)?;
    let (now, gateway) = (app.clock.now(), account_of(app, order)?);
    match gateway.prepay(&stored(order)?, now).await {
        Ok(payment) => {
            if let Some(lives) = gateway.credential_lives(order.scene) {
                credentials::store(&app.db, app.seal.as_deref(), order, &payment, (now, lives)).await;
            }
            Ok(Offer::Made(payment))
        }
        Err(error) => {
            if let GatewayError::Misconfigured { code, message } = &error {
                app.refused_accounts.report(&app.db, app.clock, order, (code, message));
            }
            Ok(Offer::NotMade(error))
        }
    }
}

fn account_of(app: &App, order: &Order) -> Result<Arc<dyn Gateway>, ApiError> {
    let account = app.accounts.get(order.payment_method, &order.account);
    account.ok_or_else(|| ApiError::Internal("gateways.toml lacks the account of an order".into()))
}

fn shown(app: &App, order: &Order, payment: Payment) -> Result<PayableOrder, ApiError> {
    let view_token = app.tokens.view.mint(order.id, order.expires_at)?;
    Ok(PayableOrder { order: OrderView::of(order), payment, view_token })
}

fn value(answer: PayableOrder) -> Result<Value, ApiError> {
    serde_json::to_value(answer).map_err(|error| ApiError::Internal(error.into()))
}

fn stored(order: &Order) -> Result<PrepayRequest, ApiError> {
    let corrupt = |source: serde_json::Error| DbError::Corrupt {
        table: "payment_orders",
        column: "prepay".to_owned(),
        row: order.id.to_string(),
        source: source.into(),
    };
    Ok(PrepayRequest::deserialize(&order.prepay).map_err(corrupt)?)
}

fn order_no(id: OrderId, now: OffsetDateTime) -> Result<OrderNo, OrderNoError> {
    OrderNo::parse(dated(id.bits(), now))
}

/// Maps the error of an adapter that cannot express this order in the gateway's format.
fn unfit(error: GatewayError) -> ApiError {
    match error {
        GatewayError::Refused { code, message } => ApiError::InvalidFields(vec![FieldFault::new(code, message)]),
        other => ApiError::Internal(other.into()),
    }
}

/// The order stays pending, and a repeat with the same key tries again. But an order that the gateway refuses
/// permanently will never be paid: the worker queries it and closes it, first at the gateway and then here. If it is
/// already paid, the worker settles it instead.
async fn failed(app: &App, id: OrderId, error: GatewayError) -> ApiError {
    match error {
        GatewayError::Refused { .. } => match request_close_and_check(app, id).await {
            Ok(()) if error.says_paid() => ApiError::OrderNotPayable("paid at the gateway"),
            Ok(()) => ApiError::OrderUnusable(error),
            Err(lost) => lost.into(),
        },
        error => unmade(error),
    }
}

/// There is no credential, and the order is not at fault: a repeat may succeed.
fn unmade(error: GatewayError) -> ApiError {
    match error {
        GatewayError::Misconfigured { .. } => ApiError::GatewayMisconfigured(error),
        GatewayError::Refused { .. } | GatewayError::Protocol(_) => ApiError::GatewayProtocol(error),
        GatewayError::NotNow { .. } | GatewayError::Unavailable(_) | GatewayError::Unknown(_) => {
            ApiError::GatewayUnavailable(error)
        }
    }
}

/// The name of a failure in metrics.
fn outcome(error: &ApiError) -> &'static str {
    match error {
        ApiError::OrderUnusable(_) => "refused",
        ApiError::OrderNotPayable(_) => "not_payable",
        ApiError::NotOffered(_) => "not_offered",
        ApiError::GatewayUnavailable(_) => "gateway_unavailable",
        ApiError::GatewayMisconfigured(_) => "misconfigured",
        ApiError::GatewayProtocol(_) => "gateway_protocol",
        ApiError::PurchaseOpen { .. } | ApiError::PurchaseUsed { .. } => "conflict",
        ApiError::IdempotencyKeyReused | ApiError::RequestInFlight => "conflict",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use runtime::clock::Clock;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn an_order_number_starts_with_the_day_in_beijing() {
        let now = datetime!(2026-01-05 16:20:30 UTC);
        let id = Clock::fixed(now).fresh_id();
        let number = order_no(id, now).unwrap();
        assert!(number.as_str().starts_with("260106"), "{number}");
        assert_eq!(number.as_str().len(), 32);
        assert_ne!(order_no(Clock::fixed(now).fresh_id(), now).unwrap(), number);
    }
}
