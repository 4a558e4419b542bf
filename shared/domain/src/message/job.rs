//! Jobs: rows with a due time, and the messages that nudge a worker to claim one.
//!
//! Only the table below lists the kinds of jobs. Queues, bindings, policies, permissions at the broker, what each
//! process needs at its start, depths, metrics and the handling of dead letters are derived from it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ids::{CaseId, OrderId, RefundId};
use crate::money::Money;
use crate::order_no::RefundNo;

/// The exchange to which the ingress publishes callbacks. The ingress may write to no other exchange.
pub const PAYMENT_IN: &str = "payment.in";
/// The exchange to which the relay publishes due jobs.
pub const PAYMENT_JOBS: &str = "payment.jobs";

/// How the relay publishes the due jobs of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Each job as soon as it is due.
    WhenDue,
    /// At most this many in a round, while no [`Pace::WhenDue`] job is due and the queue is short.
    WhenIdle(i64),
}

/// The properties of one kind of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobSpec {
    /// The program that works on it.
    pub worker: &'static str,
    /// The queue of its messages, and their routing key.
    pub queue: &'static str,
    /// The exchange of its messages.
    pub exchange: &'static str,
    /// How it is published.
    pub pace: Pace,
    /// Whether its row names another row, so that its message is only a nudge. Otherwise the message is the job itself.
    pub is_nudged: bool,
}

/// Declares the kinds of jobs: one row each.
macro_rules! jobs {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $spec:expr;)+) => {
        crate::named_enum! {
            /// The kind of work of a `jobs` row.
            JobKind { $($(#[$doc])* $kind = $name),+ }
        }

        impl JobKind {
            /// The row of this kind.
            pub const fn spec(self) -> JobSpec {
                match self { $(JobKind::$kind => $spec),+ }
            }
        }
    };
}

jobs! {
    /// A callback that could not be published or settled when it arrived.
    Callback = "callback", JobSpec {
        worker: "callback-worker", queue: "payment.callbacks", exchange: PAYMENT_IN, pace: Pace::WhenDue, is_nudged: false,
    };
    /// Carry a refund one step further.
    Refund = "refund", JobSpec {
        worker: "refund-worker", queue: "payment.refunds", exchange: PAYMENT_JOBS, pace: Pace::WhenDue, is_nudged: true,
    };
    /// Query the gateway about an order that is not paid.
    Check = "check", JobSpec {
        worker: "check-worker", queue: "payment.checks", exchange: PAYMENT_JOBS, pace: Pace::WhenDue, is_nudged: true,
    };
    /// Query the gateway again about an order that is paid.
    LookBack = "look_back", JobSpec {
        worker: "check-worker", queue: "payment.checks", exchange: PAYMENT_JOBS, pace: Pace::WhenIdle(50), is_nudged: true,
    };
}

impl JobKind {
    /// The work queues, each once.
    pub fn queues() -> Vec<&'static str> {
        let mut queues: Vec<&str> = Vec::new();
        for queue in JobKind::ALL.iter().map(|kind| kind.spec().queue) {
            if !queues.contains(&queue) {
                queues.push(queue);
            }
        }
        queues
    }

    /// The kinds that this program works on.
    pub fn of_worker(worker: &str) -> Vec<JobKind> {
        JobKind::ALL.iter().copied().filter(|kind| kind.spec().worker == worker).collect()
    }

    /// The first kind whose messages go through this queue.
    pub fn of_queue(queue: &str) -> Option<JobKind> {
        JobKind::ALL.iter().copied().find(|kind| kind.spec().queue == queue)
    }
}

/// The nudge to work on a `jobs` row. A worker can claim the row only with the row's present fence, which the relay
/// drew at random when it leased the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobMessage {
    /// Which row.
    pub id: i64,
    /// The row's fence when it was published.
    pub fence: i64,
}

/// A decision of people, or of a policy, that a check carries out together with a query to the gateway. The job's
/// payload holds each decision under the id of its case, so one never replaces another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Decision {
    /// Accept the late payment of the case for its order, if the gateway still has the money.
    Fulfil,
    /// Book a refund that was made outside this service, if the gateway confirms it.
    BookRefund {
        /// The refund number that its sender chose.
        refund_no: RefundNo,
        /// The refunded amount.
        amount: Money,
    },
}

impl Decision {
    const PREFIX: &str = "case:";

    /// The requests in a payload, each with its case. Members that cannot be read are ignored.
    fn in_payload(payload: &Value) -> Vec<(CaseId, Decision)> {
        let members = payload.as_object().into_iter().flatten();
        let decisions = members.filter_map(|(name, value)| {
            let case = CaseId::parse(name.strip_prefix(Decision::PREFIX)?).ok()?;
            Some((case, serde_json::from_value(value.clone()).ok()?))
        });
        decisions.collect()
    }
}

/// The requests to a check, or to a look back, beside its kind. Requests about one order add up: each stays until the
/// worker has carried it out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckRequest {
    /// Close the order unless it is paid.
    pub close: bool,
    /// Query the gateway although the order is paid.
    pub sync: bool,
    /// The decisions of people, or of a policy, each with its case.
    pub of_cases: Vec<(CaseId, Decision)>,
}

impl CheckRequest {
    /// Close the order unless it is paid.
    pub fn close() -> CheckRequest {
        CheckRequest { close: true, ..CheckRequest::default() }
    }

    /// Query the gateway although the order is paid.
    pub fn sync() -> CheckRequest {
        CheckRequest { sync: true, ..CheckRequest::default() }
    }

    /// A decision about a case.
    pub fn of_case(case: CaseId, decision: Decision) -> CheckRequest {
        CheckRequest { of_cases: vec![(case, decision)], ..CheckRequest::default() }
    }

