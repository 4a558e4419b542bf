-- An operator's export of orders or refunds (`paymentctl export`) leaves a row in the log of people's actions, as an operator's change of
-- a key does (0034): an act `export.…` on an object `export:…`, by a name that begins with `paymentctl/`. The operators' role still
-- inserts nothing there by itself.

set local lock_timeout = '2s';

create or replace function record_operator_act(who text, what text, target text, how jsonb) returns boolean
language sql security definer
begin atomic
  with recorded as (
    insert into audit_log (subject, act, object, detail)
    select who, what, target, how
    where starts_with(who, 'paymentctl/')
      and (starts_with(what, 'key.') and starts_with(target, 'key:')
        or starts_with(what, 'export.') and starts_with(target, 'export:'))
    returning id
  )
  select exists (select from recorded);
end;
