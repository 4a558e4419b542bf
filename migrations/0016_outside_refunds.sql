-- Money that went back without us is booked, once, whichever message tells of it.
--
-- refund_records: `origin` says who sent a refund to the gateway. `outside` is a refund of the gateway's console, or of
-- another system with the merchant's keys: it is written when it is known to have succeeded. `outside_key` names such a
-- refund by the gateway's own number of it, where there is one, else by the trade and the sum that had gone back of it
-- after this refund. So a notice, a query and a bill find one record.
-- payment_transactions: `returned_amount` of a payment is the largest sum that the gateway said went back of it. While a
-- refund of ours is on its way it is unknown whose money that was; the comparison is made when the refund ends.
-- jobs: `look_back` asks the gateway about a paid order once more, a day and eight days after the payment.

set local lock_timeout = '2s';

alter table refund_records
  add column origin varchar(10) not null default 'service',
  add column outside_key varchar(160),
  add constraint refund_records_origin check (origin in ('service', 'outside')) not valid,
  add constraint refund_records_outside_key check ((origin = 'outside') = (outside_key is not null)) not valid;

alter table payment_transactions add column returned_amount numeric(10, 2) not null default 0;

alter table jobs drop constraint jobs_kind;
alter table jobs add constraint jobs_kind check (kind in ('callback', 'check', 'refund', 'look_back')) not valid;
