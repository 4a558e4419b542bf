//! An account that its gateway refuses: one case for each account and code, whatever it is about and however often.

use domain::{AccountName, CaseId, CaseKind, OrderNo, PaymentMethod};
use runtime::clock::Clock;
use serde_json::json;
use sqlx::PgConnection;

use crate::error::DbError;
use crate::settle::open_cases;
use crate::tables::cases::NewCase;
use crate::tables::events as outbox;

/// What a gateway refuses an account for.
#[derive(Debug, Clone)]
pub struct Misconfigured<'a> {
    /// At which gateway.
    pub method: PaymentMethod,
    /// Which account.
    pub account: &'a AccountName,
    /// The gateway's code.
    pub code: &'a str,
    /// The gateway's words.
    pub message: &'a str,
    /// An order about which it was said.
    pub order_no: &'a OrderNo,
}

/// Opens the case, unless there is one.
///
/// # Errors
/// [`DbError`]; the caller rolls back.
pub async fn misconfigured(tx: &mut PgConnection, told: &Misconfigured<'_>, clock: &Clock) -> Result<(), DbError> {
    let Misconfigured { method, account, code, message, order_no } = told;
    let number = format!("{method}/{account}:{code}");
    let case = NewCase {
        id: CaseId::from_u128(clock.fresh_bits()),
        kind: CaseKind::Misconfigured,
        order_id: None,
        gateway_no: number.chars().take(128).collect(),
        // Not `order_no`: no callback of that order has to be kept for this case.
        evidence: json!({
            "payment_method": method, "account": account, "code": code, "message": message, "first_order_no": order_no,
        }),
    };
    let now = clock.now();
    let opened = open_cases(&mut *tx, &[case], now).await?;
    outbox::append(tx, &opened, now).await
}
