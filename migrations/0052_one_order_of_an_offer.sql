-- no-transaction
-- An offer has at most one order that is not closed.

create unique index concurrently payment_orders_purchase_by_offer on payment_orders (voucher, offer_id)
  where offer_id is not null and not is_closed;
