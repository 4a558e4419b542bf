-- Every answer in `idempotency_keys` fits what 0008 says of it: looked at without keeping anybody from writing.

alter table idempotency_keys validate constraint idempotency_keys_refused_with;
