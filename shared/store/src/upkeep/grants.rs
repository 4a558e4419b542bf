//! The permissions of each process in the database, as one table. `paymentctl database-roles` applies it after every
//! migration. Tests verify that every table has an entry, and that the permissions are sufficient and not too wide.
//!
//! Data that never changes after it is written is in no `update` entry: who bought what for how much from which
//! account, the bytes of a callback, the facts of an event. Two kinds of rows are deleted: those of `jobs`, where a
//! deleted row is finished work, and those of the six tables with retention, which the relay deletes (see `retention`).
//! To skip rows that other transactions have locked (`for update skip locked`), the relay needs the permission to
//! update some column: we choose one that cannot be set, or one that has nothing to do with money.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use runtime::service::Service::{self, CallbackWorker, CheckWorker, PaymentApi, PaymentCtl, RefundWorker, Relay};
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};

use crate::error::DbError;

/// An operation on rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Read rows.
    Select,
    /// Add rows.
    Insert,
    /// Change rows.
    Update,
    /// Delete rows.
    Delete,
}

/// One entry: which processes may do what.
#[derive(Debug, Clone, Copy)]
pub struct Grant {
    /// The processes that get it.
    pub to: &'static [Service],
    /// The operation.
    pub right: Right,
    /// The columns; `None`: all of them, including those of later migrations.
    pub columns: Option<&'static [&'static str]>,
}

/// A table and all permissions on it.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// The entries; none at all means that no process has access.
    pub grants: &'static [Grant],
}

const fn may(to: &'static [Service], right: Right) -> Grant {
    Grant { to, right, columns: None }
}

