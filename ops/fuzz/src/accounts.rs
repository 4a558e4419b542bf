//! The accounts and keys of the protocol vectors.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use domain::{AccountName, PaymentMethod};
use gateway::keys::SigningKey;
use gateway::{Gateway, Gateways};

static GATEWAYS: LazyLock<Gateways> = LazyLock::new(|| {
    runtime::telemetry::install_crypto();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../api/tests/fixtures/gateways.toml");
    Gateways::load(&file).unwrap_or_else(|faults| panic!("{faults:?}"))
});

pub(crate) fn main_account() -> AccountName {
    AccountName::parse("main").unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn gateway(method: PaymentMethod) -> Arc<dyn Gateway> {
    GATEWAYS.get(method, &main_account()).unwrap_or_else(|| panic!("no account of {method}"))
}

/// A private key of the gateways.
pub(crate) fn signing_key(pem: &str) -> SigningKey {
    SigningKey::from_pem(pem).unwrap_or_else(|error| panic!("{error}"))
}
