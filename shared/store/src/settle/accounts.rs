//! An account that its gateway refuses. There is one case for each account and error code, whatever the request and
//! however often.

use domain::{AccountName, CaseId, CaseKind, OrderNo, PaymentMethod};
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgConnection;

use crate::error::DbError;
use crate::settle::opening::open_cases;
use crate::tables::cases::NewCase;
use crate::tables::events as outbox;

/// An account that a gateway refuses.
#[derive(Debug, Clone)]
pub struct Misconfigured<'a> {
    /// The gateway.
    pub method: PaymentMethod,
    /// The account.
    pub account: &'a AccountName,
    /// The gateway's code.
    pub code: &'a str,
    /// The gateway's error text.
    pub message: &'a str,
    /// The order whose request was refused.
    pub order_no: &'a OrderNo,
}

/// Opens the case, or reopens it if it is resolved. An open case stays as it is.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn misconfigured(
    tx: &mut PgConnection,
    misconfiguration: &Misconfigured<'_>,
    clock: &Clock,
) -> Result<(), DbError> {
    let Misconfigured { method, account, code, message, order_no } = misconfiguration;
    let number = format!("{method}/{account}:{code}");
    let case = NewCase {
        id: CaseId::from_u128(clock.fresh_bits()),
        kind: CaseKind::Misconfigured,
        order_id: None,
        subject_ref: number.chars().take(128).collect(),
        // Not named `order_no`: this case needs no stored callback of that order.
        evidence: json!({
            "payment_method": method, "account": account, "code": code, "message": message, "first_order_no": order_no,
        }),
    };
    let now = clock.now();
    let opened = open_cases(&mut *tx, &[case], now).await?;
    outbox::append(tx, &opened, now).await
}
