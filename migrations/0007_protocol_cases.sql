-- A signed answer that makes no sense is a case of its own; and the trades whose money came and went are found at once.
--
-- Every payment that is settled asks whether its money has gone back already: the index holds the few trades of which a
-- case says so, so that the question costs nothing where there is none.

alter table cases drop constraint cases_kind;
alter table cases add constraint cases_kind check (kind in
  ('late_payment', 'double_payment', 'refunded_elsewhere', 'amount_mismatch', 'wrong_merchant', 'wrong_method',
   'unknown_order', 'unknown_refund', 'dead_letter', 'refund_abnormal', 'refund_shortage', 'refund_closed',
   'refund_after_failure', 'gateway_protocol'));

create index cases_returned on cases (gateway_no) where kind = 'refunded_elsewhere';
