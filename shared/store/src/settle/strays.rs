//! Payments that no order could accept: with another amount, at another gateway or account, or for an unknown order
//! number. Two people can return such a payment from its case.
//!
//! Until then the case is the only record of the payment. The action `refund` writes the payment as a transaction
//! beside the order's own payment. For an unknown number it first creates a closed order that no buyer placed. From
//! there it is a refund like any other.

use domain::{AccountName, CaseAction, CaseKind, Money, OrderId, OrderNo, PaymentMethod, TradeNo, TransactionId};
use runtime::clock::Clock;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::DbError;
use crate::tables::cases::Case;
use crate::tables::orders::{self, Order};
use crate::tables::transactions::{self, ExtraPayment};
use crate::tables::unplaced::{self, UnplacedOrder};

/// What a case knows about its payment, from the gateway's signed message.
#[derive(Debug, Clone)]
pub struct Stray {
    order_id: Option<OrderId>,
    order_no: String,
    trade_no: TradeNo,
    payment_method: PaymentMethod,
    account: AccountName,
    amount: Money,
    /// `None`: an earlier release wrote the case.
    paid_at: Option<OffsetDateTime>,
}

/// The reason why a case has no payment that we can return from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReturnable(pub &'static str);

/// Whether payments of this kind of case are recorded only in the case.
pub const fn has_strays(kind: CaseKind) -> bool {
    matches!(kind, CaseKind::AmountMismatch | CaseKind::WrongMethod | CaseKind::WrongMerchant | CaseKind::UnknownOrder)
}

/// The actions that people can choose for a case in its present state. `refund` is offered only if [`Stray::of`] finds
/// a payment that we can return.
pub fn actions(case: &Case) -> Vec<CaseAction> {
    let fits = |action: &CaseAction| *action != CaseAction::Refund || !has_strays(case.kind) || Stray::of(case).is_ok();
    case.actions().iter().copied().filter(fits).collect()
}

impl Stray {
    /// Whether so much of the payment can be returned. `None`: all of it.
    ///
    /// # Errors
    /// [`NotReturnable`] when it is less.
    pub fn has(&self, amount: Option<Money>) -> Result<(), NotReturnable> {
        let is_less = amount.is_some_and(|amount| amount > self.amount);
        if is_less { Err(NotReturnable("the payment is smaller than this amount")) } else { Ok(()) }
    }

    /// Reads the evidence of a case.
    ///
    /// # Errors
    /// [`NotReturnable`] when the case is about no payment, or the payment is not on an account of ours.
    pub fn of(case: &Case) -> Result<Stray, NotReturnable> {
        let text = |name: &str| case.evidence.get(name).and_then(Value::as_str);
        if text("merchant").is_some() {
            return Err(NotReturnable("the payment is of another merchant or another app"));
        }
        if !has_strays(case.kind) || text("refund_no").is_some() {
            return Err(NotReturnable("the case is about no payment"));
        }
        let amount = text("amount").and_then(|yuan| Money::from_yuan(yuan).ok()).filter(|amount| amount.is_positive());
        let amount = amount.ok_or(NotReturnable("the case states no amount in yuan"))?;
        let known = || {
            Some(Stray {
                order_id: case.order_id,
                order_no: text("order_no")?.to_owned(),
                trade_no: TradeNo::parse(text("trade_no")?).ok()?,
                payment_method: text("payment_method")?.parse().ok()?,
                account: AccountName::parse(text("account")?).ok()?,
                amount,
                paid_at: text("paid_at").and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok()),
            })
        };
        let stray = known().ok_or(NotReturnable("the case names no payment"))?;
        match stray.order_id {
            None if OrderNo::parse(&*stray.order_no).is_err() => {
                Err(NotReturnable("its order number has another form than ours: return it in the gateway's console"))
            }
            _ => Ok(stray),
        }
    }

    /// Writes the payment as a transaction of its order, once, however often people decide. Returns the order and the
    /// trade.
    ///
    /// # Errors
    /// [`DbError`]; the caller rolls back.
    pub async fn record(self, tx: &mut PgConnection, clock: &Clock) -> Result<(OrderId, TradeNo), DbError> {
        let now = clock.now();
        let order = match self.order_id {
            Some(id) => orders::lock_one(tx, id).await?.ok_or(DbError::Moved)?,
            None => self.unplaced(tx, clock).await?,
        };
        let elsewhere = order.payment_method != self.payment_method || order.account != self.account;
        let extra = ExtraPayment {
            id: TransactionId::from_u128(clock.fresh_bits()),
            order_id: order.id,
            payment_method: self.payment_method,
            gateway_no: self.trade_no.clone(),
            amount: self.amount,
            paid_at: self.paid_at.unwrap_or(now),
            account: elsewhere.then_some(self.account),
        };
        transactions::note_extra(tx, &[extra], now).await?;
        Ok((order.id, self.trade_no))
    }

    async fn unplaced(&self, tx: &mut PgConnection, clock: &Clock) -> Result<Order, DbError> {
        let new = UnplacedOrder {
            id: OrderId::from_u128(clock.fresh_bits()),
            // `of` has already parsed it.
            order_no: OrderNo::parse(&*self.order_no).map_err(|_| DbError::Moved)?,
            payment_method: self.payment_method,
            account: self.account.clone(),
            amount: self.amount,
        };
        unplaced::create(tx, &new, clock.now()).await
    }
}
