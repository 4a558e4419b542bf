//! What a caller may do beyond a buyer's own orders.

use std::fmt;

use crate::named_enum;

named_enum! {
    /// One right of a caller, as a key holds it and as the claim `scope` of a token names it.
    Scope {
        /// Create and close orders, and read any order.
        Orders = "payments:orders",
        /// Read any order and any refund.
        Read = "payments:read",
        /// Request refunds of any order.
        Refund = "payments:refund",
        /// Change what buyers can choose.
        Config = "payments:config",
        /// Manage the endpoints of notices.
        Notices = "payments:notices",
        /// Read the log of events.
        Events = "payments:events",
        /// Reconcile with the bills of the gateways.
        Reconcile = "payments:reconcile",
        /// Manage API keys.
        Keys = "payments:keys",
        /// Propose what becomes of a case.
        CasesPropose = "payments:cases.propose",
        /// Confirm the proposal of another person.
        CasesConfirm = "payments:cases.confirm",
        /// The sum of all others, for tokens of an older release.
        Admin = "payments:admin",
    }
}

impl Scope {
    /// Whether only a person can have it: an API key and the token of a service never do.
    pub const fn of_people(self) -> bool {
        matches!(self, Scope::CasesPropose | Scope::CasesConfirm | Scope::Admin)
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// Each scope has a bit.
const _: () = assert!(Scope::ALL.len() <= u16::BITS as usize);

/// A set of scopes. It prints as words in the order of [`Scope::ALL`], separated by spaces.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Scopes(u16);

impl Scopes {
    /// Reads words separated by spaces (RFC 8693, section 4.2). Unknown words give no right and are ignored.
    pub fn parse(words: &str) -> Scopes {
        Scopes::of_words(words.split(' '))
    }

    /// The same, for words that are apart already.
    pub fn of_words(words: impl IntoIterator<Item = impl AsRef<str>>) -> Scopes {
        words.into_iter().filter_map(|word| word.as_ref().parse::<Scope>().ok()).collect()
    }

    /// Whether the set has this scope. [`Scope::Admin`] implies no other scope here.
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether the set has no scope.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The scopes, in the order of [`Scope::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.iter().copied().filter(move |scope| self.contains(*scope))
    }

    /// The set without the scopes of people.
    #[must_use]
    pub fn without_people(self) -> Scopes {
        self.iter().filter(|scope| !scope.of_people()).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Scopes {
        Scopes(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.iter().map(Scope::as_str).collect();
        f.pad(&words.join(" "))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scopes({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unknown_words_give_no_right() {
        for words in [
            "",
            " ",
            "orders payments",
            "payments",
            "PAYMENTS:READ",
            "payments:read\tpayments:orders",
            "payments:read,payments:orders",
            "payments:reads",
            "payments:*",
            "xpayments:read",
            "payments:cases",
        ] {
            assert!(Scopes::parse(words).is_empty(), "{words:?}");
        }
        let some = Scopes::parse("  payments:refund strange payments:orders payments:refund ");
        assert_eq!(some.to_string(), "payments:orders payments:refund");
        assert_eq!(format!("{some:?}"), "Scopes(payments:orders payments:refund)");
        assert!(!some.contains(Scope::Read));
    }

    #[test]
    fn three_scopes_are_of_people_alone() {
        let all: Scopes = Scope::ALL.iter().copied().collect();
        let of_people: Scopes = all.iter().filter(|scope| scope.of_people()).collect();
        assert_eq!(of_people.to_string(), "payments:cases.propose payments:cases.confirm payments:admin");
        assert!(all.without_people().iter().all(|scope| !of_people.contains(scope)));
        assert_eq!(all.without_people().iter().count() + of_people.iter().count(), Scope::ALL.len());
        let admin = Scopes::parse("payments:admin");
        assert!(!admin.contains(Scope::Refund), "the sum is made by the caller of this type");
    }

    proptest! {
        #[test]
        fn a_set_reads_back_what_it_prints(chosen in proptest::collection::vec(0..Scope::ALL.len(), 0..20)) {
            let scopes: Scopes = chosen.iter().map(|n| Scope::ALL[*n]).collect();
            prop_assert_eq!(Scopes::parse(&scopes.to_string()), scopes);
            for (n, scope) in Scope::ALL.iter().enumerate() {
                prop_assert_eq!(scopes.contains(*scope), chosen.contains(&n));
            }
            prop_assert!(scopes.iter().is_sorted());
        }
    }
}
