//! Counts refused callbacks by address, and says when an address has had too many: whoever is never refused is never
//! slowed.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::buckets::{Buckets, Quota};
use crate::guard::holder;

/// So many refusals in a row are let through to the checks, and one is forgiven each half second.
const PATIENCE: Quota = Quota { burst: 60, every: Duration::from_millis(500) };

/// See the module.
pub struct Strikes(Buckets<IpAddr>);

impl Strikes {
    /// Whether the address has been refused too often of late.
    pub fn is_out(&self, address: IpAddr, now: Instant) -> bool {
        self.0.is_empty(&holder(address), now)
    }

    /// Notes a refusal.
    pub fn add(&self, address: IpAddr, now: Instant) {
        self.0.charge(holder(address), now);
    }
}

impl Default for Strikes {
    fn default() -> Strikes {
        Strikes(Buckets::new(PATIENCE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_out_after_a_burst_and_back_with_time() {
        let (strikes, began) = (Strikes::default(), Instant::now());
        let forger: IpAddr = "2001:db8::1".parse().unwrap();
        for _ in 0..PATIENCE.burst {
            assert!(!strikes.is_out(forger, began));
            strikes.add(forger, began);
        }
        assert!(strikes.is_out("2001:db8::ffff".parse().unwrap(), began), "the same /64");
        assert!(!strikes.is_out("2001:db8:0:1::1".parse().unwrap(), began), "another /64");
        assert!(!strikes.is_out(forger, began + PATIENCE.every));
        strikes.add(forger, began + PATIENCE.every);
        assert!(strikes.is_out(forger, began + PATIENCE.every));
        assert!(!strikes.is_out(forger, began + PATIENCE.every * PATIENCE.burst));
    }
}
