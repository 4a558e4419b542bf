-- How much each API key, or service, has returned in a day. The limit of a day is compared with this row, in the transaction of the
-- refund and after the lock of its order.
--
-- refunds_of_a_day: `caller` is the name of the caller as in refund_records.requested_by. `day` is a day of Beijing. `amount` counts
-- what was requested, also of refunds that fail or are withdrawn later, and of all gateways.

create table refunds_of_a_day (
  caller varchar(96) not null,
  day date not null,
  amount numeric(14, 2) not null,
  constraint refunds_of_a_day_pkey primary key (caller, day),
  constraint refunds_of_a_day_amount check (amount > 0)
);
