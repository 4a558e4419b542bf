//! The permissions of each process at the broker, as one table. The deploy step sets them. Tests prove that they
//! suffice and that they are not wider than needed.
//!
//! Publishing needs `write` on the exchange, and consuming needs `read` on the queue. Binding needs `write` on the
//! queue and `read` on the exchange. Declaring needs `configure`. The broker itself moves dead letters, by policy,
//! without any user's permission. To see whether an object exists needs no permission on RabbitMQ 3.10, and any one of
//! the three from 4.2.7 on; each process has one for every object that it checks. `paymentctl` checks the queues with
//! `write`. On a queue, `write` only allows binding, and binding also needs `read` on an exchange, which `paymentctl`
//! does not have.

use domain::message::job::JobKind;
use runtime::service::Service;

use crate::topology::{self, DEAD, MARKER, Needs, PAYMENT_EVENTS, PAYMENT_IN, PAYMENT_JOBS, any_of, literally};

/// Three regular expressions over the names of exchanges and queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// The objects that may be declared and deleted.
    pub configure: String,
    /// The exchanges that may be published to, and the queues that may be bound.
    pub write: String,
    /// The queues that may be consumed, and the exchanges that may be bound to.
    pub read: String,
}

/// Nothing. Only the default exchange has an empty name, and permissions know it as `amq.default`.
const NOTHING: &str = "^$";

/// The permissions of a process.
///
/// The relay restores the topology after a loss. So it may declare what [`crate::topology`] lists and bind the work
/// queues to their exchanges, but no other objects. It may consume only the dead letters.
pub fn of(service: Service) -> Permissions {
    let nothing = || NOTHING.to_owned();
    let (work, all) = (JobKind::queues(), topology::queues());
    let (configure, write, read) = match service {
        Service::PaymentApi => (nothing(), any_of(&[PAYMENT_IN]), nothing()),
        Service::CallbackWorker | Service::CheckWorker | Service::RefundWorker => {
            (nothing(), nothing(), any_of(&Needs::of(service).queues))
        }
        Service::Relay => (
            any_of(&[&[PAYMENT_IN, PAYMENT_JOBS, PAYMENT_EVENTS, MARKER][..], &all].concat()),
            any_of(&[&[PAYMENT_IN, PAYMENT_JOBS, PAYMENT_EVENTS][..], &work].concat()),
            any_of(&[PAYMENT_IN, PAYMENT_JOBS, DEAD]),
        ),
        Service::PaymentCtl => (nothing(), any_of(&all), nothing()),
    };
    Permissions { configure, write, read }
}

/// The permissions of a consumer of the events: everything on objects whose name begins with its own name and a dot,
/// and binding them to `payment.events`.
///
/// # Errors
/// The reason why no consumer may have this name: it would own objects of the service or of the broker, or the pattern
/// would match more than intended.
pub fn of_downstream(user: &str) -> Result<Permissions, String> {
    let first = user.split('.').next().unwrap_or_default();
    if ["payment", "amq"].iter().any(|taken| first.eq_ignore_ascii_case(taken)) {
        return Err(format!("{user:?} would own what begins with {first:?}, which is the service's or the broker's"));
    }
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let edges = [user.bytes().next(), user.bytes().next_back()];
    let is_whole = edges.iter().all(|edge| edge.is_some_and(|c| c.is_ascii_alphanumeric())) && !user.contains("..");
    if !is_whole || !user.bytes().all(is_plain) {
        return Err(format!("{user:?} is not a name of letters, digits, `-`, `_` and single dots within"));
    }
    let own = format!(r"^{}\.", literally(user));
    let read = format!(r"^(payment\.events$|{}\.)", literally(user));
    Ok(Permissions { configure: own.clone(), write: own, read })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_of_events_is_bound_to_its_own_names() {
        let goods = of_downstream("goods.v1").unwrap();
        assert_eq!(goods.configure, r"^goods\.v1\.");
        assert_eq!(goods.read, r"^(payment\.events$|goods\.v1\.)");
    }

    #[test]
    fn a_name_that_would_own_more_is_refused() {
        for name in [
            "payment",
            "payment.in",
            "payment.x.y",
            "Payment",
            "PAYMENT.jobs",
            "amq",
            "amq.gen",
            "AMQ.x",
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            ".*",
            "a|payment",
            "(a",
            "a)",
            "[a]",
            "a*",
            "a\\",
            "a b",
            "a\n",
            "^",
            "$",
            "支付",
            "pаyment",
            "a/b",
            "-a",
        ] {
            assert!(of_downstream(name).is_err(), "{name:?}");
        }
        for name in ["downstream", "goods.v1", "payments", "shop-2", "a_b", "x", "amqp-reader"] {
            let permissions = of_downstream(name).unwrap();
            for object in ["payment.in", "payment.jobs", "payment.callbacks", "payment.dead", "amq.direct"] {
                assert!(!object.starts_with(&format!("{name}.")), "{name}: {permissions:?}");
            }
        }
    }

    /// The permissions that were granted before the table of jobs produced the patterns. A change of permissions fails
    /// here.
    #[test]
    fn the_rights_of_each_process_are_these() {
        let nothing = NOTHING;
        for (service, configure, write, read) in [
            (Service::PaymentApi, nothing, r"^payment\.in$", nothing),
            (Service::CallbackWorker, nothing, nothing, r"^payment\.callbacks$"),
            (Service::CheckWorker, nothing, nothing, r"^payment\.checks$"),
            (Service::RefundWorker, nothing, nothing, r"^payment\.refunds$"),
            (
                Service::Relay,
                r"^payment\.(in|jobs|events|marker|callbacks|refunds|checks|dead)$",
                r"^payment\.(in|jobs|events|callbacks|refunds|checks)$",
                r"^payment\.(in|jobs|dead)$",
            ),
            (Service::PaymentCtl, nothing, r"^payment\.(callbacks|refunds|checks|dead)$", nothing),
        ] {
            let [configure, write, read] = [configure, write, read].map(str::to_owned);
            assert_eq!(of(service), Permissions { configure, write, read }, "{service}");
        }
    }

    #[test]
    fn every_pattern_is_anchored() {
        for service in Service::ALL.iter().copied() {
            let Permissions { configure, write, read } = of(service);
            for pattern in [configure, write, read] {
                assert!(pattern.starts_with('^') && pattern.ends_with('$'), "{service}: {pattern}");
            }
        }
    }
}
