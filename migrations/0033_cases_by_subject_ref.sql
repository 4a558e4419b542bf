-- no-transaction
-- Cases are found by what they are about: a number on a receipt, or the key of a fact that arrives again.

create index concurrently cases_subject_ref on cases (subject_ref);
