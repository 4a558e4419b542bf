-- What people did, so that it cannot be rewritten unseen. A row is inserted in the transaction of what it tells, without a lock. The
-- relay links rows into a chain within a second: each link holds the hash of its row and of the link before. No role updates or
-- deletes here; what the tables' owner changes, `paymentctl audit verify` names.
--
-- audit_log: `subject` is who did it, `act` and `object` what to what. `issuer`, `key_id` and `session` are those of the token or key
-- that proved the subject, where one did and more than one could. `database_user`, who logged in to the database, and `at` are the
-- database's own words: no process may write them.
-- audit_chain: `n` counts from 1 without a gap, in the order of linking. A row is linked once.
-- The functions of the operators' tool write their row themselves: who calls them by hand leaves one as well. The name that an
-- operator gives begins with `paymentctl/`, so that nobody's step looks like an administrator's.

set local lock_timeout = '2s';

create table audit_log (
  id bigint generated always as identity,
  at timestamptz not null default clock_timestamp(),
  subject varchar(64) not null,
  issuer varchar(256),
  key_id varchar(64),
  session varchar(128),
  database_user varchar(64) not null default left(session_user::text, 64),
  act varchar(40) not null,
  object varchar(160) not null,
  detail jsonb not null,
  constraint audit_log_pkey primary key (id)
);

create index audit_log_at on audit_log (at);
create index audit_log_object on audit_log (object);

create table audit_chain (
  n bigint not null,
  audit_id bigint not null,
  prev_hash bytea not null,
  hash bytea not null,
  constraint audit_chain_pkey primary key (n),
  constraint audit_chain_audit_id_key unique (audit_id),
  constraint audit_chain_row_fkey foreign key (audit_id) references audit_log (id),
  constraint audit_chain_n_range check (n > 0),
  constraint audit_chain_hashes check (octet_length(prev_hash) = 32 and octet_length(hash) = 32)
);

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
