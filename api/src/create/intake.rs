//! Makes a callback durable. The first route is the broker (a publisher confirm). If it fails, the second route is the
//! database (a committed row). If both fail, the gateway gets an error and repeats the callback.

use std::time::Duration;

use broker::{Confirmed, PublishError, Publisher, callback_message};
use domain::message::callback::Callback;
use gateway::Verified;
use runtime::clock::Clock;
use runtime::crash::{self, Point};
use sqlx::PgPool;
use store::connect::in_time;
use store::tables::jobs::{self, Stored};
use tokio::time::timeout;
use tracing::Instrument;

/// How long each of the two routes may take.
const WAIT: Duration = Duration::from_secs(2);

/// Proof that a callback is durable. Only a broker's confirm or a database commit creates it.
#[derive(Debug)]
pub struct Receipt(());

impl From<Confirmed> for Receipt {
    fn from(_: Confirmed) -> Receipt {
        Receipt(())
    }
}

impl From<Stored> for Receipt {
    fn from(_: Stored) -> Receipt {
        Receipt(())
    }
}

/// Neither route stored the callback in time. It may still have arrived; a repeat is harmless.
#[derive(Debug, thiserror::Error)]
#[error("neither the broker ({broker}) nor the database ({database}) stored the callback")]
pub struct NotStored {
    broker: PublishError,
    database: String,
}

/// See the module.
#[derive(Clone)]
pub struct Intake {
    publisher: Publisher,
    db: PgPool,
    clock: Clock,
}

impl Intake {
    /// An intake with both routes.
    pub fn new(publisher: Publisher, db: PgPool, clock: Clock) -> Intake {
        Intake { publisher, db, clock }
    }

    /// Makes the exact bytes durable. The work continues when the caller is dropped: a gateway that hangs up changes
    /// nothing.
    ///
    /// # Errors
    /// [`NotStored`] after 4 s at most.
    pub async fn store(&self, callback: Verified<Callback>) -> Result<Receipt, NotStored> {
        let intake = self.clone();
        let work = async move { intake.take(&callback.into_inner()).await };
        let ended = tokio::spawn(work.in_current_span()).await;
        ended.unwrap_or_else(|panic| Err(NotStored { broker: PublishError::NoSession, database: panic.to_string() }))
    }

    /// Publishes the callback to `payment.in` with key `payment.callbacks`. Without a confirm it commits a row of `jobs`.
    async fn take(&self, callback: &Callback) -> Result<Receipt, NotStored> {
        let message = callback_message(callback, self.clock.fresh_id().to_string());
        let broker = match self.publisher.publish(message, WAIT).await {
            Ok(confirmed) => {
                crash::at(Point::IntakeConfirmed);
                return Ok(self.stored("broker", confirmed));
            }
            Err(error) => error,
        };
        crash::at(Point::IntakeUnpublished);
        match self.commit(callback.clone()).await {
            Ok(stored) => {
                crash::at(Point::IntakeStored);
                Ok(self.stored("database", stored))
            }
            Err(database) => Err(NotStored { broker, database }),
        }
    }

    /// When the time is up, we stop waiting but do not cancel the statement, because the server would not notice.
    async fn commit(&self, callback: Callback) -> Result<Stored, String> {
        let db = self.db.clone();
        let work = tokio::spawn(async move { in_time(jobs::store_callback(&db, &callback)).await });
        match timeout(WAIT, work).await {
            Ok(Ok(stored)) => stored.map_err(|error| error.to_string()),
            Ok(Err(panic)) => Err(panic.to_string()),
            Err(_) => Err("no commit in time".to_owned()),
        }
    }

    fn stored(&self, route: &'static str, proof: impl Into<Receipt>) -> Receipt {
        metrics::counter!("callbacks_stored_total", "road" => route).increment(1);
        proof.into()
    }
}
