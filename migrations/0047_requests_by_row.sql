-- no-transaction
-- The requests that made an order or a refund, of every caller: an order's row does not name its caller.

create index concurrently idempotency_keys_ref on idempotency_keys (ref_id);
