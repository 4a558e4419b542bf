//! Signed callbacks, rendered without HTTP: for the simulator's deliveries, for tests and for load.

pub use crate::alipay::notify::render as alipay;
pub use crate::callback::{Overrides, SignedCallback, Wrong};
pub use crate::wechat::notify::render as wechat;
