-- What was not believed of a callback that settled all the same, such as a time that no payment can have.
--
-- The bytes beside it are the evidence; `note` says in words which field was set aside, and names no value.

set local lock_timeout = '2s';

alter table callbacks add column note text;
