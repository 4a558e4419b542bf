//! Why a refund has not reached the buyer: a code for programs, and words for people.

use crate::named_enum;

named_enum! {
    /// Why a refund has failed, or what it waits for.
    RefundFailure {
        /// The gateway refused it and knows no such refund. Failed.
        Refused = "refused",
        /// The gateway closed it. Failed.
        Closed = "closed",
        /// The gateway knows no such refund. Failed.
        Unknown = "unknown_to_gateway",
        /// The gateway could not deliver it. Abnormal: a person must act.
        Undeliverable = "undeliverable",
        /// The merchant's balance is too low. The refund worker tries again.
        Balance = "waiting_for_balance",
        /// The gateway wants time between the refunds of an order.
        Turn = "waiting_for_turn",
        /// The gateway refuses the merchant's account and has not judged the refund.
        OurAccount = "our_account",
    }
}

/// The start of the words for a refusal with a code.
const REFUSED: &str = "the gateway refused it";

impl RefundFailure {
    /// In words, without a code or a text of the gateway.
    pub const fn words(self) -> &'static str {
        match self {
            RefundFailure::Refused => REFUSED,
            RefundFailure::Closed => "the gateway closed it",
            RefundFailure::Unknown => "the gateway knows no such refund",
            RefundFailure::Undeliverable => "the gateway could not deliver it",
            RefundFailure::Balance => "it waits for the merchant's balance at the gateway",
            RefundFailure::Turn => "the gateway wants time between the refunds of an order",
            RefundFailure::OurAccount => "it waits until the merchant's account at the gateway is corrected",
        }
    }

    /// The words for a refund that the gateway does not know, after it refused the request with this code.
    pub fn words_of_absence(refused_code: Option<&str>) -> String {
        match refused_code {
            Some(code) => format!("{REFUSED} ({code}) and knows no such refund"),
            None => RefundFailure::Unknown.words().to_owned(),
        }
    }

    /// Why a failed refund has failed, by the words that were stored with it.
    pub fn of_failed(words: &str) -> RefundFailure {
        if words == RefundFailure::Closed.words() {
            RefundFailure::Closed
        } else if words.starts_with(REFUSED) {
            RefundFailure::Refused
        } else {
            RefundFailure::Unknown
        }
    }

    /// What a refund waits for, as it is stored with its job: the code, and the gateway's own words, if there are any.
    pub fn note(self, detail: Option<&str>) -> String {
        match detail {
            Some(detail) => format!("{self}: {detail}"),
            None => self.to_string(),
        }
    }

    /// Reads a [`RefundFailure::note`]. `None` for every other text that a job can hold.
    pub fn read(note: &str) -> Option<(RefundFailure, Option<&str>)> {
        let (code, detail) = match note.split_once(": ") {
            Some((code, detail)) => (code, Some(detail)),
            None => (note, None),
        };
        Some((code.parse().ok()?, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back_and_no_other_text_does() {
        for why in RefundFailure::ALL {
            for detail in [None, Some("ACQ.SELLER_BALANCE_NOT_ENOUGH: 余额不足"), Some("")] {
                assert_eq!(RefundFailure::read(&why.note(detail)), Some((*why, detail)));
            }
        }
        for other in ["", "accepted, not done yet", "NOT_ENOUGH: 余额不足", "waiting_for_balances", "our_account:"]
        {
            assert_eq!(RefundFailure::read(other), None, "{other}");
        }
    }

    #[test]
    fn the_words_of_a_failure_name_it() {
        let absent = RefundFailure::words_of_absence;
        assert_eq!(RefundFailure::of_failed(&absent(Some("ACQ.TRADE_HAS_FINISHED"))), RefundFailure::Refused);
        assert_eq!(RefundFailure::of_failed(&absent(None)), RefundFailure::Unknown);
        assert_eq!(RefundFailure::of_failed(RefundFailure::Closed.words()), RefundFailure::Closed);
        assert!(absent(Some("C")).contains("(C)"));
    }
}
