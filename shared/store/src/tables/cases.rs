//! `cases`: what a person must decide. There is one case for each kind, order and number, however often its fact
//! arrives.

use std::collections::HashSet;

use domain::{CaseAction, CaseId, CaseKind, CaseStatus, OrderId};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::error::DbError;
use crate::tables::reading::{Reading, text};
use crate::tables::refunds::Refund;

/// A case to open.
#[derive(Debug, Clone)]
pub struct NewCase {
    /// A new UUIDv7.
    pub id: CaseId,
    /// Why a person must check it.
    pub kind: CaseKind,
    /// The order, if it is known.
    pub order_id: Option<OrderId>,
    /// What it is about, among the cases of its kind and order: a number of the gateway or of ours, or another text.
    /// 128 characters at most.
    pub subject_ref: String,
    /// What we know, without the payer's identity.
    pub evidence: Value,
}

/// Inserts cases and returns the ids of those whose key had no case.
///
/// # Errors
/// [`DbError`].
pub(super) async fn insert(
    tx: &mut PgConnection,
    cases: &[&NewCase],
    now: OffsetDateTime,
) -> Result<HashSet<CaseId>, DbError> {
    let ids: Vec<CaseId> = cases.iter().map(|c| c.id).collect();
    let kinds: Vec<CaseKind> = cases.iter().map(|c| c.kind).collect();
    let orders: Vec<Option<OrderId>> = cases.iter().map(|c| c.order_id).collect();
    let subject_refs: Vec<&str> = cases.iter().map(|c| c.subject_ref.as_str()).collect();
    let evidence: Vec<Value> = cases.iter().map(|c| c.evidence.clone()).collect();
    let inserted = sqlx::query_scalar!(
        r#"
        insert into cases (id, kind, order_id, subject_ref, evidence, created_at, updated_at)
        select c.id, c.kind, c.order_id, c.subject_ref, c.evidence, $6, $6
        from unnest($1::bpchar[], $2::text[], $3::bpchar[], $4::text[], $5::jsonb[])
          as c (id, kind, order_id, subject_ref, evidence)
        on conflict on constraint cases_once do nothing
        returning id as "id: CaseId"
        "#,
        &ids as &[CaseId],
        &kinds as &[CaseKind],
        &orders as &[Option<OrderId>],
        &subject_refs as &[&str],
        &evidence,
        now,
    );
    Ok(inserted.fetch_all(tx).await?.into_iter().collect())
}

