-- What buyers read of money that was not owed and came before 0019, and every row fits the check of 0019.
--
-- Each such payment has a case, so only the few orders with one of these cases are looked at. The rule is that of
-- `shared/src/db/extra.rs`, which keeps it from now on. PostgreSQL looks at the rows for the check without keeping anybody from
-- writing.

with payment as (
  select t.order_id, t.amount,
    coalesce(sum(r.refund_amount) filter (where r.status = 'succeeded'), 0) as returned,
    coalesce(bool_or(r.status in ('pending', 'processing', 'abnormal')), false) as moves
  from payment_transactions t
  join payment_orders o on o.id = t.order_id
  left join refund_records r on r.transaction_id = t.id
  where t.order_id in (select order_id from cases where kind in ('late_payment', 'double_payment'))
    and t.action_type = 'payment' and t.status = 'succeeded' and t.gateway_no is distinct from o.trade_no
  group by t.id
  union all
  select c.order_id,
    case when c.evidence ->> 'amount' ~ '^[0-9]{1,8}[.][0-9]{2}$' then (c.evidence ->> 'amount')::numeric end, 0, false
  from cases c
  where c.order_id is not null and c.kind in ('amount_mismatch', 'wrong_method') and c.status <> 'resolved'
    and c.evidence ? 'trade_no' and not c.evidence ? 'refund_no'
), judged as (
  select order_id, amount, returned,
    case when returned >= amount then 'returned' when moves then 'returning' else 'held' end as state
  from payment
), worst as (
  select order_id,
    case
      when bool_or(state = 'held') then 'held'
      when bool_or(state = 'returning') then 'returning'
      else 'returned'
    end as state
  from judged group by order_id
), shown as (
  select w.order_id, w.state, sum(case w.state when 'returned' then j.amount else j.amount - j.returned end) as amount
  from worst w join judged j on j.order_id = w.order_id and j.state = w.state
  group by w.order_id, w.state
)
update payment_orders o
set extra_state = s.state,
    extra_amount = case when s.amount > 99999999.99 then 99999999.99 else s.amount end,
    version = o.version + 1
from shown s
where o.id = s.order_id;

alter table payment_orders validate constraint payment_orders_extra_state;
