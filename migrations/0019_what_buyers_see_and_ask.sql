-- What a buyer reads beside the status of an order, and how often a buyer has had the gateway asked about it.
--
-- payment_orders: `close_requested_at` is when somebody asked for the order's end; the order stays pending until the gateway
-- has closed it. `extra_state` and `extra_amount` say what became of money that the order was not owed: a late payment, a
-- second one, one of another amount. Both follow from payment_transactions, refund_records and cases, and are written beside
-- every change of those (`shared/src/db/extra.rs`), so that lists, copies and streams read them with the row. No amount: the
-- gateway has stated none that we can read.
-- jobs: `taken_at` is when a worker last began to work on the job. `hinted_at`, `hint_step` and `hint_backs` are when a hint
-- last brought a check forward, how far the growing gaps between such hints have come, and how often they began again
-- because the buyer came back (`shared/src/db/hints.rs`).

set local lock_timeout = '2s';

alter table payment_orders
  add column close_requested_at timestamptz,
  add column extra_state varchar(20),
  add column extra_amount numeric(10, 2),
  add constraint payment_orders_extra_state check (extra_state in ('held', 'returning', 'returned')) not valid;

alter table jobs
  add column taken_at timestamptz,
  add column hinted_at timestamptz,
  add column hint_step smallint not null default 0,
  add column hint_backs smallint not null default 0;