/// Records cases that a rule has decided already. We store them so that people can look them up; they need no decision.
///
/// # Errors
/// [`DbError`].
pub async fn record_resolved(
    tx: &mut PgConnection,
    cases: &[NewCase],
    resolution: &str,
    resolved_by: &str,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    let ids: Vec<CaseId> = cases.iter().map(|c| c.id).collect();
    let kinds: Vec<CaseKind> = cases.iter().map(|c| c.kind).collect();
    let orders: Vec<Option<OrderId>> = cases.iter().map(|c| c.order_id).collect();
    let subject_refs: Vec<&str> = cases.iter().map(|c| c.subject_ref.as_str()).collect();
    let evidence: Vec<Value> = cases.iter().map(|c| c.evidence.clone()).collect();
    sqlx::query!(
        r#"
        insert into cases
          (id, kind, order_id, subject_ref, evidence, status, resolution, resolved_by, created_at, updated_at)
        select c.id, c.kind, c.order_id, c.subject_ref, c.evidence, 'resolved', $7, $8, $6, $6
        from unnest($1::bpchar[], $2::text[], $3::bpchar[], $4::text[], $5::jsonb[])
          as c (id, kind, order_id, subject_ref, evidence)
        on conflict on constraint cases_once do nothing
        "#,
        &ids as &[CaseId],
        &kinds as &[CaseKind],
        &orders as &[Option<OrderId>],
        &subject_refs as &[&str],
        &evidence,
        now,
        resolution,
        resolved_by,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether a case of this kind about this order is not resolved yet.
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

/// One row, whole.
#[derive(Debug, Clone)]
pub struct Case {
    /// Our id, for paths and events.
    pub id: CaseId,
    /// Why a person must check it.
    pub kind: CaseKind,
    /// The order, if it is known.
    pub order_id: Option<OrderId>,
    /// What it is about, among the cases of its kind and order.
    pub subject_ref: String,
    /// What we know.
    pub evidence: Value,
    /// How far people are with the decision.
    pub status: CaseStatus,
    /// Increases with each change: a person's step or a new fact.
    pub version: i64,
    /// Who proposed the action.
    pub proposed_by: Option<String>,
    /// The action that waits for a confirmation, or that was confirmed.
    pub proposed_action: Option<Value>,
    /// The result, in words.
    pub resolution: Option<String>,
    /// Who resolved it.
    pub resolved_by: Option<String>,
    /// Who did what and when, oldest first.
    pub history: Value,
    /// By our clock.
    pub created_at: OffsetDateTime,
    /// By our clock.
    pub updated_at: OffsetDateTime,
}

/// The member of a case's evidence that says why an automatic refund could not be requested.
pub const NOT_REFUNDED: &str = "not_refunded";

/// The member of a case's evidence that states how much our books show as returned, if the gateway states more than was
/// paid.
pub const BOOKED: &str = "booked";

impl Case {
    /// Whether resolving the case decides about money, which takes two people: reserved money becomes free, or money
    /// that was to be returned automatically stays with us.
    pub fn end_moves_money(&self) -> bool {
        self.kind.end_frees_money() || self.evidence.get(NOT_REFUNDED).is_some()
    }

    /// Whether the gateway states a different amount for one of our refunds (and not for a payment).
    pub fn is_about_a_refunds_amount(&self) -> bool {
        // A case from a message names the payment method; a case about one of our refunds does not.
        let of_message = self.evidence.get("payment_method").is_some();
        self.kind == CaseKind::AmountMismatch
            && self.evidence.get("refund_no").is_some()
            && !of_message
            && !self.returns_too_much()
    }

    /// Whether more was refunded of a payment than was paid. The evidence of such a case states what our books show.
    fn returns_too_much(&self) -> bool {
        self.kind == CaseKind::AmountMismatch && self.evidence.get(BOOKED).is_some()
    }

    /// The actions that people can choose in its present state.
    pub fn actions(&self) -> &'static [CaseAction] {
        match self.status {
            CaseStatus::Resolved => &[CaseAction::Reopen],
            _ if self.returns_too_much() => &[CaseAction::Note],
            _ if self.is_about_a_refunds_amount() => &[CaseAction::AcceptAmount, CaseAction::Note],
            CaseStatus::Open | CaseStatus::Proposed => self.kind.actions(),
        }
    }
}

/// The columns of whole cases, handed to another macro: one list for every query, and for errors.
macro_rules! case_columns {
    ($then:ident $($rest:tt)*) => {
        $then!(
            r#"
            select
              id as "id: CaseId", kind as "kind: CaseKind", order_id as "order_id: OrderId", subject_ref as "subject_ref!",
              evidence,
              status as "status: CaseStatus", version, proposed_by, proposed_action, resolution, resolved_by, history,
              created_at, updated_at
            from cases
            "#,
            $($rest)*
        )
    };
}

/// Reads cases with these columns, and a clause.
macro_rules! read_cases {
    ($columns:tt, $tail:tt $(, $argument:expr)* $(,)?) => { sqlx::query_as!(Case, $columns + $tail $(, $argument)*) };
}

/// Reads whole cases by a clause.
macro_rules! select_cases {
    ($($rest:tt)*) => { case_columns!(read_cases $($rest)*) };
}

const CASES: Reading = Reading { tables: &[("", "cases")], query: case_columns!(text) };

/// One case by its id.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: impl PgExecutor<'_>, id: CaseId) -> Result<Option<Case>, DbError> {
    select_cases!("where id = $1", id as CaseId).fetch_optional(db).await.map_err(|error| CASES.error(id, error))
}

