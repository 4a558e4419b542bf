-- Statistics split what an order owed from what it did not: late and second payments, and what was returned of them.
--
-- hourly_stats: `amount`, `refunds` to `refunded_amount` are of the orders' own payments from now on. The extra payments are those
-- recorded in this hour, their refunds those that were requested in it.
-- stats_progress: `form` says by which of these rules the hours before `hour` were counted. The relay of this release counts all
-- hours once more, because the rows of form 1 mix both.

set local lock_timeout = '2s';

alter table hourly_stats
  add column extra_payments bigint not null default 0,
  add column extra_amount numeric(18, 2) not null default 0,
  add column extra_refunds bigint not null default 0,
  add column extra_refunded numeric(18, 2) not null default 0;

alter table stats_progress add column form integer not null default 1;
