//! What each process may do at the broker, as one table. The deploy step sets it; tests hold that it suffices and that it
//! is not wider.
//!
//! Publishing needs `write` on the exchange and consuming needs `read` on the queue; binding needs `write` on the queue and
//! `read` on the exchange; declaring needs `configure`. Dead letters are moved by the broker itself, by policy, with
//! nobody's rights. Seeing whether an object exists needs no right on RabbitMQ 3.10 and any one of the three from 4.2.7
//! on; whatever a process looks at, it has one for. `paymentctl` looks at the queues: to write to one says no more than to
//! bind it, which takes `read` on an exchange as well, and of that it has none.

use domain::message::job::JobKind;
use runtime::service::Service;

use crate::topology::{self, DEAD, MARKER, Needs, PAYMENT_EVENTS, PAYMENT_IN, PAYMENT_JOBS, any_of};

/// Three regular expressions over the names of exchanges and queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// What may be declared and deleted.
    pub configure: String,
    /// Where may be published to, and which queues may be bound.
    pub write: String,
    /// What may be consumed, and which exchanges may be bound to.
    pub read: String,
}

/// Nothing: no name is empty but the default exchange's, which goes by `amq.default` here.
const NOTHING: &str = "^$";

/// What a process may do.
///
/// The relay is the one that sets the road up again after a loss, so it may declare what [`crate::topology`] lists and
/// bind the work queues to their exchanges, and nothing else; it consumes the dead letters alone.
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

/// What a consumer of the events may do: as it likes with names that begin with its own and a dot, and bind them to
/// `payment.events`.
///
/// # Errors
/// Why no such consumer may have this name: it would own objects of the service or of the broker, or the pattern would
/// match more than it says.
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

/// A name as a regular expression that matches nothing else.
fn literally(name: &str) -> String {
    name.chars()
        .flat_map(|c| (!c.is_ascii_alphanumeric() && c.is_ascii()).then_some('\\').into_iter().chain([c]))
        .collect()
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

    /// What was granted before the table of jobs made the patterns: a change of rights shows here.
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
