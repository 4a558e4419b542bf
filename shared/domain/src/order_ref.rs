//! The ways in which a caller names an order.

use crate::ids::OrderId;
use crate::order_no::{OrderNo, RefundNo, TradeNo};
use crate::purchase::MerchantOrderNo;

/// How a path names an order: by our id, or by another number behind the name of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderRef {
    /// `0199…`: our id.
    Id(OrderId),
    /// `order_no:…`: our number for the gateways.
    OrderNo(OrderNo),
    /// `merchant_order_no:…`: the merchant's number. A purchase can have several orders, one of which is not closed.
    MerchantOrderNo(MerchantOrderNo),
    /// `trade_no:…`: the gateway's number of a payment of the order. Two orders can have one, at two gateways.
    TradeNo(TradeNo),
    /// `refund_no:…`: our number of a refund of the order.
    RefundNo(RefundNo),
}

/// The text does not name an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an order's id (32 lower-case hex digits), or order_no:…, merchant_order_no:…, trade_no:… or refund_no:…")]
pub struct OrderRefError;

impl OrderRef {
    /// Reads an id, or a number behind the name of its kind, such as `order_no:`.
    ///
    /// # Errors
    /// [`OrderRefError`] for an unknown kind of number, or a number that its kind cannot be.
    pub fn parse(text: &str) -> Result<OrderRef, OrderRefError> {
        let Some((kind, number)) = text.split_once(':') else {
            return OrderId::parse(text).map(OrderRef::Id).map_err(|_| OrderRefError);
        };
        let named = match kind {
            "order_no" => OrderNo::parse(number).ok().map(OrderRef::OrderNo),
            "merchant_order_no" => MerchantOrderNo::parse(number).ok().map(OrderRef::MerchantOrderNo),
            "trade_no" => TradeNo::parse(number).ok().map(OrderRef::TradeNo),
            "refund_no" => RefundNo::parse(number).ok().map(OrderRef::RefundNo),
            _ => None,
        };
        named.ok_or(OrderRefError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_named_in_four_ways() {
        let id = "0193a1b2c3d47e5f8899aabbccddeeff";
        assert_eq!(OrderRef::parse(id), Ok(OrderRef::Id(OrderId::parse(id).unwrap())));
        let order_no = OrderRef::OrderNo(OrderNo::parse(id).unwrap());
        assert_eq!(OrderRef::parse(&format!("order_no:{id}")), Ok(order_no));
        // The gateway decides what its numbers look like.
        let trade_no = OrderRef::TradeNo(TradeNo::parse("a:b").unwrap());
        assert_eq!(OrderRef::parse("trade_no:a:b"), Ok(trade_no));
        assert!(matches!(OrderRef::parse("refund_no:R1"), Ok(OrderRef::RefundNo(_))));
        let number = OrderRef::MerchantOrderNo(MerchantOrderNo::parse("A1:b".to_owned()).unwrap());
        assert_eq!(OrderRef::parse("merchant_order_no:A1:b"), Ok(number));
    }

    #[test]
    fn what_names_no_order_is_refused() {
        let long = format!("trade_no:{}", "1".repeat(65));
        for text in [
            "",
            ":",
            "1",
            "ORDER_0001",
            "order_no:",
            "order_no:short",
            "order_no:ORD 0001",
            "trade_no:",
            "refund_no:a-b",
            "ORDER_NO:ORD_0001",
            "id:0193a1b2c3d47e5f8899aabbccddeeff",
            "merchant_order_no:",
            "merchant_order_no:A 1",
            &long,
        ] {
            assert_eq!(OrderRef::parse(text), Err(OrderRefError), "{text}");
        }
    }
}
