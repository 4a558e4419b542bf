//! The processes of the service and the operators' tool, with their user at the broker and their role in the database.

use std::fmt;
use std::str::FromStr;

/// One of the five processes, or the tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// The ingress.
    PaymentApi,
    /// Settles callbacks.
    CallbackWorker,
    /// Queries unpaid orders, and closes them.
    CheckWorker,
    /// Carries out refunds until they are final.
    RefundWorker,
    /// Publishes due jobs and new events.
    Relay,
    /// `paymentctl`, with which operators inspect and repair.
    PaymentCtl,
}

impl Service {
    /// All processes, and the tool.
    pub const ALL: &[Service] = &[
        Service::PaymentApi,
        Service::CallbackWorker,
        Service::CheckWorker,
        Service::RefundWorker,
        Service::Relay,
        Service::PaymentCtl,
    ];

    /// The name of its binary, also used in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Service::PaymentApi => "payment-api",
            Service::CallbackWorker => "callback-worker",
            Service::CheckWorker => "check-worker",
            Service::RefundWorker => "refund-worker",
            Service::Relay => "relay",
            Service::PaymentCtl => "paymentctl",
        }
    }

    /// Its user at the broker, unless the deployment sets another one.
    pub const fn broker_user(self) -> &'static str {
        match self {
            Service::PaymentApi => "payment-api",
            Service::CallbackWorker => "payment-callback-worker",
            Service::CheckWorker => "payment-check-worker",
            Service::RefundWorker => "payment-refund-worker",
            Service::Relay => "payment-relay",
            Service::PaymentCtl => "payment-ctl",
        }
    }

    /// Its role in the database, unless the deployment sets another one.
    pub const fn database_role(self) -> &'static str {
        match self {
            Service::PaymentApi => "payment_api",
            Service::CallbackWorker => "payment_callback_worker",
            Service::CheckWorker => "payment_check_worker",
            Service::RefundWorker => "payment_refund_worker",
            Service::Relay => "payment_relay",
            Service::PaymentCtl => "payment_ctl",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error of a name that no process has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of payment-api, callback-worker, check-worker, refund-worker, relay, paymentctl")]
pub struct UnknownService(String);

impl FromStr for Service {
    type Err = UnknownService;

    fn from_str(text: &str) -> Result<Service, UnknownService> {
        let found = Service::ALL.iter().find(|service| service.as_str() == text);
        found.copied().ok_or_else(|| UnknownService(text.to_owned()))
    }
}

/// A user or role name that replaces the default of a process, written `relay=other_name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The process.
    pub service: Service,
    /// Its name.
    pub name: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Named, String> {
        let (service, name) = text.split_once('=').ok_or("write it as PROCESS=NAME")?;
        if name.is_empty() {
            return Err("write it as PROCESS=NAME".to_owned());
        }
        Ok(Named { service: service.parse::<Service>().map_err(|error| error.to_string())?, name: name.to_owned() })
    }
}

/// The name of each process: the default, or the name that the deployment sets.
///
/// # Errors
/// If two processes have the same name: that user would have the rights of both.
pub fn names(usual: fn(Service) -> &'static str, others: &[Named]) -> Result<Vec<(Service, String)>, String> {
    let mut names: Vec<(Service, String)> = Vec::new();
    for service in Service::ALL.iter().copied() {
        let other = others.iter().rev().find(|other| other.service == service);
        let name = other.map_or_else(|| usual(service).to_owned(), |other| other.name.clone());
        if let Some((first, _)) = names.iter().find(|(_, taken)| *taken == name) {
            return Err(format!("{first} and {service} are both called {name}; each needs a name of its own"));
        }
        names.push((service, name));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_may_name_them_otherwise_but_no_two_alike() {
        let other = |text: &str| text.parse::<Named>().unwrap();
        let found = names(Service::database_role, &[other("relay=staging_relay")]).unwrap();
        assert_eq!(found[0], (Service::PaymentApi, "payment_api".to_owned()));
        assert_eq!(found[4], (Service::Relay, "staging_relay".to_owned()));
        let error = names(Service::database_role, &[other("relay=payment_api")]).unwrap_err();
        assert!(error.contains("payment-api and relay are both called payment_api"), "{error}");
        for wrong in ["relay", "relay=", "shop=x"] {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }
}
