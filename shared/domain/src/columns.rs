//! How domain types are stored in columns. Reading uses each type's own `parse`, so a row that does not parse is an
//! error.

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use crate::account::{AccountName, UserId};
use crate::api_key::{ApiKeyId, ApiKeyName, ApiKeyState, KeyEnvironment};
use crate::ids::{CaseId, OrderId, RefundId, TransactionId};
use crate::message::job::JobKind;
use crate::money::Money;
use crate::order::{ExtraState, OrderStatus};
use crate::order_no::{OrderNo, ProductType, RefundNo, Subject, TradeNo};
use crate::payment_method::{PaymentMethod, Scene};
use crate::purchase::{MerchantOrderNo, OfferId, VouchedBy};
use crate::refund::{RefundOrigin, RefundStatus};
use crate::refund_rules::BuyerRefunds;
use crate::verdict::{CaseKind, CaseStatus, Verdict};

/// How one type is written and read: its `$read` and `$write`, and the PostgreSQL types of it and of its arrays.
macro_rules! column {
    ($type:ty: $read:expr, $write:expr, $info:expr, $array:expr) => {
        impl Type<Postgres> for $type {
            fn type_info() -> PgTypeInfo {
                $info
            }

            fn compatible(column: &PgTypeInfo) -> bool {
                <String as Type<Postgres>>::compatible(column)
            }
        }

        impl PgHasArrayType for $type {
            fn array_type_info() -> PgTypeInfo {
                $array
            }
        }

        impl Encode<'_, Postgres> for $type {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let write: fn(&$type) -> String = $write;
                <String as Encode<'_, Postgres>>::encode(write(self), buffer)
            }
        }

        impl<'r> Decode<'r, Postgres> for $type {
            fn decode(value: PgValueRef<'r>) -> Result<$type, BoxDynError> {
                let text = <&str as Decode<'r, Postgres>>::decode(value)?;
                let read: fn(&str) -> Result<$type, BoxDynError> = $read;
                read(text)
            }
        }
    };
}

/// A text column that holds `$type`; `$read` parses it and `$write` prints it.
macro_rules! text_column {
    ($($type:ty: $read:expr, $write:expr;)+) => {$(
        column! { $type: $read, $write, <String as Type<Postgres>>::type_info(), <String as PgHasArrayType>::array_type_info() }
    )+};
}

/// A `char` column of fixed length that holds the id `$type`. The parameter must be declared as `character`. If it were
/// declared as `text`, PostgreSQL would convert the column to text, could use none of its indexes, and would read the
/// whole table.
macro_rules! id_column {
    ($($type:ty),+) => {$(
        column! { $type: |text| Ok(<$type>::parse(text)?), ToString::to_string, PgTypeInfo::with_oid(BPCHAR), PgTypeInfo::with_oid(BPCHAR_ARRAY) }
    )+};
}

/// The type numbers of PostgreSQL's `character` and of its arrays (pg_type.dat).
const BPCHAR: Oid = Oid(1042);
const BPCHAR_ARRAY: Oid = Oid(1014);

id_column!(ApiKeyId, CaseId, OrderId, RefundId, TransactionId);

text_column! {
    AccountName: |text| Ok(AccountName::parse(text)?), ToString::to_string;
    ApiKeyName: |text| Ok(ApiKeyName::parse(text)?), ToString::to_string;
    MerchantOrderNo: |text| Ok(MerchantOrderNo::parse(text)?), ToString::to_string;
    OfferId: |text| Ok(OfferId::parse(text)?), ToString::to_string;
    OrderNo: |text| Ok(OrderNo::parse(text)?), ToString::to_string;
    ProductType: |text| Ok(ProductType::parse(text)?), ToString::to_string;
    RefundNo: |text| Ok(RefundNo::parse(text)?), ToString::to_string;
    Subject: |text| Ok(Subject::parse(text)?), ToString::to_string;
    TradeNo: |text| Ok(TradeNo::parse(text)?), ToString::to_string;
    UserId: |text| Ok(UserId::parse(text)?), ToString::to_string;
    ApiKeyState: |text| Ok(text.parse()?), ToString::to_string;
    CaseKind: |text| Ok(text.parse()?), ToString::to_string;
    CaseStatus: |text| Ok(text.parse()?), ToString::to_string;
    OrderStatus: |text| Ok(text.parse()?), ToString::to_string;
    ExtraState: |text| Ok(text.parse()?), ToString::to_string;
    JobKind: |text| Ok(text.parse()?), ToString::to_string;
    KeyEnvironment: |text| Ok(text.parse()?), ToString::to_string;
    PaymentMethod: |text| Ok(text.parse()?), ToString::to_string;
    Scene: |text| Ok(text.parse()?), ToString::to_string;
    RefundOrigin: |text| Ok(text.parse()?), ToString::to_string;
    BuyerRefunds: |text| Ok(text.parse()?), ToString::to_string;
    RefundStatus: |text| Ok(text.parse()?), ToString::to_string;
    Verdict: |text| Ok(text.parse()?), ToString::to_string;
    VouchedBy: |text| Ok(text.parse()?), ToString::to_string;
}

/// `numeric(10,2)` yuan in the column, fen in `Money`.
impl Type<Postgres> for Money {
    fn type_info() -> PgTypeInfo {
        <Decimal as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for Money {
    fn array_type_info() -> PgTypeInfo {
        <Decimal as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, Postgres> for Money {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <Decimal as Encode<'_, Postgres>>::encode(Decimal::new(self.fen(), 2), buffer)
    }
}

impl<'r> Decode<'r, Postgres> for Money {
    fn decode(value: PgValueRef<'r>) -> Result<Money, BoxDynError> {
        let yuan = <Decimal as Decode<'r, Postgres>>::decode(value)?;
        let fen = yuan * Decimal::ONE_HUNDRED;
        let whole = fen.is_integer().then(|| fen.to_i64()).flatten();
        Ok(Money::from_fen(whole.ok_or("not a whole number of fen")?)?)
    }
}
