-- By which rules refunds begin, for each gateway: columns of payment_config, because people change them in the same way and the
-- same history records them.
--
-- payment_config: `buyer_refunds` says what buyers can do. `window_days` limits how long after the payment they can do it,
-- `auto_max_amount` how much of an order they return without a person. Above `staff_limit` a second person must agree.
-- `service_daily_limit` is the most that one API key, or one service, returns in a day of Beijing. Null is no limit.
-- A fresh installation lets buyers request refunds. One that has orders goes on as before: buyers make refunds without a person,
-- until an operator changes that. The release before knows these rules not, and keeps to them while they stay so.

set local lock_timeout = '2s';

alter table payment_config
  add column buyer_refunds varchar(16) not null default 'request',
  add column window_days integer,
  add column auto_max_amount numeric(10, 2),
  add column staff_limit numeric(10, 2),
  add column service_daily_limit numeric(10, 2),
  add constraint payment_config_buyer_refunds check (buyer_refunds in ('off', 'request', 'auto')),
  add constraint payment_config_window check (window_days between 1 and 3650),
  add constraint payment_config_refund_limits
    check (auto_max_amount >= 0 and staff_limit >= 0 and service_daily_limit >= 0);

update payment_config set buyer_refunds = 'auto' where exists (select from payment_orders);
