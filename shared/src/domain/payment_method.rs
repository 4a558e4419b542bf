//! How a buyer pays: which gateway, and in which scene.

/// Declares an enum whose values have one fixed lower-case name, the same in JSON, in the database and in paths.
macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The one name of this value.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::domain::UnknownName;

            fn from_str(text: &str) -> Result<$name, crate::domain::UnknownName> {
                $name::ALL.iter().copied().find(|value| value.as_str() == text).ok_or(crate::domain::UnknownName)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(crate) use named_enum;

named_enum! {
    /// The gateway that takes the money.
    PaymentMethod {
        /// Alipay (支付宝).
        Alipay = "alipay",
        /// WeChat Pay (微信支付).
        Wechat = "wechat",
    }
}

named_enum! {
    /// Where the buyer is when he pays.
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

/// The text names no such value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown name")]
pub struct UnknownName;
