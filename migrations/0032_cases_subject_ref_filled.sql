-- Every case has a subject_ref (0031). Cases are few: one statement fills the older ones. It locks no reader, and a writer waits for the
-- row that it wants at most.

set local lock_timeout = '2s';

update cases set subject_ref = gateway_no where subject_ref is null;
alter table cases validate constraint cases_subject_ref;
