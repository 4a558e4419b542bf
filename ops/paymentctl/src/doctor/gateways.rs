//! Checks whether the accounts work: our keys, how long the gateway's keys last, the connection to the gateway, and
//! whether the gateway accepts our signature.

use std::path::Path;

use domain::PaymentMethod;
use gateway::{Ending, Gateway, GatewayError, Gateways, KeyStatus, Reach, WARN_DAYS, endings};
use runtime::clock::Clock;
use time::{Duration, OffsetDateTime};

use super::check::Check;
use super::database::seconds;

/// WeChat Pay refuses what was signed more than five minutes ago, and so do we. An operator should act long before
/// that.
const DIFFERS: Duration = Duration::seconds(10);
const DIFFERS_TOO_MUCH: Duration = Duration::seconds(120);

/// Checks every account of the file.
pub(super) async fn look(file: Option<String>, clock: Clock) -> Vec<Check> {
    let Some(file) = file else {
        return vec![Check::skipped("gateways", "set GATEWAYS_FILE, where the keys are")];
    };
    let gateways = match Gateways::load(Path::new(&file)) {
        Ok(gateways) => gateways,
        Err(faults) => {
            let check =
                |fault: &dyn std::fmt::Display| Check::failed("gateways", fault.to_string(), "mend GATEWAYS_FILE");
            return faults.iter().map(|fault| check(fault)).collect();
        }
    };
    let mut checks = Vec::new();
    for gateway in gateways.iter() {
        let who = gateways.identity(gateway.method(), gateway.account()).unwrap_or_default();
        checks.extend(account(gateway.as_ref(), &who, clock).await);
    }
    checks
}

async fn account(gateway: &dyn Gateway, who: &str, clock: Clock) -> Vec<Check> {
    let name = format!("account {}/{}", gateway.method(), gateway.account());
    let mut checks = vec![own_key(gateway, &name, who)];
    // Every process also trusts the keys that it fetches, besides those in files. The doctor does the same.
    if let Err(error) = gateway.refresh_keys(clock.now()).await {
        let remedy = "the known keys stay in use; see the connection to the gateway below";
        checks.push(Check::warning(format!("{name} certificates"), error.to_string(), remedy));
    }
    checks.extend(their_keys(&name, &gateway.key_status(), clock.now()));
    let before = clock.now();
    let reached = gateway.reach(before).await;
    let between = before + (clock.now() - before) / 2;
    match reached {
        Ok(reach) => {
            checks.push(taken(gateway, &name, &reach));
            checks.extend(reach.date.map(|date| time(&name, date, between)));
        }
        Err(error) => {
            let remedy = "check the network from here: DNS, proxy, firewall, TLS";
            checks.push(Check::failed(format!("{name} reach"), error.to_string(), remedy));
        }
    }
    checks
}

fn own_key(gateway: &dyn Gateway, name: &str, who: &str) -> Check {
    match gateway.signs() {
        true => Check::ok(name, format!("{who}; its private key signs")),
        false => {
            Check::failed(name, "its public key does not verify what the private key signs", "replace the private key")
        }
    }
}

/// For each kind of key, how long it lasts; and whether there is any key to verify with.
fn their_keys(name: &str, keys: &[KeyStatus], now: OffsetDateTime) -> Vec<Check> {
    let name = format!("{name} keys");
    if keys.is_empty() {
        let remedy = "name the gateway's public key or certificate in GATEWAYS_FILE";
        return vec![Check::failed(name, "there is none to verify what the gateway signs", remedy)];
    }
    let endings = endings(keys, now);
    let endless = keys.iter().filter(|key| key.validity.until.is_none());
    let mut checks: Vec<Check> =
        endless.map(|key| Check::ok(&name, format!("{} {}, without an end", key.kind, key.serial))).collect();
    checks.extend(endings.iter().map(|ending| lasts(&name, ending)));
    checks
}

fn lasts(name: &str, ending: &Ending) -> Check {
    const REMEDY: &str = "put its successor beside it (ops/keys.md)";
    let what = format!("{} {}", ending.kind, ending.serial);
    let days = ending.days.floor();
    match () {
        () if ending.early => Check::failed(name, format!("{what} is not valid yet"), "check the clock and the file"),
        () if days < 0.0 => Check::failed(name, format!("{what} has expired, and none follows it"), REMEDY),
        () if days < WARN_DAYS => {
            Check::warning(name, format!("{what} ends in {days} days, and none follows it"), REMEDY)
        }
        () => Check::ok(name, format!("{what}, {days} days left")),
    }
}

/// The result of the query about an order that cannot exist.
fn taken(gateway: &dyn Gateway, name: &str, reach: &Reach) -> Check {
    let name = format!("{name} reach");
    match &reach.taken {
        Ok(()) => Check::ok(
            name,
            match gateway.method() {
                PaymentMethod::Alipay => "it accepts our signature, and we accept its",
                PaymentMethod::Wechat => {
                    "it accepts our signature (it does not sign this answer: only a callback checks its own key)"
                }
            },
        ),
        Err(error @ (GatewayError::Refused { .. } | GatewayError::Misconfigured { .. })) => {
            let remedy = "check the private key, its serial or application, and the environment in GATEWAYS_FILE";
            Check::failed(name, error.to_string(), remedy)
        }
        Err(error @ (GatewayError::Unavailable(_) | GatewayError::NotNow { .. })) => {
            Check::warning(name, error.to_string(), "it answers but is busy; check again later")
        }
        Err(error) => Check::failed(name, error.to_string(), "check the gateway's own key in GATEWAYS_FILE"),
    }
}

/// The gateway reports its clock in whole seconds, so half a second more is the best estimate.
fn time(name: &str, date: OffsetDateTime, ours: OffsetDateTime) -> Check {
    let name = format!("{name} clock");
    let ahead = date + Duration::milliseconds(500) - ours;
    let said = format!("the gateway's is {} from ours", seconds(ahead));
    match ahead.abs() {
        off if off <= DIFFERS => Check::ok(name, said),
        off if off <= DIFFERS_TOO_MUCH => Check::warning(name, said, "set this machine by NTP"),
        _ => Check::failed(name, said, "set this machine by NTP: callbacks are refused beyond five minutes"),
    }
}
