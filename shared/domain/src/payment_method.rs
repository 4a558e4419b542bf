//! How a buyer pays: the gateway and the scene.

use crate::named_enum;

named_enum! {
    /// The gateway that receives the money.
    PaymentMethod {
        /// Alipay (支付宝).
        Alipay = "alipay",
        /// WeChat Pay (微信支付).
        Wechat = "wechat",
    }
}

named_enum! {
    /// Where the buyer is when they pay.
    Scene {
        /// A desktop browser (Alipay).
        Page = "page",
        /// A mobile browser (Alipay).
        Wap = "wap",
        /// A mobile app with the gateway's SDK (both).
        App = "app",
        /// A QR code that the buyer scans (Alipay).
        Qr = "qr",
        /// A QR code that the buyer scans (WeChat Pay).
        Native = "native",
        /// A page inside WeChat (WeChat Pay).
        Jsapi = "jsapi",
        /// A mini program (WeChat Pay).
        Mini = "mini",
        /// A mobile browser (WeChat Pay).
        H5 = "h5",
    }
}

impl PaymentMethod {
    /// The scenes that this gateway has.
    pub const fn scenes(self) -> &'static [Scene] {
        match self {
            PaymentMethod::Alipay => &[Scene::Page, Scene::Wap, Scene::App, Scene::Qr],
            PaymentMethod::Wechat => &[Scene::Native, Scene::Jsapi, Scene::Mini, Scene::H5, Scene::App],
        }
    }
}
