-- no-transaction
-- Refunds are found by the start of our number.

create index concurrently refund_records_refund_no_start on refund_records (refund_no text_pattern_ops);
