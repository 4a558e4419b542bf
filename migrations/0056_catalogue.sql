-- The catalogue: products with a fixed price, for shops whose buyers place orders without a backend that names the price.
--
-- version rises by one with each change; audit_log tells who changed what. A product that is no longer sold is not active, and stays.

create table catalogue (
  product_type varchar(32) not null,
  subject varchar(256) not null,
  amount numeric(10, 2) not null,
  active boolean not null,
  version bigint not null default 1,
  updated_by varchar(96) not null,
  updated_at timestamptz not null,
  constraint catalogue_pkey primary key (product_type),
  constraint catalogue_amount check (amount > 0)
);
