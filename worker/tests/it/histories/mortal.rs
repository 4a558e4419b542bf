//! Workers that die in the middle of their work.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::bench::Bench;

/// The database as a process sees it that is about to be killed; named, so that others differ.
pub(super) struct Mortal(pub(super) PgPool, String);

impl Mortal {
    pub(super) async fn new(bench: &Bench) -> Mortal {
        let name = format!("mortal-{:x}", bench.checks.clock.fresh_bits());
        let options = bench.world.db.connect_options().as_ref().clone().application_name(&name);
        Mortal(PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap(), name)
    }

    /// The connections end, wherever they were; what the server was doing for them, a commit it may be, it does.
    pub(super) async fn die(self, bench: &Bench) {
        self.0.close().await;
        let sessions = "select count(*) from pg_stat_activity where application_name = $1";
        while sqlx::query_scalar::<_, i64>(sessions).bind(&self.1).fetch_one(&bench.world.db).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// What is not done by then never is.
pub(super) async fn timeout<F: Future>(micros: u16, work: F) -> Option<F::Output> {
    tokio::time::timeout(Duration::from_micros(micros.into()), work).await.ok()
}
