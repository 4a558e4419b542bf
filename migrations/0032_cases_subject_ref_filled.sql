-- Every case has a subject_ref (0031). Cases are few: one statement fills the older ones. It locks no reader, and takes the rows in the
-- order of their ids, as every transaction does. If a row is held for longer than two seconds, nothing has changed: run it again.

set local lock_timeout = '2s';

do $$
begin
  perform 1 from cases where subject_ref is null order by id for update;
end;
$$;

update cases set subject_ref = gateway_no where subject_ref is null;
alter table cases validate constraint cases_subject_ref;
