-- Orders, and every movement of money tried for them.
--
-- Names and lengths are the specification's. Money is numeric(10,2) yuan here and integer fen in Rust. Ids are UUIDv7 in
-- 32 hex digits, so rows sort by time of creation and new ones land on the same pages of an index. `status` is text under
-- a check that a test compares with the enum. The fill factor leaves room for the few updates of a row's life to stay on
-- its page (HOT): no index names a column that settling changes, except the partial ones over the few unpaid rows.

create table payment_orders (
  id char(32) not null,
  user_id varchar(32) not null,
  order_no varchar(64) not null,
  product_type varchar(32) not null,
  subject varchar(256) not null,
  amount numeric(10, 2) not null,
  payment_method varchar(20) not null,
  scene varchar(20) not null,
  account varchar(32) not null,
  status varchar(20) not null default 'pending',
  -- The gateway's number of the trade that paid it.
  trade_no varchar(64),
  refunded_amount numeric(10, 2) not null default 0,
  expires_at timestamptz not null,
  paid_at timestamptz,
  closed_at timestamptz,
  client_ip inet,
  metadata jsonb not null default '{}',
  -- The exact parameters sent to the gateway, reused on every repeat. May name the payer: never logged.
  prepay jsonb not null,
  version bigint not null default 1,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint payment_orders_pkey primary key (id),
  constraint payment_orders_order_no_key unique (order_no),
  constraint payment_orders_amount_range check (amount > 0),
  constraint payment_orders_refunded_range check (refunded_amount between 0 and amount),
  constraint payment_orders_method check (payment_method in ('alipay', 'wechat')),
  constraint payment_orders_status check
    (status in ('pending', 'paid', 'closed', 'refunding', 'partially_refunded', 'refunded')),
  constraint payment_orders_paid_facts check
    (status in ('pending', 'closed') or (trade_no is not null and paid_at is not null)),
  constraint payment_orders_closed_facts check (status <> 'closed' or closed_at is not null)
) with (fillfactor = 85);

-- A user's own orders, newest first.
create index payment_orders_user on payment_orders (user_id, id desc);

create table payment_transactions (
  id char(32) not null,
  order_id char(32) not null,
  transaction_no varchar(64) not null,
  payment_method varchar(20) not null,
  action_type varchar(20) not null,
  amount numeric(10, 2) not null,
  status varchar(20) not null default 'pending',
  -- The gateway's number of this movement; known once it happened.
  gateway_no varchar(64),
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint payment_transactions_pkey primary key (id),
  constraint payment_transactions_order_fkey foreign key (order_id) references payment_orders (id),
  constraint payment_transactions_transaction_no_key unique (transaction_no),
  constraint payment_transactions_amount_range check (amount > 0),
  constraint payment_transactions_action check (action_type in ('payment', 'refund')),
  constraint payment_transactions_status check (status in ('pending', 'succeeded', 'failed')),
  constraint payment_transactions_gateway_no check (status <> 'succeeded' or gateway_no is not null)
) with (fillfactor = 85);

create index payment_transactions_order on payment_transactions (order_id);
-- A trade is counted once: a second payment of an order has a row of its own.
create unique index payment_transactions_gateway_no_key on payment_transactions (payment_method, gateway_no)
  where action_type = 'payment';

create table refund_records (
  id char(32) not null,
  order_id char(32) not null,
  -- The payment that it returns.
  transaction_id char(32) not null,
  refund_no varchar(64) not null,
  refund_amount numeric(10, 2) not null,
  status varchar(20) not null default 'pending',
  refund_reason varchar(200),
  gateway_refund_no varchar(64),
  attempts integer not null default 0,
  last_error text,
  requested_by varchar(64) not null,
  succeeded_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint refund_records_pkey primary key (id),
  constraint refund_records_order_fkey foreign key (order_id) references payment_orders (id),
  constraint refund_records_transaction_fkey foreign key (transaction_id) references payment_transactions (id),
  constraint refund_records_refund_no_key unique (refund_no),
  constraint refund_records_refund_no_form check (refund_no ~ '^[0-9A-Za-z_]{1,64}$'),
  constraint refund_records_amount_range check (refund_amount > 0),
  constraint refund_records_status check (status in ('pending', 'processing', 'succeeded', 'failed', 'abnormal'))
) with (fillfactor = 85);

create index refund_records_order on refund_records (order_id);
create index refund_records_transaction on refund_records (transaction_id);
