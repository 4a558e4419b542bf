//! `cases`: what a person must look at. One case for each kind, order and number, however often it is met.

use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::DbError;
use crate::domain::{CaseId, CaseKind, OrderId};

/// A case to open.
#[derive(Debug, Clone)]
pub struct NewCase {
    /// A fresh UUIDv7.
    pub id: CaseId,
    /// Why a person must look.
    pub kind: CaseKind,
    /// The order, where one is known.
    pub order_id: Option<OrderId>,
    /// The gateway's number, or what else makes it one of its kind: 128 characters at most.
    pub gateway_no: String,
    /// What is known, without the payer's identity.
    pub evidence: Value,
}

/// Opens cases and returns the ids of those that are new.
///
/// # Errors
/// [`DbError`].
pub async fn open(tx: &mut PgConnection, cases: &[NewCase], now: OffsetDateTime) -> Result<Vec<CaseId>, DbError> {
    let ids: Vec<CaseId> = cases.iter().map(|c| c.id).collect();
    let kinds: Vec<CaseKind> = cases.iter().map(|c| c.kind).collect();
    let orders: Vec<Option<OrderId>> = cases.iter().map(|c| c.order_id).collect();
    let gateway_nos: Vec<&str> = cases.iter().map(|c| c.gateway_no.as_str()).collect();
    let evidence: Vec<Value> = cases.iter().map(|c| c.evidence.clone()).collect();
    Ok(sqlx::query_scalar!(
        r#"
        insert into cases (id, kind, order_id, gateway_no, evidence, created_at, updated_at)
        select c.id, c.kind, c.order_id, c.gateway_no, c.evidence, $6, $6
        from unnest($1::bpchar[], $2::text[], $3::bpchar[], $4::text[], $5::jsonb[])
          as c (id, kind, order_id, gateway_no, evidence)
        on conflict on constraint cases_once do nothing
        returning id as "id: CaseId"
        "#,
        &ids as &[CaseId],
        &kinds as &[CaseKind],
        &orders as &[Option<OrderId>],
        &gateway_nos as &[&str],
        &evidence,
        now,
    )
    .fetch_all(tx)
    .await?)
}

/// Whether a case of this kind about this order still waits for a person.
///
/// # Errors
/// [`DbError`].
pub async fn is_open(tx: &mut PgConnection, kind: CaseKind, order_id: OrderId) -> Result<bool, DbError> {
    let row = sqlx::query!(
        r#"
        select exists (
          select from cases where order_id = $1 and kind = $2 and status <> 'resolved'
        ) as "is_open!"
        "#,
        order_id as OrderId,
        kind.as_str(),
    )
    .fetch_one(tx)
    .await?;
    Ok(row.is_open)
}
