//! Counts refused requests by address, and says when an address has had too many.
//!
//! A token bucket that only refusals are charged to: whoever is never refused is never slowed. (The usual limiter
//! crates charge for being asked, so they cannot count this way.)

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// One more refusal is forgiven each time this has passed.
const FORGIVEN_EVERY: Duration = Duration::from_millis(500);
/// So many refusals in a row are let through to the checks.
const BURST: u32 = 60;
/// More addresses than that are not remembered: the bound on memory.
const ADDRESSES: usize = 50_000;

/// See the module.
#[derive(Default)]
pub struct Strikes(Mutex<Book>);

#[derive(Default)]
struct Book {
    /// When all strikes of an address are forgiven.
    clean_at: HashMap<IpAddr, Instant>,
    /// A full book is swept now and then, not for each stranger.
    swept_at: Option<Instant>,
}

impl Strikes {
    /// Whether the address has been refused too often of late.
    pub fn is_out(&self, address: IpAddr, now: Instant) -> bool {
        let clean_at = self.book().clean_at.get(&network(address)).copied();
        clean_at.is_some_and(|clean_at| clean_at > now + FORGIVEN_EVERY * (BURST - 1))
    }

    /// Notes a refusal.
    pub fn add(&self, address: IpAddr, now: Instant) {
        let (mut book, network) = (self.book(), network(address));
        if book.clean_at.len() >= ADDRESSES && !book.clean_at.contains_key(&network) {
            book.sweep(now);
            if book.clean_at.len() >= ADDRESSES {
                return;
            }
        }
        let clean_at = book.clean_at.entry(network).or_insert(now);
        *clean_at = (*clean_at).max(now) + FORGIVEN_EVERY;
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn sweep(&mut self, now: Instant) {
        if self.swept_at.is_none_or(|swept_at| swept_at + FORGIVEN_EVERY <= now) {
            self.clean_at.retain(|_, clean_at| *clean_at > now);
            self.swept_at = Some(now);
        }
    }
}

/// Who has one IPv6 address has the whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_out_after_a_burst_and_back_with_time() {
        let (strikes, began) = (Strikes::default(), Instant::now());
        let forger: IpAddr = "2001:db8::1".parse().unwrap();
        for _ in 0..BURST {
            assert!(!strikes.is_out(forger, began));
            strikes.add(forger, began);
        }
        assert!(strikes.is_out("2001:db8::ffff".parse().unwrap(), began), "the same /64");
        assert!(!strikes.is_out("2001:db8:0:1::1".parse().unwrap(), began), "another /64");
        assert!(!strikes.is_out(forger, began + FORGIVEN_EVERY));
        strikes.add(forger, began + FORGIVEN_EVERY);
        assert!(strikes.is_out(forger, began + FORGIVEN_EVERY));
        assert!(!strikes.is_out(forger, began + FORGIVEN_EVERY * BURST));
    }

    #[test]
    fn a_flood_of_addresses_has_a_bound() {
        let (strikes, began) = (Strikes::default(), Instant::now());
        for n in 0..=u32::try_from(ADDRESSES).unwrap() {
            strikes.add(IpAddr::V4(n.into()), began);
        }
        assert_eq!(strikes.book().clean_at.len(), ADDRESSES);
        strikes.add("1.2.3.4".parse().unwrap(), began + FORGIVEN_EVERY);
        assert_eq!(strikes.book().clean_at.len(), 1, "the forgiven ones made room");
    }
}