const fn may_only(to: &'static [Service], right: Right, columns: &'static [&'static str]) -> Grant {
    Grant { to, right, columns: Some(columns) }
}

const WORKERS: &[Service] = &[CallbackWorker, CheckWorker, RefundWorker];
const SETTLERS: &[Service] = &[CallbackWorker, CheckWorker];
const ALL_BUT_RELAY: &[Service] = &[PaymentApi, CallbackWorker, CheckWorker, RefundWorker];
const PROCESSES: &[Service] = &[PaymentApi, CallbackWorker, CheckWorker, RefundWorker, Relay];

/// The columns that are written when a refund is requested.
const NEW_REFUND: &[&str] = &[
    "id",
    "order_id",
    "transaction_id",
    "refund_no",
    "refund_amount",
    "refund_reason",
    "requested_by",
    "created_at",
    "updated_at",
];

use Right::{Delete, Insert, Select, Update};

/// Every table, in the order of the migrations.
///
/// Some statements need more permissions than they name. `on conflict` reads the columns of its constraint and every
/// column that is named with `excluded`; `returning` reads what it returns; `for update` needs the permission to update
/// some column. Foreign keys and identity columns need nothing.
#[rustfmt::skip]
pub const TABLES: &[Table] = &[
    Table { name: "payment_orders", grants: &[
        // The order as its buyer places it. A function creates an order that no buyer placed.
        may_only(&[PaymentApi], Insert,
            &["id", "user_id", "order_no", "product_type", "subject", "amount", "payment_method", "scene", "account",
              "expires_at", "client_ip", "metadata", "prepay", "created_at", "updated_at"]),
        // The relay reads them for the statistics and for the copies that it writes to Redis.
        may(PROCESSES, Select),
        // Not what may name the payer: `prepay`, `client_ip` and what the shop attached.
        may_only(&[PaymentCtl], Select,
            &["id", "user_id", "order_no", "product_type", "subject", "amount", "payment_method", "scene", "account",
              "status", "trade_no", "refunded_amount", "expires_at", "paid_at", "closed_at", "version", "created_at",
              "updated_at", "checked_at", "gateway_state", "close_requested_at", "extra_state", "extra_amount"]),
        // A refund request changes its order. Only the workers write who paid and when, because they query the gateway.
        // A buyer requests a close. Triggers enforce the moves, and that the refunds cover the refunded amount.
        may_only(&[PaymentApi], Update, &["status", "refunded_amount", "updated_at", "version", "close_requested_at"]),
        may_only(SETTLERS, Update,
            &["status", "trade_no", "paid_at", "closed_at", "refunded_amount", "updated_at", "version"]),
        may_only(&[CheckWorker], Update, &["checked_at", "gateway_state"]),
        may_only(&[RefundWorker], Update, &["status", "refunded_amount", "updated_at", "version"]),
        // Updated with each change of a payment that was not owed.
        may_only(ALL_BUT_RELAY, Update, &["extra_state", "extra_amount"]),
        may_only(&[PaymentCtl], Update, &["extra_state", "extra_amount", "updated_at", "version"]),
    ] },
    Table { name: "payment_transactions", grants: &[
        may(ALL_BUT_RELAY, Select),
        may(&[PaymentCtl], Select),
        // People return a payment that only a case recorded: the ingress writes it as it arrived.
        may_only(ALL_BUT_RELAY, Insert,
            &["id", "order_id", "transaction_no", "payment_method", "action_type", "amount", "status", "gateway_no",
              "created_at", "updated_at", "paid_at", "account"]),
        may_only(&[Relay], Select,
            &["id", "order_id", "payment_method", "action_type", "amount", "status", "gateway_no"]),
        may_only(WORKERS, Update, &["status", "gateway_no", "returned_amount", "updated_at"]),
        // The amount of a refund, after two people have accepted the amount that the gateway states.
        may_only(&[RefundWorker], Update, &["amount"]),
    ] },
    Table { name: "refund_records", grants: &[
        // The workers insert a refund where the policy of an account returns late payments.
        may(ALL_BUT_RELAY, Select),
        may(&[PaymentCtl], Select),
        may_only(ALL_BUT_RELAY, Insert, NEW_REFUND),
        // A refund that was made outside is booked in its final state.
        may_only(WORKERS, Insert, &["status", "origin", "outside_key", "gateway_refund_no", "succeeded_at"]),
        may_only(&[Relay], Select, &["id", "order_id", "transaction_id", "refund_amount", "status"]),
        may_only(WORKERS, Update,
            &["status", "gateway_refund_no", "attempts", "last_error", "sent_at", "refused_code", "succeeded_at",
              "updated_at"]),
        may_only(&[RefundWorker], Update, &["refund_amount"]),
    ] },
    Table { name: "callbacks", grants: &[
        may(&[CallbackWorker], Insert),
        // To count repeats. The stored content is for people to read.
        may_only(&[CallbackWorker], Select,
            &["payment_method", "account", "notice_id", "times_seen", "last_seen_at", "verdict"]),
        // Not the bytes, because they name the payer.
        may_only(&[PaymentCtl], Select,
            &["payment_method", "account", "notice_id", "order_no", "times_seen", "received_at", "last_seen_at",
              "verdict", "note"]),
        may_only(&[CallbackWorker], Update, &["times_seen", "last_seen_at", "verdict"]),
        may_only(&[Relay], Select, &["id", "order_no", "received_at", "last_seen_at"]),
        may(&[Relay], Delete),
        // Always generated, so it cannot be set.
        may_only(&[Relay], Update, &["id"]),
    ] },
    Table { name: "jobs", grants: &[
        may(PROCESSES, Select),
        may(ALL_BUT_RELAY, Insert),
        may(PROCESSES, Delete),
        may_only(&[PaymentCtl], Select,
            &["id", "kind", "ref_id", "due_at", "lease_until", "attempts", "publishes", "last_error", "created_at"]),
        may_only(&[PaymentApi], Update,
            &["due_at", "lease_until", "publishes", "fence", "payload", "hinted_at", "hint_step", "hint_backs"]),
        may_only(WORKERS, Update,
            &["due_at", "lease_until", "publishes", "fence", "attempts", "last_error", "payload", "taken_at"]),
        may_only(&[Relay], Update, &["due_at", "lease_until", "publishes", "fence"]),
    ] },
    Table { name: "events", grants: &[
        // A trigger checks that an event about money agrees with the rows.
        may_only(PROCESSES, Insert, &["event_id", "type", "order_id", "data", "occurred_at"]),
        may_only(ALL_BUT_RELAY, Select, &["event_id"]),
        may(&[Relay, PaymentCtl], Select),
        // An operator requests a repeated publish through a function.
        may_only(&[Relay], Update, &["retry_at", "published_at"]),
        may(&[Relay], Delete),
    ] },
    Table { name: "cases", grants: &[
        may(PROCESSES, Select),
        may(&[PaymentCtl], Select),
        // The ingress inserts a case for an account that a gateway refuses.
        may_only(PROCESSES, Insert, &["id", "kind", "order_id", "gateway_no", "evidence", "created_at", "updated_at"]),
        // For cases that an account's policy has decided.
        may_only(WORKERS, Insert, &["status", "resolution", "resolved_by"]),
        // For a person's step, and for a new fact, which may reopen a case.
        may_only(&[PaymentApi, CallbackWorker, CheckWorker, RefundWorker, Relay], Update,
            &["status", "proposed_by", "proposed_action", "resolution", "resolved_by", "evidence", "history", "version",
              "updated_at"]),
        // An operator resolves a case through a function, but never a case that two people must decide.
        may(&[Relay], Delete),
    ] },
    // The bytes name payers, so only the relay writes and deletes them. A replay goes through a function.
    Table { name: "dead_letters", grants: &[
        may(&[Relay], Insert),
        may_only(&[Relay, PaymentCtl], Select, &["case_id", "filed_at"]),
        may(&[Relay], Delete),
    ] },
    Table { name: "idempotency_keys", grants: &[
        may(&[PaymentApi], Select),
        may(&[PaymentApi], Insert),
        may_only(&[PaymentApi], Update,
            &["route", "request_hash", "ref_id", "answer", "refused_with", "held_until", "created_at", "expires_at"]),
        // Neither the keys themselves nor the answers.
        may_only(&[PaymentCtl], Select,
            &["user_id", "route", "ref_id", "refused_with", "held_until", "created_at", "expires_at"]),
        // Which keys there are and when they expire, but neither the requests nor the answers.
        may_only(&[Relay], Select, &["user_id", "key", "created_at", "expires_at", "held_until"]),
        may(&[Relay], Delete),
        may_only(&[Relay], Update, &["held_until"]),
    ] },
    // The credentials are sealed: a process that can read a row cannot pay with it.
    Table { name: "order_credentials", grants: &[
        may(&[PaymentApi], Select),
        may(&[PaymentApi], Insert),
        may_only(&[PaymentApi], Update, &["sealed", "obtained_at", "valid_until"]),
        may_only(&[Relay], Select, &["order_id", "obtained_at", "valid_until"]),
        may(&[Relay], Delete),
        may_only(&[Relay], Update, &["valid_until"]),
    ] },
    // A person changes these rows, and each change is recorded.
    Table { name: "payment_config", grants: &[
        may(&[PaymentApi], Select),
        may_only(&[PaymentApi], Update,
            &["enabled", "disabled_scenes", "min_amount", "max_amount", "version", "updated_by", "updated_at"]),
    ] },
    Table { name: "payment_config_changes", grants: &[
        may(&[PaymentApi], Select),
        may(&[PaymentApi], Insert),
    ] },
    // What people did: written once, in the transaction of its effect, and linked by the relay. The database itself
    // adds the time and the login user.
    Table { name: "audit_log", grants: &[
        may_only(&[PaymentApi], Insert, &["subject", "issuer", "key_id", "session", "act", "object", "detail"]),
        may(&[Relay, PaymentCtl], Select),
    ] },
    Table { name: "audit_chain", grants: &[
        may(&[Relay], Insert),
        may(&[Relay, PaymentCtl], Select),
    ] },
    // Records who had which event published again.
    Table { name: "event_republishes", grants: &[
        may(&[PaymentCtl], Select),
    ] },
    Table { name: "hourly_stats", grants: &[
        may(&[PaymentApi, Relay], Select),
        may(&[Relay], Insert),
        may(&[Relay], Update),
    ] },
    Table { name: "stats_progress", grants: &[
        may(&[PaymentApi, Relay], Select),
        may(&[Relay], Insert),
        may(&[Relay], Update),
    ] },
    // Every process reads it at its start.
    Table { name: "_sqlx_migrations", grants: &[
        may_only(Service::ALL, Select, &["version", "description", "success"]),
    ] },
];

/// A function that runs with the permissions of the tables' owner, so that it can do what its caller cannot do
/// directly.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Its name, which must be unique.
    pub name: &'static str,
    /// The types of its arguments.
    pub arguments: &'static str,
    /// The processes that may call it.
    pub to: &'static [Service],
}

