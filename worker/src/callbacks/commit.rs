//! Settles callbacks in one transaction.

use domain::message::callback::Callback;
use domain::{Notification, Verdict};
use gateway::Verified;
use runtime::crash::{self, Point};
use sqlx::PgConnection;
use store::DbError;
use store::settle;
use store::tables::callbacks::Evidence;
use store::tables::{callbacks, jobs};

use crate::callbacks::examined::{Content, Examined};
use crate::callbacks::put_off::{LONG_WAIT, store_as_job};
use crate::callbacks::worker::CallbackWorker;

/// How long a callback with an unknown key is retried. Both gateways repeat a notification for a day; a key that is
/// still unknown after that needs a person.
const KNOWN_BY_THEN: time::Duration = time::Duration::hours(25);

/// How long a transaction may wait for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockWait {
    /// As long as the database allows. The transaction is repeated when it collides.
    Patient,
    /// Only briefly: a callback was delayed already, and others wait behind it.
    Hurried,
}

/// The result of a transaction.
pub(super) struct Committed {
    /// The verdict on each callback. `None`: its key or account is not known yet.
    pub(super) verdicts: Vec<Option<Verdict>>,
    /// The positions of the callbacks whose key or account has been unknown for too long.
    pub(super) stranded: Vec<usize>,
}

impl CallbackWorker {
    /// Commits one transaction: state, events and cases, the evidence, and the deletion of the callbacks' jobs.
    pub(super) async fn commit(&self, examined: &[Examined], lock_wait: LockWait) -> Result<Committed, DbError> {
        let notifications: Vec<&Verified<Notification>> = examined.iter().filter_map(Examined::notification).collect();
        crash::at(Point::CallbackExamined);
        let mut tx = self.db.begin().await?;
        if lock_wait == LockWait::Hurried {
            store::connect::hardly_wait_for_locks(&mut tx).await?;
        }
        let mut verdicts =
            settle::settle(&mut tx, &notifications, &self.gateways.policies(), &self.clock).await?.into_iter();
        crash::at(Point::CallbackMoved);
        met(&mut tx, Point::CallbackMoved, examined).await?;
        let verdicts: Vec<Option<Verdict>> = examined
            .iter()
            .map(|item| match &item.content {
                Content::Authentic(_) => verdicts.next(),
                Content::Bad { verdict, .. } => Some(*verdict),
                Content::NotYet(_) => None,
            })
            .collect();
        let now = self.clock.now();
        let evidence: Vec<Evidence<'_>> =
            examined.iter().zip(&verdicts).filter_map(|(item, verdict)| Some(item.evidence((*verdict)?))).collect();
        callbacks::record(&mut tx, &evidence, now).await?;
        let decided: Vec<&Callback> = evidence.iter().map(|evidence| evidence.callback).collect();
        jobs::delete_callbacks(&mut tx, &decided).await?;
        let mut stranded = Vec::new();
        for (place, item) in examined.iter().enumerate() {
            if let Content::NotYet(reason) = &item.content
                && store_as_job(&mut tx, &item.callback, reason, LONG_WAIT).await? > Some(KNOWN_BY_THEN)
            {
                stranded.push(place);
            }
        }
        crash::at(Point::CallbackRecorded);
        met(&mut tx, Point::CallbackRecorded, examined).await?;
        tx.commit().await?;
        crash::at(Point::CallbackCommitted);
        Ok(Committed { verdicts, stranded })
    }
}

/// Triggers the fault that a test has planted at this point for one of these callbacks.
async fn met(tx: &mut PgConnection, point: Point, examined: &[Examined]) -> Result<(), DbError> {
    for notification in examined.iter().filter_map(Examined::notification) {
        store::connect::met(tx, point, &notification.get().order_no).await?;
    }
    Ok(())
}
