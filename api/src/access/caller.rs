//! The caller of a request: who proved to be one, and with which rights.

use std::fmt;

use domain::{ApiKeyId, Scope, Scopes, UserId};
use time::OffsetDateTime;

use crate::answer::problem::ApiError;

/// How long ago a person who moves money may have signed in, in seconds.
const STEP_UP_S: i64 = 300;

/// Who sends a request. It prints as one text that names no other caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A user of the merchant, by a token of the merchant's user system.
    Buyer(UserId),
    /// The merchant's backend, by an API key.
    Key(ApiKeyId),
    /// The merchant's backend, by a token of the service issuer.
    Service(UserId),
    /// A person who works for the merchant, by a token of the staff issuer.
    Staff(UserId),
}

/// A space, which no user id contains, keeps the names of the other callers apart from those of buyers.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Buyer(user) => f.write_str(user.as_str()),
            Identity::Key(id) => write!(f, "key {id}"),
            Identity::Service(subject) => write!(f, "service {subject}"),
            Identity::Staff(subject) => write!(f, "staff {subject}"),
        }
    }
}

/// A caller with the rights that it proved. A buyer has no scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub identity: Identity,
    /// What it may do beyond a buyer's own orders.
    pub scopes: Scopes,
    /// When the person signed in, in seconds since 1970. `None`: no person, or a token of an earlier release.
    pub signed_in: Option<u64>,
}

impl Caller {
    /// A buyer.
    pub fn buyer(user: UserId) -> Caller {
        Caller::new(Identity::Buyer(user), Scopes::default())
    }

    /// A caller who is no person that signed in.
    pub fn new(identity: Identity, scopes: Scopes) -> Caller {
        Caller { identity, scopes, signed_in: None }
    }

    /// Whether the caller has one of these scopes. [`Scope::Admin`] is the sum of all others, for one release.
    pub fn has_one_of(&self, scopes: &[Scope]) -> bool {
        self.scopes.contains(Scope::Admin) || scopes.iter().any(|scope| self.scopes.contains(*scope))
    }

    /// The name for records of what the caller did: a person's own, and for others what kind of caller it is as well.
    pub fn name(&self) -> String {
        match &self.identity {
            Identity::Staff(subject) => subject.to_string(),
            other => other.to_string(),
        }
    }

    /// Whether the person signed in within the last five minutes, as every step that moves money requires. A token of an
    /// earlier release does not say it, and passes.
    ///
    /// # Errors
    /// [`ApiError::SignInAgain`].
    pub fn signed_in_recently(&self, now: OffsetDateTime) -> Result<(), ApiError> {
        let is_old = |at: u64| now.unix_timestamp() - i64::try_from(at).unwrap_or_default() > STEP_UP_S;
        if self.signed_in.is_some_and(is_old) { Err(ApiError::SignInAgain) } else { Ok(()) }
    }

    /// The person. Keys and tokens of services are no persons, whatever their scopes are.
    ///
    /// # Errors
    /// [`ApiError::PersonRequired`].
    pub fn person(&self) -> Result<&UserId, ApiError> {
        match &self.identity {
            Identity::Staff(subject) => Ok(subject),
            _ => Err(ApiError::PersonRequired),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_buyer_has_the_name_of_another_caller() {
        let id = UserId::parse("u1").unwrap();
        let key = ApiKeyId::parse("0123456789abcdef").unwrap();
        let names = [Identity::Key(key), Identity::Service(id.clone()), Identity::Staff(id.clone())];
        for identity in names {
            assert!(UserId::parse(identity.to_string()).is_err(), "{identity}");
        }
        assert_eq!(Identity::Buyer(id).to_string(), "u1");
    }

    #[test]
    fn a_person_has_a_staff_token() {
        let scopes = Scopes::parse("payments:admin payments:cases.confirm");
        let id = UserId::parse("u1").unwrap();
        let key = ApiKeyId::parse("0123456789abcdef").unwrap();
        for identity in [Identity::Key(key), Identity::Service(id.clone()), Identity::Buyer(id.clone())] {
            assert!(Caller::new(identity, scopes).person().is_err());
        }
        assert_eq!(Caller::new(Identity::Staff(id.clone()), scopes).person().unwrap(), &id);
    }
}
