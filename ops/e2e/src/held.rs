//! Row locks that a test holds, and the processes that wait for them: each is in a transaction, already has the
//! gateway's answer, and cannot commit.

use sqlx::{Connection, PgConnection};

use crate::process::Process;
use crate::{Order, World};

/// Locked rows. No other transaction can change them until the lock is released.
pub struct Held(PgConnection);

impl Held {
    /// Releases the lock.
    pub async fn release(self) {
        self.0.close().await.expect("a connection can be closed");
    }
}

/// A process in the middle of a transaction that waits for a row lock.
pub struct Stuck<'a> {
    /// The process.
    pub process: &'a Process,
    /// The PostgreSQL backends of its waiting transactions.
    backends: Vec<i32>,
}

impl World {
    /// Locks the rows of these orders.
    pub async fn hold(&self, orders: &[&Order]) -> Held {
        let ids: Vec<&str> = orders.iter().map(|order| order.id.as_str()).collect();
        let mut connection = PgConnection::connect(&self.addresses.database).await.expect("a connection");
        sqlx::query("begin").execute(&mut connection).await.expect("a transaction");
        let lock = sqlx::query("select 1 from payment_orders where id = any($1::bpchar[]) order by id for update");
        let locked = lock.bind(&ids).execute(&mut connection).await.expect("a lock").rows_affected();
        assert_eq!(locked, ids.len() as u64, "not every order is there: {ids:?}");
        Held(connection)
    }

    /// Those processes of a service that wait for a row lock at this moment.
    pub async fn stuck<'a>(&self, service: &str, processes: &'a [Process]) -> Vec<Stuck<'a>> {
        let sql = "select pid, client_port from pg_stat_activity
            where datname = current_database() and application_name = $1 and wait_event_type = 'Lock'
              and wait_event in ('transactionid', 'tuple')";
        let waiting: Vec<(i32, i32)> =
            sqlx::query_as(sql).bind(service).fetch_all(&self.db).await.expect("the database answers");
        let backends_of = |process: &Process| -> Vec<i32> {
            waiting.iter().filter(|(_, port)| process.owns_port(*port)).map(|(pid, _)| *pid).collect()
        };
        let all = processes.iter().map(|process| Stuck { process, backends: backends_of(process) });
        all.filter(|stuck| !stuck.backends.is_empty()).collect()
    }

    /// Kills a stuck process as a crash would.
    pub async fn kill_stuck(&self, stuck: &Stuck<'_>) {
        stuck.process.kill();
        // PostgreSQL notices that its client died only when it writes to the connection.
        self.end_backends(&stuck.backends).await;
    }

    /// Terminates the PostgreSQL backends of these connections.
    pub async fn end_backends(&self, backends: &[i32]) {
        let end = sqlx::query("select pg_terminate_backend(pid) from unnest($1::int[]) pid");
        end.bind(backends).execute(&self.db).await.expect("the database answers");
    }
}