/// Every function that runs with the permissions of the tables' owner.
pub const FUNCTIONS: &[Function] = &[
    Function { name: "replay_dead_letter", arguments: "bpchar", to: &[PaymentCtl] },
    Function { name: "end_case", arguments: "bpchar, bigint, text, text, jsonb", to: &[PaymentCtl] },
    Function { name: "republish_events", arguments: "bigint[], text", to: &[PaymentCtl] },
    Function {
        name: "create_unplaced_order",
        arguments: "bpchar, text, numeric, text, text, text, timestamptz",
        to: &[PaymentApi],
    },
];

/// Gives a role the permissions of its process, and no others, in the schema of this session.
///
/// The permissions that it had before are revoked first. All this is one transaction, so a running process does not
/// notice it. No other role gains or loses anything, except that PUBLIC can no longer create objects or temporary
/// tables here.
///
/// # Errors
/// [`DbError`]; for example when this session's user does not own the tables.
pub async fn apply(tx: &mut PgConnection, service: Service, role: &str) -> Result<(), DbError> {
    let place = sqlx::query!(
        r#"select quote_ident(current_schema()) as "schema!", quote_ident(current_database()) as "database!""#
    );
    let place = place.fetch_one(&mut *tx).await?;
    let (schema, database, role) = (place.schema, place.database, quoted(role));
    let mut statements = vec![
        format!("revoke create on schema {schema} from public"),
        format!("revoke temporary on database {database} from public"),
        format!("revoke all on all tables in schema {schema} from {role}"),
        format!("revoke all on all sequences in schema {schema} from {role}"),
        format!("revoke all on schema {schema} from {role}"),
        format!("grant usage on schema {schema} to {role}"),
    ];
    for table in TABLES {
        for grant in table.grants.iter().filter(|grant| grant.to.contains(&service)) {
            let columns = grant.columns.map(|columns| format!(" ({})", columns.join(", "))).unwrap_or_default();
            statements.push(format!("grant {}{columns} on {schema}.{} to {role}", grant.right.as_str(), table.name));
        }
    }
    for Function { name, arguments, to } in FUNCTIONS {
        let function = format!("function {schema}.{name} ({arguments})");
        statements.push(format!("revoke all on {function} from public, {role}"));
        if to.contains(&service) {
            statements.push(format!("grant execute on {function} to {role}"));
        }
    }
    for statement in statements {
        tx.execute(AssertSqlSafe(statement)).await?;
    }
    Ok(())
}

