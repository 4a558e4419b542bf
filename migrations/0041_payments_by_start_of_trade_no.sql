-- no-transaction
-- Payments are found by the gateway's number of their trade, or by its start, at either gateway: the number on a buyer's receipt. An order's
-- own trade has its row here too, so payment_orders needs no index on trade_no, which settling would have to write.

create index concurrently payment_transactions_trade_no_start on payment_transactions (gateway_no text_pattern_ops)
  where action_type = 'payment' and gateway_no is not null;