/// The cases that have the keys of `new`, locked in the order of their ids.
///
/// # Errors
/// [`DbError`].
pub(super) async fn lock_by_keys(tx: &mut PgConnection, new: &[&NewCase]) -> Result<Vec<Case>, DbError> {
    let kinds: Vec<CaseKind> = new.iter().map(|c| c.kind).collect();
    let orders: Vec<Option<OrderId>> = new.iter().map(|c| c.order_id).collect();
    let subject_refs: Vec<&str> = new.iter().map(|c| c.subject_ref.as_str()).collect();
    // Two branches, because PostgreSQL cannot use an index for `is not distinct from`.
    select_cases!(
        r#"
        where id in (
          select c.id
          from unnest($1::text[], $2::bpchar[], $3::text[]) as k (kind, order_id, subject_ref)
          join cases c on c.kind = k.kind and c.order_id = k.order_id and c.subject_ref = k.subject_ref
          union all
          select c.id
          from unnest($1::text[], $2::bpchar[], $3::text[]) as k (kind, order_id, subject_ref)
          join cases c on c.kind = k.kind and c.order_id is null and c.subject_ref = k.subject_ref
          where k.order_id is null
        )
        order by id
        for update
        "#,
        &kinds as &[CaseKind],
        &orders as &[Option<OrderId>],
        &subject_refs as &[&str],
    )
    .fetch_all(tx)
    .await
    .map_err(|error| CASES.error("of a list", error))
}

/// Which cases to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// Only cases in this state.
    pub status: Option<CaseStatus>,
    /// Only cases of this kind.
    pub kind: Option<CaseKind>,
    /// Only cases that were reopened.
    pub reopened: bool,
}

/// The cases that match a filter, newest first; only those older than `before`.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    db: impl PgExecutor<'_>,
    filter: Filter,
    before: Option<CaseId>,
    limit: i64,
) -> Result<Vec<Case>, DbError> {
    select_cases!(
        r#"
        where id < $1 and ($2::text is null or status = $2) and ($3::text is null or kind = $3)
          and (not $4 or history @> '[{"what": "reopened"}]')
        order by id desc
        limit $5
        "#,
        before.unwrap_or(CaseId::from_u128(u128::MAX)) as CaseId,
        filter.status.map(CaseStatus::as_str),
        filter.kind.map(CaseKind::as_str),
        filter.reopened,
        limit,
    )
    .fetch_all(db)
    .await
    .map_err(|error| CASES.error("of a list", error))
}

