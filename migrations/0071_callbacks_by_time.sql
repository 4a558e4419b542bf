-- no-transaction
-- The list of callbacks, the newest first, and those of a range of time. Rows come in the order of time, so the index grows at its end
-- alone. A repeat of a callback changes none of these columns.

create index concurrently callbacks_received on callbacks (received_at, id);
