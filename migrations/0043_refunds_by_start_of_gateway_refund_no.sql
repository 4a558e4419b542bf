-- no-transaction
-- Refunds are found by the gateway's number, or by its start.

create index concurrently refund_records_gateway_refund_no_start on refund_records (gateway_refund_no text_pattern_ops)
  where gateway_refund_no is not null;
