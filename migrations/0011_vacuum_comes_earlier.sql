-- Vacuum comes when a twentieth of a table is dead, and not a fifth: rows are removed now when their time is over (decision
-- 0012), and a fifth of a table that grows for years is months of it. `jobs` and `events` have it earlier already (0003).
--
-- Such a setting takes a lock that neither readers nor writers notice.

set local lock_timeout = '2s';

alter table payment_orders set (autovacuum_vacuum_scale_factor = 0.05);
alter table payment_transactions set (autovacuum_vacuum_scale_factor = 0.05);
alter table callbacks set (autovacuum_vacuum_scale_factor = 0.05);
alter table idempotency_keys set (autovacuum_vacuum_scale_factor = 0.05);
