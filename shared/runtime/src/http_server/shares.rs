//! Counts what each client holds now, with a limit for each, so that one client leaves room for the others.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A /48 has 65 536 networks of the size /64. All of them together may hold as much as this many single ones.
pub const NETWORK: usize = 8;

/// The number of things that each key holds. Clones share the count.
pub struct Shares<K> {
    most: usize,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Shares<K> {
        Shares { most: self.most, held: self.held.clone() }
    }
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// At most `most` for each key.
    pub fn new(most: usize) -> Shares<K> {
        Shares { most, held: Arc::default() }
    }

    /// Counts one more for this key until the share is dropped; `None` if the key has reached its limit.
    pub fn take(&self, key: K) -> Option<Share<K>> {
        let mut held = lock(&self.held);
        let count = held.entry(key.clone()).or_insert(0);
        if *count >= self.most {
            // With a limit of 0, no entry may remain for each stranger.
            if *count == 0 {
                held.remove(&key);
            }
            return None;
        }
        *count += 1;
        Some(Share { key, held: self.held.clone() })
    }
}

/// One of the things that a key holds; dropping it gives the share back.
pub struct Share<K: Hash + Eq> {
    key: K,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Hash + Eq> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

fn lock<K>(held: &Mutex<HashMap<K, usize>>) -> MutexGuard<'_, HashMap<K, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same by address: a limit for each holder (see [`holder`]), and eight times as much for each IPv6 /48.
#[derive(Clone)]
pub struct AddressShares {
    holders: Shares<IpAddr>,
    networks: Shares<IpAddr>,
}

/// One of the things that an address holds.
pub struct AddressShare {
    _holder: Share<IpAddr>,
    _network: Option<Share<IpAddr>>,
}

impl AddressShares {
    /// At most `most` for each holder.
    pub fn new(most: usize) -> AddressShares {
        AddressShares { holders: Shares::new(most), networks: Shares::new(most.saturating_mul(NETWORK)) }
    }

    /// Counts one more for this address until the share is dropped; `None` if its holder or its /48 has reached its
    /// limit.
    pub fn take(&self, address: IpAddr) -> Option<AddressShare> {
        let network = match network(address) {
            Some(network) => Some(self.networks.take(network)?),
            None => None,
        };
        Some(AddressShare { _holder: self.holders.take(holder(address))?, _network: network })
    }
}

/// The holder of an address, for limits: an IPv4 address, or the /64 of an IPv6 address.
pub fn holder(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => masked(v6, 64),
    }
}

/// The /48 of an IPv6 address; one customer of a provider can have a whole /48.
pub fn network(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(masked(v6, 48)),
    }
}

fn masked(address: Ipv6Addr, bits: u32) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - bits))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_share_is_given_back_and_leaves_no_entry() {
        let shares = Shares::new(2);
        let held = [shares.take("a"), shares.take("a")];
        assert!(held.iter().all(Option::is_some));
        assert!(shares.take("a").is_none() && shares.take("b").is_some());
        drop(held);
        assert!(lock(&shares.held).is_empty());
        assert!(shares.take("a").is_some());
        assert!(Shares::new(0).take("a").is_none());
    }

    #[test]
    fn a_48_has_eight_times_as_much_as_a_64() {
        let shares = AddressShares::new(2);
        let take = |n: usize| shares.take(address(&format!("2001:db8:0:{n:x}::{n:x}")));
        let held: Vec<_> = (0..100).flat_map(|n| [take(n), take(n), take(n)]).flatten().collect();
        assert_eq!(held.len(), 16, "eight /64 with two each");
        assert!(shares.take(address("2001:db8:1::1")).is_some(), "another /48");
        assert!(shares.take(address("192.0.2.1")).is_some());
        drop(held);
        assert!(take(99).is_some());
        assert!(lock(&shares.holders.held).is_empty() && lock(&shares.networks.held).is_empty());
    }
}
