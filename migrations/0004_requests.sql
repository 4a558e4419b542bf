-- What makes a repeated request the same request, and what is switched on.
--
-- idempotency_keys: written in the statement that makes the row. `answer` is filled once the answer is final, so that a
-- repeat gets the same bytes; a crash in between leaves it empty and the repeat goes on with the same row.
-- payment_config: settings changed at run time, one row each; no row means the default of the configuration file.

create table idempotency_keys (
  user_id varchar(32) not null,
  key varchar(255) not null,
  route varchar(64) not null,
  request_hash bytea not null,
  -- The id of the row that the request made.
  ref_id char(32) not null,
  answer jsonb,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  constraint idempotency_keys_pkey primary key (user_id, key),
  constraint idempotency_keys_request_hash check (octet_length(request_hash) = 32)
);

create index idempotency_keys_expiry on idempotency_keys (expires_at);

create table payment_config (
  name varchar(64) not null,
  value jsonb not null,
  version bigint not null default 1,
  updated_by varchar(64) not null,
  updated_at timestamptz not null,
  constraint payment_config_pkey primary key (name)
);
