//! Fuzz targets: each passes arbitrary bytes to one reader of the service, and panics when a required property does
//! not hold.
//!
//! To reach the readers behind a signature, the target signs and encrypts its input with valid keys, as the gateway
//! would. The keys are those of the protocol vectors, which are worth nothing.

mod alipay;
mod money;
mod problem;
mod wechat;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use domain::{AccountName, PaymentMethod};
use gateway::keys::SigningKey;
use gateway::{Gateway, Gateways};

/// One reader under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its folder in `corpus`.
    pub name: &'static str,
    /// Reads the bytes; panics on a finding.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target { name: "alipay_callback", run: alipay::callback },
    Target { name: "alipay_signed", run: alipay::signed },
    Target { name: "alipay_answer", run: alipay::answer },
    Target { name: "wechat_callback", run: wechat::callback },
    Target { name: "wechat_signed", run: wechat::signed },
    Target { name: "wechat_sealed", run: wechat::sealed },
    Target { name: "wechat_certificates", run: wechat::certificates },
    Target { name: "money", run: money::read },
    Target { name: "problem", run: problem::render },
];

static GATEWAYS: LazyLock<Gateways> = LazyLock::new(|| {
    runtime::telemetry::install_crypto();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../api/tests/fixtures/gateways.toml");
    Gateways::load(&file).unwrap_or_else(|faults| panic!("{faults:?}"))
});

fn main_account() -> AccountName {
    AccountName::parse("main").unwrap_or_else(|error| panic!("{error}"))
}

fn gateway(method: PaymentMethod) -> Arc<dyn Gateway> {
    GATEWAYS.get(method, &main_account()).unwrap_or_else(|| panic!("no account of {method}"))
}

/// A private key of the gateways.
fn signing_key(pem: &str) -> SigningKey {
    SigningKey::from_pem(pem).unwrap_or_else(|error| panic!("{error}"))
}