/// Makes other processes that set permissions in this database wait until the transaction ends. Two at the same time
/// would make each other fail.
///
/// # Errors
/// [`DbError`].
pub async fn take_turns(tx: &mut PgConnection) -> Result<(), DbError> {
    sqlx::query!("select pg_advisory_xact_lock($1) as done", GRANTING).fetch_one(tx).await?;
    Ok(())
}

/// Whether a role of this name exists.
///
/// # Errors
/// [`DbError`].
pub async fn role_exists(connection: &mut PgConnection, role: &str) -> Result<bool, DbError> {
    let row = sqlx::query!(r#"select exists (select from pg_roles where rolname = $1) as "exists!""#, role);
    Ok(row.fetch_one(connection).await?.exists)
}

/// The difference between a role's permissions and the table above.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Permissions that the process needs and the role lacks, such as `update payment_orders.status`.
    pub lacking: BTreeSet<String>,
    /// Permissions that the role has and the process does not need.
    pub exceeding: BTreeSet<String>,
}

/// Compares a role's permissions here (its own, inherited from other roles, from PUBLIC, or as a superuser) with the
/// table above.
///
/// # Errors
/// [`DbError`]; for example when the role does not exist.
pub async fn compare(connection: &mut PgConnection, service: Service, role: &str) -> Result<Difference, DbError> {
    let columns = columns(&mut *connection).await?;
    let wanted = wanted(service, &columns);
    let held = sqlx::query!(
        r#"
        select c.relname::text || '.' || a.attname as "object!", p.name as "right!"
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        cross join (values ('SELECT'), ('INSERT'), ('UPDATE')) as p (name)
        where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
          and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
          and has_column_privilege($1::text::name, c.oid, a.attnum, p.name)
        union
        select c.relname, p.name
        from pg_class c cross join (values ('DELETE'), ('TRUNCATE'), ('TRIGGER')) as p (name)
        where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
          and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
          and has_table_privilege($1::text::name, c.oid, p.name)
        union
        select p.proname, 'EXECUTE' from pg_proc p
        where p.pronamespace = current_schema()::regnamespace and p.prosecdef
          and has_function_privilege($1::text::name, p.oid, 'EXECUTE')
        "#,
        role,
    );
    let held = held.fetch_all(connection).await?;
    let held: BTreeSet<String> =
        held.into_iter().map(|row| format!("{} {}", row.right.to_lowercase(), row.object)).collect();
    Ok(Difference {
        lacking: wanted.difference(&held).cloned().collect(),
        exceeding: held.difference(&wanted).cloned().collect(),
    })
}

