-- The bytes of dead letters, apart from their cases: a message of a gateway names its payer, and people who read cases have no
-- business with that. The case keeps a digest and the size. The relay writes these rows, moves the bytes that cases of an older
-- release hold, and deletes rows when the time of callbacks is over and their case is resolved.
--
-- body, job: the message as it lay in its queue; a callback in the form of a job's payload, so that a replay is one insert. One
-- of the two is there.
-- replay_dead_letter: whoever may call it puts a callback back as a job and never sees it. Its text is bound when it is created,
-- so no search_path of a caller changes what it means.

create table dead_letters (
  case_id char(32) not null,
  body bytea,
  job jsonb,
  filed_at timestamptz not null,
  constraint dead_letters_pkey primary key (case_id),
  constraint dead_letters_case_fkey foreign key (case_id) references cases (id) on delete cascade,
  constraint dead_letters_bytes check (num_nonnulls(body, job) = 1)
);

create index dead_letters_filed_at on dead_letters (filed_at);

create function replay_dead_letter(replayed bpchar) returns bigint
language sql security definer
begin atomic
  insert into jobs (kind, payload, due_at, created_at)
  select 'callback', letter.job, now(), now()
  from dead_letters letter
  join cases c on c.id = letter.case_id
  where letter.case_id = replayed and letter.job is not null and c.kind = 'dead_letter' and c.status = 'open'
  returning id;
end;

revoke all on function replay_dead_letter(bpchar) from public;
