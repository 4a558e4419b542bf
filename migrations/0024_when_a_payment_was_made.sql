-- When a payment beside the order's own was made, by the gateway's clock. An order that takes a late payment is paid at this time,
-- and WeChat Pay's year begins then. Null: a payment of an earlier release, or the order's own, which `paid_at` of the order tells.

set local lock_timeout = '2s';

alter table payment_transactions add column paid_at timestamptz;
