-- no-transaction
-- Orders are found by the start of their number. The unique index of 0001 sorts by the rules of a language, which know no starts.

create index concurrently payment_orders_order_no_start on payment_orders (order_no text_pattern_ops);
