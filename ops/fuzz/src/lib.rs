//! Fuzz targets: each passes arbitrary bytes to one reader of the service, and panics when a required property does
//! not hold.
//!
//! To reach the readers behind a signature, the target signs and encrypts its input with valid keys, as the gateway
//! would. The keys are those of the protocol vectors, which are worth nothing.

mod accounts;
mod alipay;
mod money;
mod problem;
mod wechat;

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
