-- A payment can come to another account than its order's: people return it from where it is.
--
-- payment_transactions: `account` names the account of a payment that is not the order's. Null: the order's account.

set local lock_timeout = '2s';

alter table payment_transactions add column account varchar(32);
