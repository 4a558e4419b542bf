//! Compares the account that a message names with the order's.

use domain::{CaseKind, Merchant, Notification, Verdict};

use crate::tables::orders::Order;

/// Whether a message is about the account and the app that the order was placed with. The account's current apps count
/// too, because a credential may have been renewed under one of them.
pub(super) fn is_whose_it_says(notification: &Notification, order: &Order) -> bool {
    let merchant = match &notification.merchant {
        Merchant::Ours => true,
        Merchant::OtherApp { app, .. } => {
            gateway::app_of_order(order.payment_method, &order.prepay) == Some(app.as_str())
        }
        Merchant::Other(_) => false,
    };
    merchant && order.account == notification.account
}

/// Whether a message is about another gateway, merchant or account than the order's. Returns the verdict and the kind
/// of case.
pub(super) fn elsewhere(order: &Order, notification: &Notification) -> Option<(Verdict, CaseKind)> {
    if order.payment_method != notification.method {
        return Some((Verdict::WrongMethod, CaseKind::WrongMethod));
    }
    (!is_whose_it_says(notification, order)).then_some((Verdict::WrongMerchant, CaseKind::WrongMerchant))
}
