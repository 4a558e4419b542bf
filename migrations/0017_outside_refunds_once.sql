-- no-transaction
-- One record for each refund that is not ours (0016).

create unique index concurrently refund_records_outside_once on refund_records (outside_key) where outside_key is not null;
