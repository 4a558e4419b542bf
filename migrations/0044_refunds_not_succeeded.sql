-- no-transaction
-- The list of refunds that are under way, stuck or failed, newest first: few among all refunds.

create index concurrently refund_records_not_succeeded on refund_records (id desc) where status <> 'succeeded';
