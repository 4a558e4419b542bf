-- Every callback that passed the gate, as evidence: the exact bytes, what its signature needs, and what became of it.
--
-- The unique key keeps evidence single and counts repeats. It never decides settling: the order's state does, so a
-- replay after a repaired key still settles. Where no id of the gateway could be read, `notice_id` is `sha256:` and the
-- digest of the body. `body` is compressed out of line by lz4 where the server has it; it is never searched.

create table callbacks (
  id bigint generated always as identity,
  payment_method varchar(20) not null,
  account varchar(32) not null,
  notice_id varchar(128) not null,
  order_no varchar(64),
  verdict varchar(20) not null,
  headers jsonb not null,
  body bytea not null,
  times_seen integer not null default 1,
  received_at timestamptz not null,
  last_seen_at timestamptz not null,
  constraint callbacks_pkey primary key (id),
  constraint callbacks_notice_key unique (payment_method, account, notice_id),
  constraint callbacks_verdict check (verdict in
    ('settled', 'duplicate', 'not_pending', 'amount_mismatch', 'wrong_merchant', 'wrong_method', 'unknown_order',
     'unknown_refund', 'ignored', 'bad_signature', 'undecodable'))
) with (fillfactor = 95);

-- All evidence about one order.
create index callbacks_order_no on callbacks (order_no) where order_no is not null;
