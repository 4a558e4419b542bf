//! The permissions of each process in the database, as one table. `paymentctl database-roles` applies it after every
//! migration. Tests verify that every table has an entry, and that the permissions are sufficient and not too wide.
//!
//! Data that never changes after it is written is in no `update` entry: who bought what for how much from which
//! account, the bytes of a callback, the facts of an event. Two kinds of rows are deleted: those of `jobs`, where a
//! deleted row is finished work, and those of the six tables with retention, which the relay deletes (see `retention`).
//! To skip rows that other transactions have locked (`for update skip locked`), the relay needs the permission to
//! update some column: we choose one that cannot be set, or one that has nothing to do with money.

use runtime::service::Service::{self, CallbackWorker, CheckWorker, PaymentApi, PaymentCtl, RefundWorker, Relay};

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
              "expires_at", "client_ip", "metadata", "prepay", "created_at", "updated_at", "merchant_order_no", "vouched_by",
              "voucher", "offer_id"]),
        // The relay reads them for the statistics and for the copies that it writes to Redis.
        may(PROCESSES, Select),
        // Not what may name the payer: `prepay`, `client_ip` and what the shop attached.
        may_only(&[PaymentCtl], Select,
            &["id", "user_id", "order_no", "product_type", "subject", "amount", "payment_method", "scene", "account",
              "status", "trade_no", "refunded_amount", "expires_at", "paid_at", "closed_at", "version", "created_at",
              "updated_at", "checked_at", "gateway_state", "close_requested_at", "extra_state", "extra_amount",
              "merchant_order_no", "vouched_by", "voucher", "offer_id"]),
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
        // A request is inserted by a function, and moved by one until it is sent.
        // A refund that was made outside is booked in its final state.
        may_only(WORKERS, Insert, &["status", "origin", "outside_key", "gateway_refund_no", "succeeded_at"]),
        may_only(&[Relay], Select, &["id", "order_id", "transaction_id", "refund_amount", "status", "created_at"]),
        may_only(WORKERS, Update,
            &["status", "gateway_refund_no", "attempts", "last_error", "sent_at", "refused_code", "succeeded_at",
              "updated_at"]),
        may_only(&[RefundWorker], Update, &["refund_amount", "short_attempt"]),
    ] },
    Table { name: "callbacks", grants: &[
        may(&[CallbackWorker], Insert),
        // To count repeats. The stored content is for people to read.
        may_only(&[CallbackWorker], Select,
            &["payment_method", "account", "notice_id", "times_seen", "last_seen_at", "verdict"]),
        // Not the bytes, because they name the payer.
        may_only(&[PaymentApi, PaymentCtl], Select,
            &["payment_method", "account", "notice_id", "order_no", "times_seen", "received_at", "last_seen_at",
              "verdict", "note"]),
        may_only(&[PaymentApi], Select, &["id"]),
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
        // The story of an order, without the content.
        may_only(&[PaymentApi], Select, &["seq", "type", "order_id", "occurred_at", "retry_at", "published_at"]),
        may(&[Relay, PaymentCtl], Select),
        // An operator requests a repeated publish through a function.
        may_only(&[Relay], Update, &["retry_at", "published_at"]),
        may(&[Relay], Delete),
    ] },
    Table { name: "cases", grants: &[
        may(PROCESSES, Select),
        may(&[PaymentCtl], Select),
        // The ingress inserts a case for an account that a gateway refuses.
        may_only(PROCESSES, Insert, &["id", "kind", "order_id", "gateway_no", "subject_ref", "evidence", "created_at", "updated_at"]),
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
            &["enabled", "disabled_scenes", "min_amount", "max_amount", "version", "updated_by", "updated_at",
              "buyer_refunds", "window_days", "auto_max_amount", "staff_limit", "service_daily_limit"]),
    ] },
    // How much each key, or service, returned in a day. Yesterday's row decides nothing more.
    Table { name: "refunds_of_a_day", grants: &[
        may(&[PaymentApi], Select),
        may(&[PaymentApi], Insert),
        may_only(&[PaymentApi], Update, &["amount"]),
    ] },
    Table { name: "payment_config_changes", grants: &[
        may(&[PaymentApi], Select),
        may(&[PaymentApi], Insert),
    ] },
    // The prices that buyers cannot name. People change them through the ingress.
    Table { name: "catalogue", grants: &[
        may(&[PaymentApi, PaymentCtl], Select),
        may_only(&[PaymentApi], Insert,
            &["product_type", "subject", "amount", "active", "updated_by", "updated_at"]),
        may_only(&[PaymentApi], Update, &["subject", "amount", "active", "version", "updated_by", "updated_at"]),
    ] },
    // What people did: written once, in the transaction of its effect, and linked by the relay. The database itself
    // adds the time and the login user.
    Table { name: "audit_log", grants: &[
        may_only(&[PaymentApi], Insert, &["subject", "issuer", "key_id", "session", "act", "object", "detail"]),
        may(&[PaymentApi, Relay, PaymentCtl], Select),
    ] },
    Table { name: "audit_chain", grants: &[
        may(&[Relay], Insert),
        may(&[Relay, PaymentCtl], Select),
    ] },
    // The keys of the merchant's backend. Operators make and end them; the ingress notes when each was used. A trigger
    // raises the version.
    Table { name: "api_keys", grants: &[
        may(&[PaymentApi, PaymentCtl], Select),
        may_only(&[PaymentCtl], Insert,
            &["id", "name", "environment", "scopes", "networks", "digest", "state", "proposed_by", "expires_at"]),
        may_only(&[PaymentCtl], Update,
            &["digest", "previous_digest", "previous_until", "state", "confirmed_by", "revoked_at", "updated_at",
              "offer_secret", "previous_offer_secret", "previous_offer_until"]),
        may_only(&[PaymentApi], Update, &["last_used_at"]),
    ] },
    Table { name: "api_keys_version", grants: &[
        may(&[PaymentApi, PaymentCtl], Select),
    ] },
    // Records who had which event published again.
    Table { name: "event_republishes", grants: &[
        may(&[PaymentApi, PaymentCtl], Select),
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
    Function { name: "record_operator_act", arguments: "text, text, text, jsonb", to: &[PaymentCtl] },
    // Called by a trigger alone.
    Function { name: "raise_api_keys_version", arguments: "", to: &[] },
    Function {
        name: "create_unplaced_order",
        arguments: "bpchar, text, numeric, text, text, text, timestamptz",
        to: &[PaymentApi],
    },
    Function {
        name: "create_refund_request",
        arguments: "bpchar, bpchar, bpchar, text, numeric, text, text, timestamptz",
        to: &[PaymentApi],
    },
    Function {
        name: "move_unsent_refund",
        arguments: "bpchar, text, text, text, text, timestamptz",
        to: &[PaymentApi],
    },
];

impl Right {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Right::Select => "select",
            Right::Insert => "insert",
            Right::Update => "update",
            Right::Delete => "delete",
        }
    }
}
