//! Who may name the price of an order that a buyer places.

use jsonwebtoken::get_current_timestamp;
use runtime::env::Env;

use crate::access::until::until;

/// `BUYER_PRICES` (default `offer,catalogue`): who vouches for the price of a buyer's order. `offer`: the merchant's
/// backend, by an offer that it signed. `catalogue`: the catalogue. `any`: only the buyer, who names any price; this counts
/// only while every account is a simulator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BuyerPrices {
    /// A buyer may send an offer.
    pub offer: bool,
    /// A buyer may name a product of the catalogue.
    pub catalogue: bool,
    /// A buyer may name any price, of a simulated payment.
    pub any: bool,
    /// `BUYER_PRICES_ANY_UNTIL` (default: never): until this time, at most 90 days ahead, a buyer may name any price, as in
    /// earlier releases. In seconds since 1970.
    pub any_until: u64,
}

impl BuyerPrices {
    /// Reads the section.
    pub fn from_env(env: &mut Env) -> Option<BuyerPrices> {
        const NAME: &str = "BUYER_PRICES";
        let allowed = "a buyer's token names any price";
        let any_until = until(env, "BUYER_PRICES_ANY_UNTIL", allowed)?;
        let text = env.optional(NAME).unwrap_or_else(|| "offer,catalogue".to_owned());
        let mut prices = BuyerPrices { any_until, ..BuyerPrices::default() };
        for name in text.split(',').map(str::trim) {
            match name {
                "offer" => prices.offer = true,
                "catalogue" => prices.catalogue = true,
                "any" => prices.any = true,
                other => {
                    env.fault(NAME, format!("{other:?} cannot be read"), "write offer, catalogue or any, with commas");
                    return None;
                }
            }
        }
        Some(prices)
    }

    /// Whether a buyer may name any price now. `is_simulated`: whether every account is a simulator's.
    pub fn takes_any(&self, is_simulated: bool) -> bool {
        self.any && is_simulated || get_current_timestamp() < self.any_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(variables: [(&str, &str); N]) -> Result<BuyerPrices, String> {
        let mut env = Env::of(variables);
        let prices = BuyerPrices::from_env(&mut env);
        env.finish().map(|()| prices.unwrap()).map_err(|faults| faults.to_string())
    }

    #[test]
    fn a_buyer_names_no_price_unless_it_is_allowed() {
        let prices = read([]).unwrap();
        assert_eq!((prices.offer, prices.catalogue), (true, true));
        assert!(!prices.takes_any(true) && !prices.takes_any(false));
        let any = read([("BUYER_PRICES", "any, offer")]).unwrap();
        assert_eq!((any.offer, any.catalogue), (true, false));
        assert!(any.takes_any(true));
        assert!(!any.takes_any(false), "a real account takes no price of a buyer");
        for wrong in ["", "all", "offer,", "Any"] {
            let text = read([("BUYER_PRICES", wrong)]).err();
            // An empty value counts as absent.
            assert_eq!(text.is_some(), !wrong.is_empty(), "{wrong:?}: {text:?}");
        }
    }

    #[test]
    fn the_switch_for_buyers_prices_has_an_end() {
        let at = |days: i64| {
            let at = runtime::clock::Clock::system().now() + time::Duration::days(days);
            at.format(&time::format_description::well_known::Rfc3339).unwrap()
        };
        let any = |text: &str| read([("BUYER_PRICES_ANY_UNTIL", text)]);
        assert!(any(&at(80)).unwrap().takes_any(false));
        assert!(!any(&at(-1)).unwrap().takes_any(false));
        for wrong in ["soon".to_owned(), at(91)] {
            assert!(any(&wrong).unwrap_err().contains("BUYER_PRICES_ANY_UNTIL"), "{wrong}");
        }
    }
}
