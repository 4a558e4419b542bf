//! The domain types and the rules about them. No I/O, no clock, no gateway-specific formats.

mod account;
mod api_key;
#[cfg(feature = "sqlx")]
mod columns;
mod ids;
pub mod message;
mod money;
mod named_enum;
mod notification;
mod order;
mod order_no;
mod order_ref;
mod payment_config;
mod payment_method;
mod policy;
mod purchase;
mod refund;
mod refund_failure;
mod refund_report;
mod refund_rules;
mod scope;
mod text;
mod verdict;

pub use account::{AccountName, AccountNameError, UserId, UserIdError};
pub use api_key::{
    ApiKeyId, ApiKeyIdError, ApiKeyName, ApiKeyNameError, ApiKeySecret, ApiKeyState, ApiKeyText, KeyDigest,
    KeyEnvironment,
};
pub use ids::{CaseId, OrderId, ParseIdError, RefundId, TransactionId, first_id_at};
pub use money::{Money, MoneyError};
pub use named_enum::UnknownName;
pub use notification::{Fact, Merchant, Notification, ReturnedTrade, Source};
pub use order::{ExtraState, InvalidTransition, OrderEvent, OrderStatus, TRANSITIONS};
pub use order_no::{
    OrderNo, OrderNoError, ProductType, ProductTypeError, RefundNo, RefundNoError, Subject, SubjectError, TradeNo,
    TradeNoError,
};
pub use order_ref::{OrderRef, OrderRefError};
pub use payment_config::{MethodConfig, MethodRules, NotOffered, PaymentConfig};
pub use payment_method::{PaymentMethod, Scene};
pub use policy::{LatePaymentPolicy, Policies};
pub use purchase::{MerchantOrderNo, MerchantOrderNoError, OfferId, OfferIdError, Purchase, VouchedBy};
pub use refund::{REFUND_TRANSITIONS, RefundEvent, RefundOrigin, RefundStatus, status_by_refunds};
pub use refund_failure::RefundFailure;
pub use refund_report::{RefundReport, RefundState};
pub use refund_rules::{BuyerRefunds, BuyerRefusal, RefundRules};
pub use scope::{Scope, Scopes};
pub use text::{escaped, shorten_bytes, shorten_chars, shows, steers};
pub use verdict::{CaseAction, CaseKind, CaseStatus, Verdict};
