//! What a start asks of the database.

use gateway::Gateways;
use runtime::env::{ConfigFaults, Fault};
use runtime::error_chain::chain;
use runtime::service::Service;
use runtime::start::check;
use sqlx::PgPool;
use tracing::warn;

use crate::config::DatabaseConfig;
use crate::connect::connect;
use crate::tables::open_accounts;
use crate::upkeep::{grants, schema};

/// The pool of a process whose database answers, has the schema of this build, and grants the rights that the process needs.
///
/// # Errors
/// A fault that names what is wrong.
pub async fn reach(config: &DatabaseConfig, service: Service) -> Result<PgPool, ConfigFaults> {
    let pool =
        async { connect(&config.url, service.as_str(), config.max_connections).await.map_err(|error| chain(&error)) };
    let pool = check("database", "check DATABASE_URL and that the server runs", pool).await?;
    let remedy = "run `paymentctl migrate` and `paymentctl database-roles`, or the release that fits";
    let schema = async { schema::check_schema(&pool).await.map_err(|error| chain(&error)) };
    check("database schema", remedy, schema).await?;
    check_rights(&pool, service).await?;
    Ok(pool)
}

/// Refuses a start whose user of the database lacks a right that the process needs, and warns of a user who may do more than that,
/// such as the owner of the tables: what is broken into then may do it as well.
///
/// # Errors
/// A fault that names what is missing.
pub async fn check_rights(db: &PgPool, service: Service) -> Result<(), ConfigFaults> {
    let remedy = format!("log in as {} (DATABASE_URL), and run `paymentctl database-roles`", service.database_role());
    let rights = async { grants::check(db, service).await.map_err(|error| chain(&error)) };
    if let Some(excess) = check("database rights", &remedy, rights).await? {
        warn!(
            %excess,
            "This process may do more at the database than it needs: log in as {}, or take these rights away",
            service.database_role()
        );
    }
    Ok(())
}

/// Refuses a start without an account that an open order or refund names: its callbacks would be unknown, its checks and
/// refunds would stand still.
///
/// # Errors
/// A fault for each such account.
pub async fn check_accounts(db: &PgPool, gateways: &Gateways) -> Result<(), ConfigFaults> {
    let named = async { open_accounts::named(db).await.map_err(|error| chain(&error)) };
    let named = check("accounts of open orders", "look at the database, then start again", named).await?;
    let mut faults = ConfigFaults::default();
    for (method, account) in named.iter().filter(|(method, account)| gateways.get(*method, account).is_none()) {
        let wrong = format!("has no account {:?} at {method}, and open orders or refunds name it", account.as_str());
        faults.push(Fault::new("GATEWAYS_FILE", wrong, "put it back, and retire it with `new_orders = false`"));
    }
    faults.finish()
}
