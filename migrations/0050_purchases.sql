-- What names the purchase of an order, and who vouches for its terms.
--
-- merchant_order_no: the merchant's own number. offer_id with voucher: the offer, and whose it is. A purchase has at most one order that
-- is not closed: indexes of their own (0051, 0052) hold that.
-- vouched_by: who vouches for what is sold and for the amount; null for an order of an earlier release. voucher: which backend or which
-- issuer of offers that is, as `key {id}` or `service {subject}`.
-- is_closed: whether an order with a purchase is closed, for the two indexes. They must not name `status`: then every payment would write
-- every index of the table again. A trigger sets it, so the release that still runs sets it too.
--
-- payment_orders_terms_stay: what was vouched for does not change afterwards.

set local lock_timeout = '2s';

alter table payment_orders
  add column merchant_order_no varchar(64),
  add column vouched_by varchar(16),
  add column voucher varchar(96),
  add column offer_id varchar(64),
  add column is_closed boolean not null default false,
  add constraint payment_orders_merchant_order_no check (merchant_order_no ~ '^[!-~]+$') not valid,
  add constraint payment_orders_vouched_by check (vouched_by in ('backend', 'offer', 'catalogue', 'buyer')) not valid,
  add constraint payment_orders_offer check ((offer_id is null) = (vouched_by is distinct from 'offer')
    and (voucher is null) = (vouched_by is null or vouched_by in ('catalogue', 'buyer'))) not valid,
  add constraint payment_orders_is_closed check (merchant_order_no is null and offer_id is null
    or is_closed = (status = 'closed')) not valid;

create function note_is_closed() returns trigger
language plpgsql as $$
begin
  new.is_closed := new.status = 'closed';
  return new;
end;
$$;

create trigger payment_orders_is_closed
before update of status on payment_orders
for each row
when ((new.merchant_order_no is not null or new.offer_id is not null) and (new.status = 'closed') is distinct from (old.status = 'closed'))
execute function note_is_closed();

create function refuse_other_terms() returns trigger
language plpgsql as $$
begin
  raise exception 'the terms of order % were vouched for and do not change', old.id
    using errcode = 'check_violation', table = tg_table_name, constraint = tg_name;
end;
$$;

create trigger payment_orders_terms_stay
before update of product_type, subject, amount, metadata, merchant_order_no, vouched_by, voucher, offer_id on payment_orders
for each row
when (
  (old.product_type, old.subject, old.amount, old.metadata, old.merchant_order_no, old.vouched_by, old.voucher, old.offer_id)
    is distinct from
  (new.product_type, new.subject, new.amount, new.metadata, new.merchant_order_no, new.vouched_by, new.voucher, new.offer_id)
)
execute function refuse_other_terms();