    /// Reads a row's payload. Members that this build does not know are ignored.
    pub fn read(payload: &Value) -> CheckRequest {
        let of_cases = Decision::in_payload(payload);
        CheckRequest { close: payload["close"] == true, sync: payload["sync"] == true, of_cases }
    }

    /// The row's payload: a member for each request.
    pub fn payload(&self) -> Value {
        let mut members = Map::new();
        let flags = [("close", self.close), ("sync", self.sync)];
        members.extend(flags.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| (name.to_owned(), json!(true))));
        for (case, decision) in &self.of_cases {
            members.insert(format!("{}{case}", Decision::PREFIX), json!(decision));
        }
        Value::Object(members)
    }
}

/// The requests to a refund job, beside its kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RefundRequest {
    /// Redirect an undeliverable refund to the merchant's own account.
    pub redirect: bool,
    /// The amount that two people have accepted as the refunded one.
    pub accept: Option<Money>,
    /// Withdraw a refund that waits for the merchant's balance.
    pub withdraw: bool,
}

impl RefundRequest {
    /// Redirect the refund to the merchant's own account.
    pub fn redirect() -> RefundRequest {
        RefundRequest { redirect: true, ..RefundRequest::default() }
    }

    /// Count this amount as refunded, once the gateway states it again.
    pub fn accept(amount: Money) -> RefundRequest {
        RefundRequest { accept: Some(amount), ..RefundRequest::default() }
    }

    /// Withdraw the refund, if the gateway has refused it for the merchant's balance and does not know it.
    pub fn withdraw() -> RefundRequest {
        RefundRequest { withdraw: true, ..RefundRequest::default() }
    }

    /// Reads a row's payload. Members that this build does not know are ignored.
    pub fn read(payload: &Value) -> RefundRequest {
        let accept = payload["accept"].as_str().and_then(|yuan| Money::from_yuan(yuan).ok());
        RefundRequest { redirect: payload["redirect"] == MERCHANT, accept, withdraw: payload["withdraw"] == true }
    }

    /// The row's payload: a member for each request.
    pub fn payload(&self) -> Value {
        let mut members = Map::new();
        if self.redirect {
            members.insert("redirect".to_owned(), json!(MERCHANT));
        }
        if let Some(amount) = self.accept {
            members.insert("accept".to_owned(), json!(amount.to_string()));
        }
        if self.withdraw {
            members.insert("withdraw".to_owned(), json!(true));
        }
        Value::Object(members)
    }
}

/// The receiver of an undeliverable refund: the merchant's own account.
const MERCHANT: &str = "merchant";

/// A requested job: the row that it is about, and the requests to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobRequest {
    /// Query the gateway about an order.
    Check(OrderId, CheckRequest),
    /// Carry a refund one step further.
    Refund(RefundId, RefundRequest),
}

impl JobRequest {
    /// Its kind.
    pub const fn kind(&self) -> JobKind {
        match self {
            JobRequest::Check(..) => JobKind::Check,
            JobRequest::Refund(..) => JobKind::Refund,
        }
    }

    /// The row that it is about.
    pub fn ref_id(&self) -> String {
        match self {
            JobRequest::Check(order, _) => order.to_string(),
            JobRequest::Refund(refund, _) => refund.to_string(),
        }
    }

    /// The payload of its own row.
    pub fn payload(&self) -> Value {
        match self {
            JobRequest::Check(_, request) => request.payload(),
            JobRequest::Refund(_, request) => request.payload(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written_and_what_is_unknown_counts_for_nothing() {
        let (case, refund_no) = (CaseId::from_u128(7), RefundNo::parse("RF_1").unwrap());
        let amount = Money::from_fen(101).unwrap();
        let of_cases = vec![(case, Decision::BookRefund { refund_no, amount })];
        let all = CheckRequest { close: true, sync: true, of_cases };
        let text = format!(
            r#"{{"case:{case}":{{"action":"book_refund","amount":"1.01","refund_no":"RF_1"}},"close":true,"sync":true}}"#
        );
        assert_eq!(all.payload().to_string(), text);
        for request in
            [all, CheckRequest::default(), CheckRequest::close(), CheckRequest::of_case(case, Decision::Fulfil)]
        {
            assert_eq!(CheckRequest::read(&request.payload()), request);
        }
        let all = RefundRequest { redirect: true, accept: Some(amount), withdraw: true };
        for request in [RefundRequest::default(), RefundRequest::redirect(), RefundRequest::accept(amount), all] {
            assert_eq!(RefundRequest::read(&request.payload()), request);
        }
        assert_eq!(RefundRequest::redirect().payload().to_string(), r#"{"redirect":"merchant"}"#);
        assert_eq!(RefundRequest::accept(amount).payload().to_string(), r#"{"accept":"1.01"}"#);
        assert_eq!(RefundRequest::withdraw().payload().to_string(), r#"{"withdraw":true}"#);
        let odd = json!({
            "close": "yes", "sync": 1, "redirect": "buyer", "accept": 1.01, "withdraw": "true", "case:x": {}, "more": true,
        });
        assert_eq!((CheckRequest::read(&odd), RefundRequest::read(&odd)), Default::default());
    }

    #[test]
    fn kinds_that_share_a_queue_share_its_worker_and_its_exchange() {
        for kind in JobKind::ALL {
            // The form that the check `jobs_kind` holds (migration 0030).
            let name = kind.as_str();
            assert!(name.len() <= 31 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            let (spec, first) = (kind.spec(), JobKind::of_queue(kind.spec().queue).unwrap().spec());
            assert_eq!((spec.worker, spec.exchange, spec.is_nudged), (first.worker, first.exchange, first.is_nudged));
        }
    }
}
