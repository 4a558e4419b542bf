-- What buyers may choose just now: one row for each gateway, changed by a person while everything runs.
--
-- payment_config: the first table of this name (0004) held settings without a form; nothing has ever read or written it,
-- so it goes. A gateway is on or off, single scenes of it can be off, and an order's amount lies within two limits. Every
-- gateway has its row from the start, so a change is an update that names the version it was decided on. A scene is named
-- only when it is off: what an account offers from now on is on. Versions only rise, and so does their sum, which is the
-- version of the whole.
-- payment_config_changes: who changed what, when and why; written with the change, one row for each version.

drop table payment_config;

create table payment_config (
  payment_method varchar(20) not null,
  enabled boolean not null default true,
  disabled_scenes text[] not null default '{}',
  min_amount numeric(10, 2) not null default 0.01,
  max_amount numeric(10, 2) not null default 99999999.99,
  version bigint not null default 1,
  updated_by varchar(64) not null,
  updated_at timestamptz not null,
  constraint payment_config_pkey primary key (payment_method),
  constraint payment_config_method check (payment_method in ('alipay', 'wechat')),
  constraint payment_config_scenes
    check (disabled_scenes <@ array['page', 'wap', 'app', 'qr', 'native', 'jsapi', 'mini', 'h5']),
  constraint payment_config_limits check (0 < min_amount and min_amount <= max_amount)
);

insert into payment_config (payment_method, updated_by, updated_at)
values ('alipay', 'migration', now()), ('wechat', 'migration', now());

create table payment_config_changes (
  id bigint not null generated always as identity,
  payment_method varchar(20) not null,
  -- Of the row after the change.
  version bigint not null,
  before jsonb not null,
  after jsonb not null,
  note varchar(2000),
  changed_by varchar(64) not null,
  changed_at timestamptz not null,
  constraint payment_config_changes_pkey primary key (id),
  constraint payment_config_changes_once unique (payment_method, version)
);
