-- Whose turn an Idempotency-Key is, and how it was answered.
--
-- held_until: a process works on the request until then. Another one with the same key waits, and takes over when the time
-- has passed: the first has died between the effect and the saved answer. Null: nobody works on it.
-- refused_with: the HTTP status of an answer that is a refusal for good. Null: a success, whose status the route knows.

set local lock_timeout = '2s';

alter table idempotency_keys
  add column held_until timestamptz,
  add column refused_with smallint,
  add constraint idempotency_keys_refused_with check (
    refused_with is null or (refused_with between 400 and 499 and answer is not null)
  ) not valid;
