-- Four more events tell what the rows say of a refund: `refund.requested`, `refund.declined`, `refund.withdrawn`, `refund.abnormal`.
-- Three tell of a payment that its order was not owed: `extra_payment.received`, `extra_payment.refunded`,
-- `extra_payment.refund_failed`. They tell of no trade that is the order's own.
-- The function is that of 0028 with these types. It still accepts `refund.succeeded` and `refund.failed` of such a payment, because the
-- release before tells of it in that way. Replacing it resets the schemas that it looks into, so they are set again.

set local lock_timeout = '2s';

create or replace function refuse_false_event() returns trigger
language plpgsql as $$
declare
  named bpchar := split_part(new.event_id::text, ':', 2);
  is_true boolean;
begin
  if new.type in ('order.paid', 'order.closed') then
    select case new.type
        when 'order.paid' then status not in ('pending', 'closed') and new.data->>'trade_no' = trade_no
        when 'order.closed' then status = 'closed'
      end
      and (new.data->>'order_id', new.data->>'order_no', new.data->>'user_id', new.data->>'amount')
        = (id::text, order_no, user_id, amount::text)
    into is_true
    from payment_orders where id = named and id = new.order_id;
  elsif new.type in ('case.opened', 'case.reopened') then
    select new.data->>'case_id' = id::text
    into is_true
    from cases where id = named and order_id is not distinct from new.order_id;
    if new.type = 'case.reopened' then
      named := named || ':' || split_part(new.event_id::text, ':', 3);
    end if;
  elsif new.type = 'extra_payment.received' then
    select p.action_type = 'payment' and p.gateway_no is distinct from o.trade_no
      and (new.data->>'order_id', new.data->>'order_no', new.data->>'user_id', new.data->>'amount',
           new.data->>'payment_id', new.data->>'trade_no', new.data->>'payment_amount')
        = (o.id::text, o.order_no, o.user_id, o.amount::text, p.id::text, p.gateway_no, p.amount::text)
    into is_true
    from payment_transactions p
    join payment_orders o on o.id = p.order_id
    where p.id = named and p.order_id = new.order_id;
  else
    select case new.type
        when 'extra_payment.refunded' then r.status = 'succeeded' and t.gateway_no is distinct from o.trade_no
        when 'extra_payment.refund_failed' then r.status = 'failed' and t.gateway_no is distinct from o.trade_no
        when 'order.refunded' then o.status = 'refunded' and o.refunded_amount = o.amount
        when 'refund.requested' then r.status = 'requested'
        when 'refund.declined' then r.status = 'declined'
        when 'refund.withdrawn' then r.status = 'withdrawn'
        when 'refund.abnormal' then r.status = 'abnormal'
        when 'refund.succeeded' then r.status = 'succeeded'
        when 'refund.failed' then r.status = 'failed'
      end
      and (new.data->>'order_id', new.data->>'order_no', new.data->>'user_id', new.data->>'amount',
           new.data->>'refund_id', new.data->>'refund_no', new.data->>'refund_amount', new.data->>'trade_no')
        = (o.id::text, o.order_no, o.user_id, o.amount::text,
           r.id::text, r.refund_no, r.refund_amount::text, t.gateway_no)
    into is_true
    from refund_records r
    join payment_orders o on o.id = r.order_id
    join payment_transactions t on t.id = r.transaction_id
    where r.id = named and r.order_id = new.order_id;
  end if;
  if is_true and new.event_id = new.type || ':' || named then
    return new;
  end if;
  raise exception 'the books do not hold what the event % tells', new.event_id
    using errcode = 'check_violation', table = tg_table_name, constraint = tg_name;
end;
$$;

do $$
begin
  execute format('alter function refuse_false_event() set search_path = pg_catalog, %I, pg_temp', current_schema());
end;
$$;
