-- A refund can wait for a person before it begins, and it can be taken back before the gateway has it.
--
-- refund_records: `requested` waits for a person and reserves nothing: it has neither a movement in payment_transactions nor a job
-- before it is approved. `declined` and `withdrawn` end a refund that never began; a withdrawn one may have been refused by the
-- gateway for the merchant's balance. `approved_by` is the person who approved it, or the first of two. `ended_by` is who declined
-- or withdrew it. `short_attempt` is the attempt that the gateway refused for the merchant's balance: while it equals `attempts`,
-- that refusal is the gateway's last answer.
-- refund_records_moves: `REFUND_TRANSITIONS` of `shared/domain/src/refund.rs`, for every role. The condition is looked at without a
-- call.
-- create_refund_request, move_unsent_refund: the ingress may write no state of a refund itself. These functions write the states
-- in front of the gateway and no other. The second one counts the rows that it moved. `requested` to `requested` notes the first of
-- two approvals.

set local lock_timeout = '2s';

alter table refund_records
  add column approved_by varchar(96),
  add column ended_by varchar(96),
  add column decline_reason varchar(200),
  add column short_attempt integer,
  drop constraint refund_records_status,
  add constraint refund_records_status check (status in
    ('requested', 'pending', 'processing', 'succeeded', 'failed', 'abnormal', 'declined', 'withdrawn')) not valid;

create function refuse_refund_move() returns trigger
language plpgsql as $$
begin
  raise exception 'a refund that is % cannot become %', old.status, new.status
    using errcode = 'check_violation', table = tg_table_name, constraint = tg_name;
end;
$$;

create trigger refund_records_moves
before update of status on refund_records
for each row
when (
  old.status <> new.status
  and not (old.status = 'requested' and new.status in ('pending', 'declined', 'withdrawn'))
  and not (old.status = 'pending' and new.status in ('processing', 'withdrawn'))
  and not (old.status = 'processing' and new.status in ('succeeded', 'failed', 'abnormal', 'withdrawn'))
  and not (old.status = 'abnormal' and new.status in ('succeeded', 'failed'))
  and not (old.status in ('failed', 'withdrawn') and new.status = 'succeeded')
)
execute function refuse_refund_move();

create function create_refund_request(
  new_id bpchar, of_order bpchar, of_payment bpchar, number text, yuan numeric, reason text, requester text, moment timestamptz
) returns void
language sql security definer
begin atomic
  insert into refund_records
    (id, order_id, transaction_id, refund_no, refund_amount, refund_reason, requested_by, status, created_at, updated_at)
  values (new_id, of_order, of_payment, number, yuan, reason, requester, 'requested', moment, moment);
end;

create function move_unsent_refund(
  moved_id bpchar, from_state text, to_state text, actor text, reason text, moment timestamptz
) returns bigint
language sql security definer
begin atomic
  with moved as (
    update refund_records
    set status = to_state,
        approved_by = case when to_state in ('requested', 'pending') then coalesce(approved_by, actor) else approved_by end,
        ended_by = case when to_state in ('declined', 'withdrawn') then actor end,
        decline_reason = reason,
        updated_at = moment
    where id = moved_id and status = from_state
      and (from_state = 'requested' and to_state in ('requested', 'pending', 'declined', 'withdrawn')
        or from_state = 'pending' and to_state = 'withdrawn')
    returning id, refund_no
  ), movement as (
    update payment_transactions t
    set status = 'failed', gateway_no = coalesce(t.gateway_no, moved.refund_no), updated_at = moment
    from moved
    where t.id = moved.id and to_state = 'withdrawn'
  )
  select count(*) from moved;
end;

revoke all on function create_refund_request(bpchar, bpchar, bpchar, text, numeric, text, text, timestamptz) from public;
revoke all on function move_unsent_refund(bpchar, text, text, text, text, timestamptz) from public;
