-- Who had which event published again, one row for each event and time, written by the statement that marks the event as
-- unpublished: marking takes from it when it was out before. Rows stay; people make few of them, and they say who did what.

create table event_republishes (
  id bigint not null generated always as identity,
  event_id varchar(128) not null,
  -- When the broker had confirmed it before.
  published_at timestamptz not null,
  republished_by varchar(64) not null,
  republished_at timestamptz not null,
  constraint event_republishes_pkey primary key (id)
);

create index event_republishes_event on event_republishes (event_id);
