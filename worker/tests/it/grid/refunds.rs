//! Every fact that a gateway can state about a refund, in each state of the refund.

use domain::PaymentMethod::{self, Alipay};
use domain::{LatePaymentPolicy, Money, RefundReport, RefundStatus, Verdict};
use gateway_sim::ledger::{RefundState, Trade};
use gateway_sim::notify::Overrides;
use serde_json::json;
use store::settle::refunds::withdraw_unknown;
use store::tables::orders::Order;
use store::tables::refund_requests::note_short;
use store::tables::refunds::{Refund, get, mark_sent};
use time::{Duration, OffsetDateTime};

use super::books::{Books, Cell};
use super::desk::{Desk, Word};
use super::orders::with;
use super::table::{self, Field, State};

/// What is on its way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Part,
    Whole,
    SecondPayment,
}

const SHARES: [(Share, &str); 3] =
    [(Share::Part, "a part"), (Share::Whole, "the whole"), (Share::SecondPayment, "a second payment")];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    Success,
    OtherAmount,
    NoAmountOfOurs,
    Closed,
    Abnormal,
    UnknownState,
    Hint,
    NoNumber,
    UnknownNumber,
}

/// Alipay's notice is a hint whatever it says: its `refund_fee` is the sum of all refunds so far.
const AT_ALIPAY: &[(Notice, &str)] = &[
    (Notice::Hint, "a refund"),
    (Notice::NoNumber, "a refund\nwithout its number"),
    (Notice::UnknownNumber, "a refund of an\nunknown number"),
];
const AT_WECHAT: &[(Notice, &str)] = &[
    (Notice::Success, "success"),
    (Notice::OtherAmount, "success,\nanother amount"),
    (Notice::NoAmountOfOurs, "success, more than\nany order costs"),
    (Notice::Closed, "closed"),
    (Notice::Abnormal, "abnormal"),
    (Notice::UnknownState, "a state that\nis unknown"),
    (Notice::UnknownNumber, "success of an\nunknown number"),
];
/// Where the columns of WeChat Pay are parted.
const SUCCESSES: usize = 3;

/// Executes every cell of one gateway and draws them.
pub async fn grid(desk: &Desk, method: PaymentMethod) -> String {
    let columns = if method == Alipay { AT_ALIPAY } else { AT_WECHAT };
    let mut states = Vec::new();
    for status in RefundStatus::ALL {
        // No refund gets stuck at Alipay, and no gateway has one that was never sent.
        let never_sent = matches!(status, RefundStatus::Requested | RefundStatus::Declined);
        if never_sent || (method, *status) == (Alipay, RefundStatus::Abnormal) {
            continue;
        }
        let mut under = Vec::new();
        for (share, condition) in SHARES {
            // People decide about a second payment from its case. What they decided is not withdrawn.
            if (share, *status) == (Share::SecondPayment, RefundStatus::Withdrawn) {
                continue;
            }
            let mut fields = Vec::new();
            for (notice, _) in columns {
                fields.push(field(desk, method, share, (*status, *notice)).await);
            }
            under.push((condition, fields));
        }
        states.push(State { name: status.as_str(), under });
    }
    let headings: Vec<&str> = columns.iter().map(|(_, heading)| *heading).collect();
    let draw = |part| table::draw(&headings, &states, part);
    if method == Alipay {
        return draw((0, columns.len()));
    }
    format!("{}\n{}", draw((0, SUCCESSES)), draw((SUCCESSES, columns.len())))
}

async fn field(desk: &Desk, method: PaymentMethod, share: Share, (own, notice): (RefundStatus, Notice)) -> Field {
    let place = format!("{method}, {share:?}, {own}, {notice:?}");
    let hold = LatePaymentPolicy::Hold;
    let (order, trade, refund) = refunded(desk, method, share).await;
    reach(desk, &refund, own).await;
    let word = word(&trade, &refund, notice);
    let db = &desk.world.db;
    let ids = [1, 2].map(|n| format!("{}-{n}", order.order_no));

    let before = Books::read(db, order.id).await;
    let verdict = desk.tell(hold, &order, &word, &ids[0]).await;
    let after = Books::read(db, order.id).await;
    // The same message, and the same fact in another message.
    desk.tell(hold, &order, &word, &ids[0]).await;
    let again = desk.tell(hold, &order, &word, &ids[1]).await;
    let last = Books::read(db, order.id).await;

    assert_eq!(status(&before, &refund), own, "{place}");
    let hint = matches!(notice, Notice::Hint | Notice::UnknownState | Notice::NoAmountOfOurs);
    let cell = Cell { before, verdict, after, again, last, hint };
    cell.obeys_the_laws(&place);
    let job = cell.after.job("refund", &refund.id.to_string()).is_some();
    match status(&cell.after, &refund) {
        RefundStatus::Succeeded => assert!(!job, "{place}: what is over needs no job"),
        RefundStatus::Failed | RefundStatus::Withdrawn => {}
        RefundStatus::Requested | RefundStatus::Declined => assert!(!job, "{place}: no worker carries it on"),
        _ => assert!(job, "{place}: nobody carries it on"),
    }
    if share == Share::SecondPayment {
        assert_eq!(cell.before.own_orders(), cell.after.own_orders(), "{place}: the order's own money stayed");
    }
    lines(&cell, &refund)
}

fn status(books: &Books, refund: &Refund) -> RefundStatus {
    books.refunds.iter().find(|known| known.id == refund.id).unwrap().status
}

