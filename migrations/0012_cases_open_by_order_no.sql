-- no-transaction
-- Whether an open case names an order number, be it one of ours or not: asked of each callback before it is removed.

create index concurrently cases_open_order_no on cases ((evidence ->> 'order_no')) where status <> 'resolved';
