-- What the workers of refunds and checks have to remember between two steps.
--
-- refund_records: `sent_at` is the moment of the last request (a query before it has had its ten seconds says nothing);
-- `refused_code` is the gateway's last refusal: a refund fails only when a query after it knows no such refund.
-- payment_orders: `checked_at` and `gateway_state` show what the last question to the gateway brought, for a person.
-- The new kinds of case are those of refunds.

alter table payment_orders
  add column checked_at timestamptz,
  add column gateway_state varchar(64);

alter table refund_records
  add column sent_at timestamptz,
  add column refused_code varchar(64);

-- A user's own refunds, newest first, go through his orders.
create index refund_records_order_newest on refund_records (order_id, id desc);
drop index refund_records_order;

-- One refund of an order in flight at a time, whatever the code believes.
create unique index refund_records_in_flight on refund_records (order_id) where status in ('pending', 'processing');

alter table cases drop constraint cases_kind;
alter table cases add constraint cases_kind check (kind in
  ('late_payment', 'double_payment', 'refunded_elsewhere', 'amount_mismatch', 'wrong_merchant', 'wrong_method',
   'unknown_order', 'unknown_refund', 'dead_letter', 'refund_abnormal', 'refund_shortage', 'refund_closed',
   'refund_after_failure'));
