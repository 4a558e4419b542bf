//! What an account does with payments that were not owed.

use std::collections::HashMap;

use crate::account::AccountName;
use crate::named_enum;
use crate::payment_method::PaymentMethod;

named_enum! {
    /// What an account does with a payment of a closed order, and with a second payment of a paid order.
    LatePaymentPolicy {
        /// Holds it until people have decided.
        Hold = "hold",
        /// Refunds it.
        Refund = "refund",
        /// Delivers what a late payment bought. A second payment buys nothing more, so it is held.
        Fulfil = "fulfil",
    }
}

/// The policy of each account. An account that is not listed holds the money.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies(HashMap<(PaymentMethod, AccountName), LatePaymentPolicy>);

impl Policies {
    /// The policy of this account.
    pub fn of(&self, method: PaymentMethod, account: &AccountName) -> LatePaymentPolicy {
        self.0.get(&(method, account.clone())).copied().unwrap_or(LatePaymentPolicy::Hold)
    }
}

impl FromIterator<(PaymentMethod, AccountName, LatePaymentPolicy)> for Policies {
    fn from_iter<I: IntoIterator<Item = (PaymentMethod, AccountName, LatePaymentPolicy)>>(accounts: I) -> Policies {
        Policies(accounts.into_iter().map(|(method, account, policy)| ((method, account), policy)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_without_a_policy_holds_the_money() {
        let name = |text| AccountName::parse(text).unwrap();
        let policies: Policies =
            [(PaymentMethod::Alipay, name("main"), LatePaymentPolicy::Refund)].into_iter().collect();
        assert_eq!(policies.of(PaymentMethod::Alipay, &name("main")), LatePaymentPolicy::Refund);
        assert_eq!(policies.of(PaymentMethod::Wechat, &name("main")), LatePaymentPolicy::Hold);
        assert_eq!(Policies::default().of(PaymentMethod::Alipay, &name("main")), LatePaymentPolicy::Hold);
    }
}
