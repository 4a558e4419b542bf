//! The keys of an account: reading, signing and verifying; which of them count at a moment; looking for one that a message
//! names; how long they last.

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
