//! `paymentctl database-roles`: grants each process's database role its rights.
//!
//! The table is in `store::upkeep::grants`. This command does not create the roles: they belong to the whole cluster, the user
//! that deploys to one database of it often may not create them, and a password has no place in a migration.

use anyhow::{Context, bail};
use clap::Args;
use runtime::service::{self, Named, Service};
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};
use store::DatabaseConfig;
use store::DbError;
use store::upkeep::grants;

/// How to call it.
#[derive(Debug, Clone, Default, Args)]
pub struct DatabaseRoles {
    /// The role of a process, if it is not the usual one (payment_api, payment_callback_worker, payment_check_worker,
    /// payment_refund_worker, payment_relay, payment_ctl).
    #[arg(long = "role", value_name = "PROCESS=ROLE")]
    roles: Vec<Named>,
}

/// Gives each role what its process needs and takes everything else away, in one transaction, and prints what it did.
///
/// # Errors
/// Names every missing role at once, and every right that a role has from elsewhere: of a role that it is a member of, or
/// as a superuser.
pub async fn run(config: &DatabaseConfig, options: &DatabaseRoles) -> anyhow::Result<()> {
    let roles = service::names(Service::database_role, &options.roles).map_err(anyhow::Error::msg)?;
    let mut connection = PgConnection::connect(config.url.expose_secret()).await.context("check DATABASE_URL")?;
    let mut missing = Vec::new();
    for (service, role) in &roles {
        if !grants::role_exists(&mut connection, role).await? {
            missing.push(format!("  create role \"{role}\" login password '…';  -- {service}"));
        }
    }
    if !missing.is_empty() {
        bail!("roles are missing; have them made, or name others with --role PROCESS=ROLE:\n{}", missing.join("\n"));
    }
    let mut tx = connection.begin().await.map_err(DbError::from)?;
    grants::take_turns(&mut tx).await?;
    for (service, role) in &roles {
        let granted = grants::apply(&mut tx, *service, role).await;
        granted.with_context(|| format!("role {role}: run `paymentctl migrate` first, as the owner of the tables"))?;
    }
    let mut wrong = Vec::new();
    for (service, role) in &roles {
        let difference = grants::compare(&mut tx, *service, role).await?;
        wrong.extend(difference.lacking.iter().map(|right| format!("  {role} lacks {right}")));
        wrong.extend(difference.exceeding.iter().take(5).map(|right| format!("  {role} may {right}")));
    }
    if !wrong.is_empty() {
        bail!(
            "roles have rights from elsewhere (a superuser, the tables' owner, a member of another role, a grant to \
             public); nothing was changed:\n{}",
            wrong.join("\n")
        );
    }
    tx.commit().await.map_err(DbError::from)?;
    for (service, role) in &roles {
        println!("role {role} may do what {service} needs, and nothing else");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use sqlx::PgPool;

    use super::*;

    fn config(db: &PgPool) -> DatabaseConfig {
        let mut url = url::Url::parse(&testkit::env("DATABASE_URL")).unwrap();
        url.set_path(db.connect_options().get_database().unwrap());
        DatabaseConfig { url: SecretString::from(String::from(url)), max_connections: 1 }
    }

    fn named(roles: &[&str]) -> DatabaseRoles {
        DatabaseRoles { roles: roles.iter().map(|text| text.parse().unwrap()).collect() }
    }

    #[sqlx::test(migrator = "store::MIGRATOR")]
    async fn roles_get_their_rights_as_often_as_one_likes(db: PgPool) {
        for _ in 0..2 {
            run(&config(&db), &named(&[])).await.unwrap();
        }
    }

    #[sqlx::test(migrator = "store::MIGRATOR")]
    async fn missing_roles_are_named_at_once_with_what_makes_them(db: PgPool) {
        let error = run(&config(&db), &named(&["relay=no_one", "check-worker=nobody"])).await.unwrap_err().to_string();
        for line in ["create role \"no_one\" login", "create role \"nobody\" login"] {
            assert!(error.contains(line), "{error}");
        }
    }

    /// The user of tests is a superuser.
    #[sqlx::test(migrator = "store::MIGRATOR")]
    async fn a_role_that_may_do_more_from_elsewhere_is_named_and_nothing_changes(db: PgPool) {
        let error = run(&config(&db), &named(&["relay=payment"])).await.unwrap_err().to_string();
        assert!(error.contains("payment may") && error.contains("superuser"), "{error}");
        let mut connection = db.acquire().await.unwrap();
        let api = grants::compare(&mut connection, Service::PaymentApi, "payment_api").await.unwrap();
        assert!(!api.lacking.is_empty(), "nothing was granted to others");
    }

    #[sqlx::test]
    async fn without_tables_the_step_before_is_named(db: PgPool) {
        let error = format!("{:#}", run(&config(&db), &named(&[])).await.unwrap_err());
        assert!(error.contains("paymentctl migrate"), "{error}");
    }
}
