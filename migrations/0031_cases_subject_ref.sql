-- cases.subject_ref: what a case is about, among the cases of its kind and order. It is a gateway's number, or one of ours, or another
-- text. The old name, gateway_no, says less. Both columns hold the same text until a later release drops the old one: a release from
-- before this migration writes gateway_no alone, a newer one subject_ref, and the trigger fills the other, in an older row too when it
-- is updated: the check counts for every update from now on.

set local lock_timeout = '2s';

alter table cases add column subject_ref varchar(128);

create function fill_case_subject() returns trigger
language plpgsql as $$
begin
  new.subject_ref := coalesce(new.subject_ref, new.gateway_no);
  new.gateway_no := coalesce(new.gateway_no, new.subject_ref);
  return new;
end;
$$;

create trigger cases_subject
before insert or update on cases
for each row
execute function fill_case_subject();

alter table cases add constraint cases_subject_ref check (subject_ref is not null and subject_ref = gateway_no) not valid;