/// The reason why the database user of a process cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// Permissions are missing.
    #[error("user {user} may not {}", .lacking.join(", "))]
    Lacking {
        /// The user that logs in.
        user: String,
        /// The missing permissions.
        lacking: Vec<String>,
    },
    /// The permissions could not be read.
    #[error("cannot read the rights of this user")]
    Db(#[from] DbError),
}

/// The largest number of missing permissions that a message names.
const NAMED: usize = 5;

/// Checks that the user of this pool has the permissions that its process needs. Returns the permissions beyond that:
/// they do not prevent a start, but deserve a warning.
///
/// # Errors
/// [`RightsError`].
pub async fn check(pool: &PgPool, service: Service) -> Result<Option<Excess>, RightsError> {
    let mut connection = pool.acquire().await.map_err(DbError::from)?;
    let row = sqlx::query!(r#"select current_user::text as "name!""#).fetch_one(&mut *connection).await;
    let user = row.map_err(DbError::from)?.name;
    let Difference { lacking, exceeding } = compare(&mut connection, service, &user).await?;
    if !lacking.is_empty() {
        return Err(RightsError::Lacking { user, lacking: first(lacking) });
    }
    Ok((!exceeding.is_empty()).then(|| Excess { user, rights: first(exceeding) }))
}

/// Permissions that a user has and its process does not need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// The user that logs in.
    pub user: String,
    /// The first of these permissions, and how many more there are.
    pub rights: Vec<String>,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {} may also {}", self.user, self.rights.join(", "))
    }
}

fn first(rights: BTreeSet<String>) -> Vec<String> {
    let mut rights = rights.into_iter();
    let mut named: Vec<String> = rights.by_ref().take(NAMED).collect();
    let others = rights.count();
    if others > 0 {
        named.push(format!("and {others} more"));
    }
    named
}

/// Every table of this session's schema with its columns.
///
/// # Errors
/// [`DbError`].
pub async fn columns(connection: &mut PgConnection) -> Result<BTreeMap<String, Vec<String>>, DbError> {
    let rows = sqlx::query!(
        r#"
        select c.relname::text as "table!", a.attname::text as "column!"
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
          and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
        order by c.relname, a.attnum
        "#
    );
    let mut columns = BTreeMap::<String, Vec<String>>::new();
    for row in rows.fetch_all(connection).await? {
        columns.entry(row.table).or_default().push(row.column);
    }
    Ok(columns)
}

/// The permissions in the table above, column by column; `delete` applies to whole rows.
fn wanted(service: Service, columns: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let functions = FUNCTIONS.iter().filter(|function| function.to.contains(&service));
    let mut wanted: BTreeSet<String> = functions.map(|function| format!("execute {}", function.name)).collect();
    for table in TABLES {
        for grant in table.grants.iter().filter(|grant| grant.to.contains(&service)) {
            let right = grant.right.as_str();
            match (grant.right, grant.columns) {
                (Right::Delete, _) => drop(wanted.insert(format!("{right} {}", table.name))),
                (_, Some(only)) => wanted.extend(only.iter().map(|column| format!("{right} {}.{column}", table.name))),
                (_, None) => {
                    let all = columns.get(table.name).into_iter().flatten();
                    wanted.extend(all.map(|column| format!("{right} {}.{column}", table.name)));
                }
            }
        }
    }
    wanted
}

/// The key of the lock that is held while permissions are set.
const GRANTING: i64 = 0x7061_7967_7261_6e74;

impl Right {
    const fn as_str(self) -> &'static str {
        match self {
            Right::Select => "select",
            Right::Insert => "insert",
            Right::Update => "update",
            Right::Delete => "delete",
        }
    }
}

/// A name, quoted as an SQL identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
