//! The simulator as its clients see it: over HTTP, with a merchant that signs and a listener that takes callbacks.

mod alipay;
mod console;
mod faults;
mod keys;
mod odd;
mod refunds;
mod wechat;
mod world;
