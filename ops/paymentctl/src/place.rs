//! The database that a command works on, and the operator's name.

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
    /// Opens the database of `DATABASE_URL`, if its schema fits this build and this user has the rights that the
    /// commands need.
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
            missing @ SchemaError::Missing(_) => {
                Problem::failed(chain(&missing), "run `paymentctl migrate` and `paymentctl database-roles`")
            }
            other => Problem::failed(chain(&other), "use the paymentctl of the release that runs"),
        })?;
        grants::check(&db, Service::PaymentCtl).await.map_err(|error| {
            Problem::failed(chain(&error), "log in as paymentctl's own role, and run `paymentctl database-roles`")
        })?;
        Ok(Place { db, clock: Clock::system() })
    }
}

/// Checks an operator's name. Their actions are recorded as `paymentctl/` and this name, which is not authenticated.
///
/// # Errors
/// When it is empty, too long, or more than one word.
pub fn operator(text: &str) -> Result<String, String> {
    let word = text.bytes().all(|byte| byte.is_ascii_graphic());
    let fits = word && (1..=40).contains(&text.len());
    if fits { Ok(text.to_owned()) } else { Err("one word of 1 to 40 ASCII characters, such as a login".to_owned()) }
}

/// The signature of an action that is executed (`yes`), in the form in which it is recorded; `None` in a dry run.
///
/// # Errors
/// [`Problem`] when the action is to be executed and no operator is named.
pub fn signature(yes: bool, operator: Option<&str>) -> Result<Option<String>, Problem> {
    match (yes, operator) {
        (false, _) => Ok(None),
        (true, Some(operator)) => Ok(Some(format!("paymentctl/{operator}"))),
        (true, None) => {
            let hint = "give --operator NAME, or set PAYMENT_OPERATOR: it is recorded";
            Err(Problem::usage("no operator is named", hint))
        }
    }
}
