-- no-transaction
-- The list of refunds that one person, key or user requested, newest first.

create index concurrently refund_records_requested_by on refund_records (requested_by, id desc);
