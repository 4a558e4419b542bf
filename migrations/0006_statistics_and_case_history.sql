-- What an hour brought, kept so that statistics never count the orders again; and who did what about a case.
--
-- hourly_stats: one row for each hour of creation (ids are UUIDv7, so an hour is a range of a primary key) and method. The
-- relay writes the row anew when something of that hour has changed; a day of any whole-hour time zone is a sum of 24.
-- stats_progress: one row, how far the relay has read. `seq` trails the newest event by a round, because an event may
-- become visible later than one with a higher number.
-- cases: `version` is what a person has seen when deciding; `history` tells who did what, oldest first.

create table hourly_stats (
  hour timestamptz not null,
  payment_method varchar(20) not null,
  -- Of the orders placed in this hour:
  orders bigint not null,
  paid bigint not null,
  returned bigint not null,
  amount numeric(18, 2) not null,
  settle_seconds double precision not null,
  -- Of the refunds asked for in this hour:
  refunds bigint not null,
  refunds_succeeded bigint not null,
  refunds_failed bigint not null,
  refunded_amount numeric(18, 2) not null,
  refreshed_at timestamptz not null,
  constraint hourly_stats_pkey primary key (hour, payment_method)
);

create table stats_progress (
  only_row boolean not null default true,
  seq bigint not null,
  next_seq bigint not null,
  -- Hours before this one are counted; only events bring them back.
  hour timestamptz not null,
  refreshed_at timestamptz not null,
  constraint stats_progress_pkey primary key (only_row),
  constraint stats_progress_only_row check (only_row)
);

alter table cases
  add column version bigint not null default 1,
  add column history jsonb not null default '[]';

create index cases_status_newest on cases (status, id desc);
create index cases_kind_newest on cases (kind, id desc);
