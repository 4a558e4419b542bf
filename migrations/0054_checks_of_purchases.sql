-- The rules of 0050 hold for every row: no earlier release wrote these columns.

set local lock_timeout = '2s';

alter table payment_orders validate constraint payment_orders_merchant_order_no;
alter table payment_orders validate constraint payment_orders_vouched_by;
alter table payment_orders validate constraint payment_orders_offer;
alter table payment_orders validate constraint payment_orders_is_closed;
