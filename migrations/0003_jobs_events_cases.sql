-- Work that is due, events that must go out, and cases for people. PostgreSQL is the truth, the broker is the road.
--
-- jobs: `fence` rises each time a job is published, taken or re-dated; whoever holds an older fence has lost it.
-- `lease_until` keeps a published job from being published again too soon.
-- events: the outbox and the log of fulfilment events. `seq` orders the events of one order; it is taken before the
-- commit, so a reader asks for what is unpublished and never for "everything after the last seq".
-- Both are queues: small hot tables that live by vacuum, so vacuum is told to come early and not to pause.

create table jobs (
  id bigint generated always as identity,
  kind varchar(20) not null,
  -- The row that the job is about: an order's or a refund's id. A job whose payload is all there is has none.
  ref_id char(32),
  payload jsonb not null default '{}',
  due_at timestamptz not null,
  lease_until timestamptz,
  fence bigint not null default 0,
  attempts integer not null default 0,
  -- How often it was published without an answer; the lease doubles with it.
  publishes integer not null default 0,
  last_error text,
  created_at timestamptz not null,
  constraint jobs_pkey primary key (id),
  constraint jobs_kind check (kind in ('callback', 'check', 'refund')),
  constraint jobs_ref check ((kind = 'callback') = (ref_id is null))
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

create index jobs_due on jobs (kind, due_at);
-- One job of a kind for each row.
create unique index jobs_ref_key on jobs (kind, ref_id) where ref_id is not null;

create table events (
  seq bigint generated always as identity,
  -- Deterministic from the type and what it tells of, so that a repeat is recognisable.
  event_id varchar(128) not null,
  type varchar(40) not null,
  order_id char(32),
  data jsonb not null,
  occurred_at timestamptz not null,
  -- Not before then: the event was returned as unroutable.
  retry_at timestamptz,
  published_at timestamptz,
  constraint events_pkey primary key (seq),
  constraint events_event_id_key unique (event_id)
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

create index events_due on events (seq) where published_at is null;
-- The few that wait for somebody to listen, and hold up what follows of their order.
create index events_held on events (retry_at) where published_at is null and retry_at is not null;
create index events_published on events (published_at) where published_at is not null;

create table cases (
  id char(32) not null,
  kind varchar(30) not null,
  order_id char(32),
  -- The gateway's number, or what else makes the case one of its kind.
  gateway_no varchar(128) not null,
  evidence jsonb not null,
  status varchar(20) not null default 'open',
  proposed_by varchar(64),
  proposed_action jsonb,
  resolution text,
  resolved_by varchar(64),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint cases_pkey primary key (id),
  constraint cases_order_fkey foreign key (order_id) references payment_orders (id),
  constraint cases_status check (status in ('open', 'proposed', 'resolved')),
  constraint cases_kind check (kind in
    ('late_payment', 'double_payment', 'refunded_elsewhere', 'amount_mismatch', 'wrong_merchant', 'wrong_method',
     'unknown_order', 'unknown_refund', 'dead_letter')),
  constraint cases_once unique nulls not distinct (kind, order_id, gateway_no)
);

create index cases_open on cases (id) where status <> 'resolved';
create index cases_order on cases (order_id) where order_id is not null;
