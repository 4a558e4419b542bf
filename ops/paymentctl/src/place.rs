//! Which database, and who asks.

use runtime::clock::Clock;
use runtime::env::Env;
use runtime::error_chain::chain;
use runtime::service::Service;
use sqlx::PgPool;
use store::DatabaseConfig;
use store::upkeep::grants;
use store::upkeep::schema::SchemaError;

use crate::answer::Problem;

/// What a command works on.
pub struct Place {
    /// The pool.
    pub db: PgPool,
    /// The clock.
    pub clock: Clock,
}

impl Place {
    /// The database of `DATABASE_URL`, if it fits this build and this user may do what the commands need.
    ///
    /// # Errors
    /// [`Problem`] with what to do.
    pub async fn open(env: &mut Env) -> Result<Place, Problem> {
        let config = DatabaseConfig::from_env(env, 2);
        let Some(config) = config else {
            let faults = std::mem::replace(env, Env::of([])).into_faults();
            let said: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
            return Err(Problem::usage(said.join("\n       "), "every variable is in .env.example"));
        };
        let db = store::connect::connect(&config.url, Service::PaymentCtl.as_str(), config.max_connections).await?;
        store::upkeep::schema::check_schema(&db).await.map_err(|error| match error {
            SchemaError::Db(error) => Problem::from(error),
            other => Problem::failed(chain(&other), "use the paymentctl of the release that runs"),
        })?;
        grants::check(&db, Service::PaymentCtl).await.map_err(|error| {
            Problem::failed(chain(&error), "log in as paymentctl's own role, and run `payment-api database-roles`")
        })?;
        Ok(Place { db, clock: Clock::system() })
    }
}

/// The name under which a person's step is written down: `paymentctl/` and his own, which nobody proves here.
///
/// # Errors
/// When it is empty, too long, or more than one word.
pub fn operator(text: &str) -> Result<String, String> {
    let word = text.bytes().all(|byte| byte.is_ascii_graphic());
    let fits = word && (1..=40).contains(&text.len());
    if fits { Ok(text.to_owned()) } else { Err("one word of 1 to 40 ASCII characters, such as a login".to_owned()) }
}

/// Who signs a step that is really done (`yes`), as it is written down; `None` in a dry run.
///
/// # Errors
/// [`Problem`] when it is to be done and nobody is named.
pub fn signature(yes: bool, operator: Option<&str>) -> Result<Option<String>, Problem> {
    match (yes, operator) {
        (false, _) => Ok(None),
        (true, Some(operator)) => Ok(Some(format!("paymentctl/{operator}"))),
        (true, None) => {
            let hint = "give --operator NAME, or set PAYMENT_OPERATOR: it is written down";
            Err(Problem::usage("it is not said who does it", hint))
        }
    }
}
