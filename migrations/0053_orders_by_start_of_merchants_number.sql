-- no-transaction
-- Orders are found by the merchant's number, or by its start, closed ones as well.

create index concurrently payment_orders_merchant_order_no_start on payment_orders (merchant_order_no text_pattern_ops)
  where merchant_order_no is not null;
