//! Counts refused callbacks per address and per IPv6 /48, and blocks an address that has had too many. Only refusals
//! count: callbacks that are accepted cost nothing.

use std::net::IpAddr;
use std::time::Duration;

use runtime::http_server::shares::{NETWORK, holder, network};
use tokio::time::Instant;

use crate::access::buckets::{Buckets, Quota};

/// Allows 60 refusals in a row. Every half second one refusal is forgiven.
const PATIENCE: Quota = Quota { burst: 60, every: Duration::from_millis(500) };
/// The same for refusals that the gateway itself may cause, for example with a key that this process does not know yet.
const LONG_PATIENCE: Quota = Quota { burst: 600, every: Duration::from_millis(50) };

/// What a refusal says about the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// No gateway sends this.
    Forged,
    /// A gateway may send this occasionally.
    Odd,
}

/// See the module.
pub struct Strikes {
    forged: Patience,
    odd: Patience,
}

/// Refusals of one kind, counted per IPv4 address or IPv6 /64, and per IPv6 /48.
struct Patience {
    holders: Buckets<IpAddr>,
    networks: Buckets<IpAddr>,
}

impl Strikes {
    /// Whether the address has had too many refusals recently.
    pub fn is_out(&self, address: IpAddr, now: Instant) -> bool {
        self.forged.is_out(address, now) || self.odd.is_out(address, now)
    }

    /// Records a refusal.
    pub fn add(&self, strike: Strike, address: IpAddr, now: Instant) {
        match strike {
            Strike::Forged => self.forged.add(address, now),
            Strike::Odd => self.odd.add(address, now),
        }
    }
}

impl Patience {
    fn new(quota: Quota) -> Patience {
        let times = NETWORK as u32;
        let wide = Quota { burst: quota.burst * times, every: quota.every / times };
        Patience { holders: Buckets::new(quota), networks: Buckets::new(wide) }
    }

    fn is_out(&self, address: IpAddr, now: Instant) -> bool {
        self.holders.is_empty(&holder(address), now)
            || network(address).is_some_and(|network| self.networks.is_empty(&network, now))
    }

    fn add(&self, address: IpAddr, now: Instant) {
        self.holders.charge(holder(address), now);
        if let Some(network) = network(address) {
            self.networks.charge(network, now);
        }
    }
}

impl Default for Strikes {
    fn default() -> Strikes {
        Strikes { forged: Patience::new(PATIENCE), odd: Patience::new(LONG_PATIENCE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_out_after_a_burst_and_back_with_time() {
        let (strikes, began) = (Strikes::default(), Instant::now());
        let forger = address("2001:db8::1");
        for _ in 0..PATIENCE.burst {
            assert!(!strikes.is_out(forger, began));
            strikes.add(Strike::Forged, forger, began);
        }
        assert!(strikes.is_out(address("2001:db8::ffff"), began), "the same /64");
        assert!(!strikes.is_out(address("2001:db8:0:1::1"), began), "another /64");
        assert!(!strikes.is_out(forger, began + PATIENCE.every));
        strikes.add(Strike::Forged, forger, began + PATIENCE.every);
        assert!(strikes.is_out(forger, began + PATIENCE.every));
        assert!(!strikes.is_out(forger, began + PATIENCE.every * PATIENCE.burst));
    }

    #[test]
    fn what_a_gateway_may_send_is_borne_longer_and_not_for_ever() {
        let (strikes, began) = (Strikes::default(), Instant::now());
        let prober = address("192.0.2.1");
        for _ in 0..LONG_PATIENCE.burst {
            assert!(!strikes.is_out(prober, began));
            strikes.add(Strike::Odd, prober, began);
        }
        assert!(strikes.is_out(prober, began));
        assert!(!strikes.is_out(address("192.0.2.2"), began));
    }

    #[test]
    fn a_48_is_out_after_eight_times_as_many() {
        let (strikes, began) = (Strikes::default(), Instant::now());
        let forger = |n: u32| address(&format!("2001:db8:0:{:x}::1", n % 100));
        for n in 0..PATIENCE.burst * NETWORK as u32 {
            assert!(!strikes.is_out(forger(99), began), "{n}");
            strikes.add(Strike::Forged, forger(n % 50), began);
        }
        assert!(strikes.is_out(forger(99), began), "a /64 that was never refused, in a /48 that was too often");
        assert!(!strikes.is_out(address("2001:db8:1::1"), began));
    }
}
