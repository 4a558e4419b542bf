-- idempotency_keys.user_id holds the caller of the request: a buyer's user id as before, or `key …`, `service …`, `staff …` with the id or
-- the subject. A user id has no space, so no two callers have one text. The name stays for the release that still runs. A longer
-- varchar changes the catalogue alone.

set local lock_timeout = '2s';

alter table idempotency_keys alter column user_id type varchar(96);
