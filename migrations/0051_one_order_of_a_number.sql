-- no-transaction
-- A purchase that the merchant has numbered has at most one order that is not closed.

create unique index concurrently payment_orders_purchase_by_number on payment_orders (merchant_order_no)
  where merchant_order_no is not null and not is_closed;
