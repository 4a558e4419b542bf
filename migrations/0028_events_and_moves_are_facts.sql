-- What holds for every role, also for a process that is broken into: an order makes the moves of the state table and no other, no
-- more went back than succeeded refunds returned, and an event tells what the rows say. Triggers name no role; the rights of each
-- role are in `shared/src/db/grants.rs`.
--
-- payment_orders_moves: `TRANSITIONS` of `shared/src/domain/order.rs`, and every move among the four states of a paid order, which
-- follow from its refunds. Versions rise one by one. The condition is looked at without a call, so a move that is allowed costs
-- next to nothing.
-- payment_orders_returned: looks only where the returned amount changes.
-- events_tell_facts: the id of an event names the order, the refund or the case of which it tells, and its data agree with that row.
-- Each id is there once, so who could make up one for another row would keep the true event from being inserted.
-- create_unplaced_order: an order that no buyer placed, closed from its beginning. Nobody else inserts an order that is not pending.
--
-- The functions of triggers look for tables in this schema alone, and for temporary ones last: a role that may make temporary tables
-- must not put one in the place of ours.

set local lock_timeout = '2s';

create function refuse_move() returns trigger
language plpgsql as $$
begin
  raise exception 'an order that is % cannot become %', old.status, new.status
    using errcode = 'check_violation', table = tg_table_name, constraint = tg_name;
end;
$$;

create trigger payment_orders_moves
before update of status, version on payment_orders
for each row
when (
  new.version > old.version + 1
  or old.status <> new.status
    and not (old.status = 'pending' and new.status in ('paid', 'closed'))
    and not (old.status = 'closed' and new.status = 'paid')
    and not (old.status in ('paid', 'refunding', 'partially_refunded', 'refunded')
      and new.status in ('paid', 'refunding', 'partially_refunded', 'refunded'))
)
execute function refuse_move();

create function refuse_false_return() returns trigger
language plpgsql as $$
begin
  if new.refunded_amount > coalesce(
    (select sum(refund_amount) from refund_records where order_id = new.id and status = 'succeeded'), 0)
  then
    raise exception 'no refunds returned % yuan', new.refunded_amount
      using errcode = 'check_violation', table = tg_table_name, constraint = tg_name;
  end if;
  return new;
end;
$$;

create trigger payment_orders_returned
before update of refunded_amount on payment_orders
for each row
when (old.refunded_amount <> new.refunded_amount)
execute function refuse_false_return();

create function refuse_false_event() returns trigger
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
  else
    select case new.type
        when 'order.refunded' then o.status = 'refunded' and o.refunded_amount = o.amount
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

create trigger events_tell_facts
before insert on events
for each row execute function refuse_false_event();

do $$
declare
  name text;
begin
  foreach name in array array['refuse_false_return', 'refuse_false_event'] loop
    execute format('alter function %I() set search_path = pg_catalog, %I, pg_temp', name, current_schema());
  end loop;
end;
$$;

create function create_unplaced_order(
  new_id bpchar, new_order_no text, paid_amount numeric, method text, first_scene text, account_name text, moment timestamptz
) returns void
language sql security definer
begin atomic
  insert into payment_orders
    (id, user_id, order_no, product_type, subject, amount, payment_method, scene, account, status, expires_at, closed_at,
     prepay, created_at, updated_at)
  values (new_id, '-', new_order_no, 'unknown_order', 'unknown order', paid_amount, method, first_scene, account_name, 'closed',
    moment, moment, '{}', moment, moment)
  on conflict on constraint payment_orders_order_no_key do nothing;
end;

revoke all on function create_unplaced_order(bpchar, text, numeric, text, text, text, timestamptz) from public;
