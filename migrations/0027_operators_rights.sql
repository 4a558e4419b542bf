-- What the operators' tool does to cases and events, as functions: its role has no right to update them, so SQL by hand can
-- neither silence an event nor end a case that two people decide. `session_user`, who logged in, is written beside the name that
-- the operator gives, which nobody proves. The text of each function is bound when it is created, so no search_path of a caller
-- changes what it means.
--
-- event_republishes.database_user: null in rows of before.
-- end_case: ends an open case of that version, unless its end moves money (`Case::end_moves_money`; a test holds the two
-- together). True: it is done.
-- republish_events: marks published events as unpublished and says how many. Times are the database's.

set local lock_timeout = '2s';

alter table event_republishes add column database_user varchar(64);

create function end_case(ended bpchar, seen bigint, how text, who text, step jsonb) returns boolean
language sql security definer
begin atomic
  with done as (
    update cases
    set status = 'resolved', resolution = how, resolved_by = who,
        history = history || jsonb_build_array(step || jsonb_build_object('database_user', session_user::text)),
        version = version + 1, updated_at = now()
    where id = ended and version = seen and status = 'open' and kind <> 'unknown_refund' and not evidence ? 'not_refunded'
    returning id
  )
  select exists (select from done);
end;

create function republish_events(seqs bigint[], who text) returns bigint
language sql security definer
begin atomic
  with chosen as (
    select seq, event_id, published_at from events
    where seq = any(seqs) and published_at is not null
    order by seq
    for update
  ), marked as (
    update events e set published_at = null, retry_at = null from chosen where e.seq = chosen.seq
  ), noted as (
    insert into event_republishes (event_id, published_at, republished_by, republished_at, database_user)
    select event_id, published_at, who, now(), left(session_user::text, 64) from chosen order by seq
    returning id
  )
  select count(*) from noted;
end;

revoke all on function end_case(bpchar, bigint, text, text, jsonb) from public;
revoke all on function republish_events(bigint[], text) from public;
