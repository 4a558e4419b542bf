-- What holds for every role, also for a process that is broken into: an order makes the moves of the state table and no other, and
-- an event about money tells what the rows say. Triggers name no role; the rights of each role are in `shared/src/db/grants.rs`.
--
-- payment_orders_moves: `TRANSITIONS` of `shared/src/domain/order.rs`, and every move among the four states of a paid order, which
-- follow from its refunds. The condition is looked at without a call, so a move that is allowed costs next to nothing.
-- events_tell_facts: the id of an event names the order or the refund of which it tells, once. Cases are for people, and their
-- events move nothing.
-- create_unplaced_order: an order that no buyer placed, closed from its beginning. Nobody else inserts an order that is not pending.

set local lock_timeout = '2s';

create function refuse_move() returns trigger
language plpgsql as $$
begin
  raise exception 'an order that is % cannot become %', old.status, new.status
    using errcode = 'check_violation', table = tg_table_name, constraint = tg_name;
end;
$$;

create trigger payment_orders_moves
before update of status on payment_orders
for each row
when (
  old.status <> new.status
  and not (old.status = 'pending' and new.status in ('paid', 'closed'))
  and not (old.status = 'closed' and new.status = 'paid')
  and not (old.status in ('paid', 'refunding', 'partially_refunded', 'refunded')
    and new.status in ('paid', 'refunding', 'partially_refunded', 'refunded'))
)
execute function refuse_move();

create function refuse_false_event() returns trigger
language plpgsql set search_path from current as $$
declare
  named bpchar := split_part(new.event_id, ':', 2);
  is_true boolean;
begin
  if new.type in ('order.paid', 'order.closed') then
    select case new.type when 'order.paid' then status not in ('pending', 'closed') else closed_at is not null end
    into is_true
    from payment_orders where id = named and id = new.order_id;
  else
    select case new.type
      when 'order.refunded' then o.status = 'refunded' and o.refunded_amount = o.amount
      when 'refund.succeeded' then r.status = 'succeeded'
      when 'refund.failed' then r.status = 'failed'
    end
    into is_true
    from refund_records r join payment_orders o on o.id = r.order_id
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
for each row
when (new.type not in ('case.opened', 'case.reopened'))
execute function refuse_false_event();

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
