//! Keys: reading them from PEM, signing, verifying. One RSA rule for both gateways: RSASSA-PKCS1-v1_5 with SHA-256,
//! 2048 bits at least. Nothing here shows private material, and buffers that held it are wiped.

mod gate;
mod ring;
mod rsa;
mod status;

pub(crate) use gate::Gate;
pub use ring::{KeyRing, KeyTime, NoKey, Validity};
pub use rsa::{Certificate, KeyError, SigningKey, VerifyingKey, nonce};
pub(crate) use rsa::{jitter, pem_blocks};
pub(crate) use status::APP_CERTIFICATE;
pub use status::{Ending, KeyNews, KeyStatus, WARN_DAYS, endings};
