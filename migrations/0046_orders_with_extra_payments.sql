-- no-transaction
-- The list of orders with money that was not owed, newest first: few among all orders. Settling an ordinary payment does not change
-- extra_state.

create index concurrently payment_orders_extra on payment_orders (extra_state, id desc) where extra_state is not null;