fn lines(cell: &Cell, refund: &Refund) -> Field {
    let (from, to) = (status(&cell.before, refund), status(&cell.after, refund));
    let mut lines = vec![if from == to { cell.verdict.to_string() } else { format!("{} → {to}", cell.verdict) }];
    let order = cell.after.order.status;
    lines.extend((cell.before.order.status != order).then(|| format!("order → {order}")));
    lines.extend(cell.news());
    let outside = cell.after.new_rows(&cell.before, "refunds").iter().any(|refund| refund["origin"] == "outside");
    lines.extend(outside.then(|| "+ outside refund".to_owned()));
    let due = |books: &Books| books.job("refund", &refund.id.to_string()).map(|job| job["due_at"].to_string());
    let job = match (due(&cell.before), due(&cell.after)) {
        (None, None) => "no job",
        (None, Some(_)) => "+ job",
        (Some(_), None) => "job ends",
        (Some(before), Some(after)) if after < before => "job is due now",
        (Some(_), Some(_)) => "job stays",
    };
    lines.push(job.to_owned());
    lines.extend(cell.again());
    lines
}

/// A paid order with a refund that has not been sent yet, and the trade that it refunds.
async fn refunded(desk: &Desk, method: PaymentMethod, share: Share) -> (Order, Trade, Refund) {
    let order = desk.world.pending_order(method, "10").await;
    let mut trade = desk.world.paid_trade(&order);
    let mut verdicts = vec![(Verdict::Settled, trade.clone())];
    if share == Share::SecondPayment {
        trade = desk.world.paid_trade(&order);
        verdicts.push((Verdict::NotPending, trade.clone()));
    }
    for (n, (verdict, trade)) in verdicts.into_iter().enumerate() {
        let (paid, id) = (Word::notice(&trade, Overrides::default()), format!("{}-paid-{n}", order.order_no));
        assert_eq!(desk.tell(LatePaymentPolicy::Hold, &order, &paid, &id).await, verdict);
    }
    let extra = Some(&trade).filter(|_| share == Share::SecondPayment);
    let amount = (share == Share::Part).then(|| Money::from_yuan("4").unwrap());
    let refund = desk.request_refund(&order, extra, amount).await;
    (order, trade, refund)
}

/// Brings a pending refund to `own`. A job that is left is due in an hour.
async fn reach(desk: &Desk, refund: &Refund, own: RefundStatus) {
    let now = desk.worker(LatePaymentPolicy::Hold).clock.now();
    match own {
        RefundStatus::Requested | RefundStatus::Declined => unreachable!("the gateway has no such refund"),
        RefundStatus::Pending => {}
        RefundStatus::Withdrawn => {
            sent(desk, refund, now).await;
            let worker = desk.worker(LatePaymentPolicy::Hold);
            let mut tx = desk.world.db.begin().await.unwrap();
            note_short(&mut tx, refund.id, Some(1)).await.unwrap();
            let short = get(&mut *tx, refund.id).await.unwrap().unwrap();
            assert!(withdraw_unknown(&mut tx, &short, &worker.gateways.policies(), &worker.clock).await.unwrap());
            tx.commit().await.unwrap();
        }
        RefundStatus::Processing => sent(desk, refund, now).await,
        RefundStatus::Succeeded => {
            desk.answered(refund, &RefundReport::of(domain::RefundState::Succeeded)).await;
        }
        RefundStatus::Failed => {
            desk.answered(refund, &RefundReport::of(domain::RefundState::Absent)).await;
        }
        RefundStatus::Abnormal => {
            desk.answered(
                refund,
                &RefundReport {
                    gateway_refund_no: Some("50300".to_owned()),
                    ..RefundReport::of(domain::RefundState::Abnormal)
                },
            )
            .await;
        }
    }
    sqlx::query("update jobs set due_at = $2 where kind = 'refund' and ref_id = $1")
        .bind(refund.id.to_string())
        .bind(now + Duration::hours(1))
        .execute(&desk.world.db)
        .await
        .unwrap();
}

async fn sent(desk: &Desk, refund: &Refund, now: OffsetDateTime) {
    let mut tx = desk.world.db.begin().await.unwrap();
    mark_sent(&mut tx, refund.id, now).await.unwrap();
    tx.commit().await.unwrap();
}

fn word(trade: &Trade, refund: &Refund, notice: Notice) -> Word {
    let returned = |state| trade.clone().refunded(refund.refund_no.as_str(), refund.amount.fen(), state);
    let success = returned(RefundState::Success);
    let amount = |fen| Overrides { amount_fen: Some(fen), ..Overrides::default() };
    match notice {
        Notice::Success | Notice::Hint => Word::notice(&success, Overrides::default()),
        Notice::OtherAmount => Word::notice(&success, amount(399)),
        Notice::NoAmountOfOurs => Word::notice(&success, amount(10_000_000_000)),
        Notice::Closed => Word::notice(&returned(RefundState::Closed), Overrides::default()),
        Notice::Abnormal => Word::notice(&returned(RefundState::Abnormal), Overrides::default()),
        Notice::UnknownState => {
            let envelope = [("/event_type".to_owned(), Some(json!("REFUND.SOMETHING_NEW")))].into_iter().collect();
            Word::notice(&success, Overrides { envelope, ..with("/refund_status", json!("SOMETHING_NEW")) })
        }
        Notice::NoNumber => {
            let fields = [("out_biz_no".to_owned(), None)].into_iter().collect();
            Word::notice(&success, Overrides { fields, ..Overrides::default() })
        }
        Notice::UnknownNumber => {
            let foreign = trade.clone().refunded("NOT_OURS", refund.amount.fen(), RefundState::Success);
            Word::notice(&foreign, Overrides::default())
        }
    }
}
