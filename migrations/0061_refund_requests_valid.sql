-- Every refund has one of the states that 0060 lists. The release before wrote a part of them.

set local lock_timeout = '2s';

alter table refund_records validate constraint refund_records_status;