/// Resolves the cases that waited for a refund, after it has succeeded: no person needs to check them any more.
///
/// # Errors
/// [`DbError`].
pub async fn end_of_refund(
    tx: &mut PgConnection,
    refund: &Refund,
    resolution: &str,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    sqlx::query!(
        r#"
        update cases
        set status = 'resolved', resolution = $3, resolved_by = 'service', version = version + 1, updated_at = $4
        where order_id = $1 and subject_ref = $2 and kind in ('refund_shortage', 'refund_abnormal', 'amount_mismatch')
          and status <> 'resolved'
        "#,
        refund.order_id as OrderId,
        refund.refund_no.as_str(),
        resolution,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Open cases of an order whose automatic refund could not be requested.
///
/// # Errors
/// [`DbError`].
pub async fn not_refunded(tx: &mut PgConnection, order_id: OrderId) -> Result<Vec<Case>, DbError> {
    select_cases!(
        r#"
        where order_id = $1 and kind in ('late_payment', 'double_payment') and status <> 'resolved'
          and evidence ? 'not_refunded'
        order by id
        "#,
        order_id as OrderId,
    )
    .fetch_all(tx)
    .await
    .map_err(|error| CASES.error(format_args!("of order {order_id}"), error))
}

/// Replaces the evidence of a case. `version` increases, so a confirmation that is based on the earlier evidence fails.
///
/// # Errors
/// [`DbError`].
pub async fn note_evidence(
    tx: &mut PgConnection,
    id: CaseId,
    evidence: &Value,
    now: OffsetDateTime,
) -> Result<(), DbError> {
    sqlx::query!(
        "update cases set evidence = $2, version = version + 1, updated_at = $3 where id = $1",
        id as CaseId,
        evidence,
        now,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The trades that were refunded, according to a case, before their order was paid. `orders`: those that are not paid.
///
/// # Errors
/// [`DbError`].
pub async fn returned_elsewhere(
    tx: &mut PgConnection,
    subject_refs: &[&str],
    orders: &[OrderId],
) -> Result<HashSet<(OrderId, String)>, DbError> {
    let rows = sqlx::query!(
        r#"
        select order_id as "order_id!: OrderId", subject_ref as "trade_no!"
        from cases
        where kind = 'refunded_elsewhere' and subject_ref = any($1) and order_id is not null
        union all
        select order_id, evidence ->> 'trade_no'
        from cases
        where order_id = any($2::bpchar[]) and kind = 'unknown_refund' and evidence ->> 'trade_no' = any($1)
          and evidence ->> 'outcome' is distinct from 'closed'
        "#,
        subject_refs as &[&str],
        orders as &[OrderId],
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|row| (row.order_id, row.trade_no)).collect())
}

/// Writes a person's step and adds `entry` to the history. `case` holds the state after the step.
///
/// # Errors
/// [`DbError::Moved`] when the case is resolved, or its version has changed since `case` was read.
pub async fn step(tx: &mut PgConnection, case: &Case, entry: &Value, now: OffsetDateTime) -> Result<(), DbError> {
    let done = sqlx::query!(
        r#"
        update cases
        set status = $3, proposed_by = $4, proposed_action = $5, resolution = $6, resolved_by = $7,
            history = history || jsonb_build_array($8::jsonb), version = version + 1, updated_at = $9
        where id = $1 and version = $2 and status <> 'resolved'
        "#,
        case.id as CaseId,
        case.version,
        case.status.as_str(),
        case.proposed_by,
        case.proposed_action,
        case.resolution,
        case.resolved_by,
        entry,
        now,
    )
    .execute(tx)
    .await?;
    DbError::expect_rows(done.rows_affected(), 1)
}

/// Writes a case after a new fact: its evidence, its history and, if the fact reopens it, its state.
///
/// # Errors
/// [`DbError::Moved`] when the case no longer has the version before `case.version`.
pub(super) async fn write_fact(tx: &mut PgConnection, case: &Case, now: OffsetDateTime) -> Result<(), DbError> {
    let done = sqlx::query!(
        r#"
        update cases
        set status = $3, proposed_by = $4, proposed_action = $5, resolution = $6, resolved_by = $7, evidence = $8,
            history = $9, version = $2::bigint, updated_at = $10
        where id = $1 and version = $2::bigint - 1
        "#,
        case.id as CaseId,
        case.version,
        case.status.as_str(),
        case.proposed_by,
        case.proposed_action,
        case.resolution,
        case.resolved_by,
        case.evidence,
        case.history,
        now,
    )
    .execute(tx)
    .await?;
    DbError::expect_rows(done.rows_affected(), 1)
}

/// Every case about an order, oldest first.
///
/// # Errors
/// [`DbError`].
pub async fn of_order(db: impl PgExecutor<'_>, order_id: OrderId) -> Result<Vec<Case>, DbError> {
    select_cases!("where order_id = $1 order by id", order_id as OrderId)
        .fetch_all(db)
        .await
        .map_err(|error| CASES.error(format_args!("of order {order_id}"), error))
}

/// The resolution of a case, and who resolves it.
#[derive(Debug, Clone)]
pub struct End<'a> {
    /// The result, in words.
    pub resolution: &'a str,
    /// Who resolves it.
    pub by: &'a str,
    /// The entry for the history.
    pub entry: &'a Value,
}

/// Resolves a case for which no action is proposed, and adds the database user to the history entry. The database
/// function refuses a case whose resolution moves money, whatever the caller's role allows.
///
/// # Errors
/// [`DbError::Moved`] when the case is not open, its version has changed since `case` was read, or its resolution moves
/// money.
pub async fn end(tx: &mut PgConnection, case: &Case, end: &End<'_>) -> Result<(), DbError> {
    let done = sqlx::query!(
        r#"select end_case($1, $2, $3, $4, $5) as "done!""#,
        case.id as CaseId,
        case.version,
        end.resolution,
        end.by,
        end.entry,
    );
    let done = done.fetch_one(tx).await?.done;
    DbError::expect_rows(u64::from(done), 1)
}
