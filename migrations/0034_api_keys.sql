-- API keys, by which the merchant's backend proves itself: `sk_{environment}_{id}_{secret}`.
--
-- api_keys: `digest` is SHA-256 of the secret's 32 bytes; the secret itself is never stored. While a secret is replaced, the one
-- before it counts until `previous_until`. `networks` holds the addresses that a request may come from; an empty list allows every
-- address. `proposed_by` made the key. A key that returns money (payments:refund) is `proposed` until another person confirms it.
-- `last_used_at` is written once a minute at most. Rows stay forever: orders and actions name them.
-- api_keys_version: one row, raised in the transaction of every change of a key, except of its last use. Each process reads it twice
-- a second and reads the keys again when it has changed. The trigger that raises it has the rights of the tables' owner, so every role
-- raises it and no role can set it.
--
-- api_keys_scopes: the scopes of people (payments:cases.propose, payments:cases.confirm, payments:admin) are not in the list.
-- api_keys_two_people: persons are compared without regard to ASCII case, and to the tool by which they came.
-- api_keys_moves: proposed -> active or revoked, active -> revoked, and nothing else.
-- api_keys_fixed: what a person confirmed does not change afterwards, and a revoked key changes no more, except for its last use.
-- record_operator_act: what an operator did to a key, in the log of people's actions. The operators' role inserts nothing there, and
-- the name that it gives begins with `paymentctl/`.

create table api_keys (
  id char(16) not null,
  name varchar(64) not null,
  environment varchar(8) not null,
  scopes text[] not null,
  networks text[] not null default '{}',
  digest bytea not null,
  previous_digest bytea,
  previous_until timestamptz,
  state varchar(16) not null,
  proposed_by varchar(64) not null,
  confirmed_by varchar(64),
  expires_at timestamptz,
  revoked_at timestamptz,
  last_used_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint api_keys_pkey primary key (id),
  constraint api_keys_name_key unique (name),
  constraint api_keys_id_form check (id ~ '^[0-9a-f]{16}$'),
  constraint api_keys_name_form check (name ~ '^[^[:cntrl:]]{1,64}$' and name = btrim(name)),
  constraint api_keys_environment check (environment in ('live', 'test')),
  constraint api_keys_state check (state in ('proposed', 'active', 'revoked')),
  constraint api_keys_scopes check (scopes <@ array['payments:orders', 'payments:read', 'payments:refund', 'payments:config',
    'payments:notices', 'payments:events', 'payments:reconcile', 'payments:keys']),
  constraint api_keys_some_scope check (cardinality(scopes) > 0),
  constraint api_keys_networks check (networks = networks::cidr[]::text[] and array_position(networks, null) is null),
  constraint api_keys_digests check (octet_length(digest) = 32 and octet_length(previous_digest) = 32
    and previous_digest <> digest),
  constraint api_keys_previous check ((previous_digest is null) = (previous_until is null)),
  constraint api_keys_expiry check (expires_at > created_at),
  constraint api_keys_revoked check ((state = 'revoked') = (revoked_at is not null)),
  constraint api_keys_confirmed check (state <> 'proposed' or confirmed_by is null),
  constraint api_keys_two_people check (
    regexp_replace(lower(confirmed_by collate "C"), '^paymentctl/', '')
      <> regexp_replace(lower(proposed_by collate "C"), '^paymentctl/', '')
    and (state <> 'active' or confirmed_by is not null or not 'payments:refund' = any (scopes))
  )
);

create table api_keys_version (
  only_row boolean not null default true,
  version bigint not null,
  constraint api_keys_version_pkey primary key (only_row),
  constraint api_keys_version_only_row check (only_row)
);

insert into api_keys_version (version) values (1);

create function raise_api_keys_version() returns trigger
language plpgsql security definer as $$
begin
  update api_keys_version set version = version + 1;
  return null;
end;
$$;

revoke all on function raise_api_keys_version() from public;

do $$
begin
  execute format('alter function raise_api_keys_version() set search_path = pg_catalog, %I, pg_temp', current_schema());
end;
$$;

create trigger api_keys_come_and_go
after insert or delete on api_keys
for each row execute function raise_api_keys_version();

create trigger api_keys_emptied
after truncate on api_keys
for each statement execute function raise_api_keys_version();

create trigger api_keys_changed
after update on api_keys
for each row
when ((to_jsonb(old) - 'last_used_at') is distinct from (to_jsonb(new) - 'last_used_at'))
execute function raise_api_keys_version();

create function refuse_key_change() returns trigger
language plpgsql as $$
begin
  raise exception 'API key %, which is %, does not change like this', old.id, old.state
    using errcode = 'check_violation', table = tg_table_name, constraint = tg_name;
end;
$$;

create trigger api_keys_moves
before update on api_keys
for each row
when (
  old.state <> new.state
    and not (old.state = 'proposed' and new.state in ('active', 'revoked'))
    and not (old.state = 'active' and new.state = 'revoked')
)
execute function refuse_key_change();

create trigger api_keys_fixed
before update on api_keys
for each row
when (
  (old.id, old.environment, old.scopes, old.proposed_by, old.created_at)
    is distinct from (new.id, new.environment, new.scopes, new.proposed_by, new.created_at)
  or old.confirmed_by is not null and new.confirmed_by is distinct from old.confirmed_by
  or 'payments:refund' = any (old.scopes) and old.state <> 'proposed'
    and (old.digest, old.previous_digest) is distinct from (new.digest, new.previous_digest)
  or old.state = 'revoked'
    and (to_jsonb(old) - 'last_used_at') is distinct from (to_jsonb(new) - 'last_used_at')
)
execute function refuse_key_change();

create function record_operator_act(who text, what text, target text, how jsonb) returns boolean
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

revoke all on function record_operator_act(text, text, text, jsonb) from public;
