-- What keeps a buyer's cashier alive when the gateway refuses: the last credential of an order, and a case for an account
-- that a gateway refuses.
--
-- order_credentials: the last credential that a gateway gave for an order, sealed (`shared/src/seal.rs`), and until when it is
-- good. It is answered again when the gateway gives no fresh one. Credentials that we sign ourselves are not kept. A row is
-- removed once its credential has expired.
-- cases: `misconfigured` is an account of ours that a gateway refuses, because of its contract, configuration or keys.

set local lock_timeout = '2s';

create table order_credentials (
  order_id char(32) not null,
  sealed bytea not null,
  obtained_at timestamptz not null,
  valid_until timestamptz not null,
  constraint order_credentials_pkey primary key (order_id),
  constraint order_credentials_order_fkey foreign key (order_id) references payment_orders (id)
);

create index order_credentials_expiry on order_credentials (valid_until);

alter table cases drop constraint cases_kind;
alter table cases add constraint cases_kind check (kind in
  ('late_payment', 'double_payment', 'refunded_elsewhere', 'amount_mismatch', 'wrong_merchant', 'wrong_method',
   'unknown_order', 'unknown_refund', 'dead_letter', 'refund_abnormal', 'refund_shortage', 'refund_closed',
   'refund_after_failure', 'gateway_protocol', 'misconfigured')) not valid;
