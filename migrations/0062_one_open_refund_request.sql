-- no-transaction
-- One open request of an order at a time, whatever the code believes. The relay counts the open ones here, too.

create unique index concurrently refund_records_one_request on refund_records (order_id) where status = 'requested';
