-- A user id has up to 64 characters: a UUID with hyphens has 36. The columns that name a caller or a person hold `service `, `staff ` or
-- another word in front of 64 characters: 96. Tables whose names come from operators alone (api_keys, event_republishes) stay.
--
-- A longer varchar changes the catalogue alone: no row and no index is written again. Until a release that reads 64 characters runs
-- everywhere, no process writes more than 32 (LONG_USER_IDS).
--
-- A statement that a running process prepared before, and that returns one of these columns, fails with `cached plan must not change
-- result type` until its connection ends. The process answers 503 or tries again, and nothing is lost. So start the roll-out directly
-- after the migration; CHANGELOG.md says how to end the connections at once.
--
-- PostgreSQL changes no type of a column that a function of SQL (`begin atomic`) names. So each of these functions is emptied, and gets
-- the body of before in the same transaction: no other session sees it empty, and its owner and its rights stay.

set local lock_timeout = '2s';

create or replace function create_unplaced_order(
  new_id bpchar, new_order_no text, paid_amount numeric, method text, first_scene text, account_name text, moment timestamptz
) returns void
language sql security definer as '';

create or replace function replay_dead_letter(replayed bpchar) returns bigint
language sql security definer as 'select null::bigint';

create or replace function end_case(ended bpchar, seen bigint, how text, who text, step jsonb) returns boolean
language sql security definer as 'select null::boolean';

create or replace function republish_events(seqs bigint[], who text) returns bigint
language sql security definer as 'select null::bigint';

create or replace function record_operator_act(who text, what text, target text, how jsonb) returns boolean
language sql security definer as 'select null::boolean';

alter table payment_orders alter column user_id type varchar(64);
alter table refund_records alter column requested_by type varchar(96);
alter table cases alter column proposed_by type varchar(96), alter column resolved_by type varchar(96);
alter table payment_config alter column updated_by type varchar(96);
alter table payment_config_changes alter column changed_by type varchar(96);
alter table audit_log alter column subject type varchar(96);

create or replace function create_unplaced_order(
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

create or replace function replay_dead_letter(replayed bpchar) returns bigint
language sql security definer
begin atomic
  with made as (
    insert into jobs (kind, payload, due_at, created_at)
    select 'callback', letter.job, now(), now()
    from dead_letters letter
    join cases c on c.id = letter.case_id
    where letter.case_id = replayed and letter.job is not null and c.kind = 'dead_letter' and c.status = 'open'
    returning id
  ), told as (
    insert into audit_log (subject, act, object, detail)
    select left(session_user::text, 64), 'dead_letter.replayed', 'case:' || replayed, jsonb_build_object('job', id) from made
  )
  select id from made;
end;

create or replace function end_case(ended bpchar, seen bigint, how text, who text, step jsonb) returns boolean
language sql security definer
begin atomic
  with done as (
    update cases
    set status = 'resolved', resolution = how, resolved_by = who,
        history = history || jsonb_build_array(step || jsonb_build_object('database_user', session_user::text)),
        version = version + 1, updated_at = now()
    where id = ended and version = seen and status = 'open' and kind <> 'unknown_refund' and not evidence ? 'not_refunded'
      and starts_with(who, 'paymentctl/')
    returning id
  ), told as (
    insert into audit_log (subject, act, object, detail)
    select left(who, 64), 'case.resolved', 'case:' || id, step || jsonb_build_object('version', seen) from done
  )
  select exists (select from done);
end;

create or replace function republish_events(seqs bigint[], who text) returns bigint
language sql security definer
begin atomic
  with chosen as (
    select seq, event_id, published_at from events
    where seq = any(seqs) and published_at is not null and starts_with(who, 'paymentctl/')
    order by seq
    for update
  ), marked as (
    update events e set published_at = null, retry_at = null from chosen where e.seq = chosen.seq
  ), noted as (
    insert into event_republishes (event_id, published_at, republished_by, republished_at, database_user)
    select event_id, published_at, who, now(), left(session_user::text, 64) from chosen order by seq
    returning id
  ), told as (
    insert into audit_log (subject, act, object, detail)
    select left(who, 64), 'event.republished', 'event:' || event_id, jsonb_build_object('published_at', published_at)
    from chosen order by seq
  )
  select count(*) from noted;
end;

create or replace function record_operator_act(who text, what text, target text, how jsonb) returns boolean
language sql security definer
begin atomic
  with recorded as (
    insert into audit_log (subject, act, object, detail)
    select who, what, target, how
    where starts_with(who, 'paymentctl/') and starts_with(what, 'key.') and starts_with(target, 'key:')
    returning id
  )
  select exists (select from recorded);
end;
