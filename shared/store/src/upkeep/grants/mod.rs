//! Applies the table of permissions to the roles, compares them with it, and checks them at the start of a process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use runtime::service::Service;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};

use crate::error::DbError;

mod table;

pub use table::{FUNCTIONS, Function, Grant, Right, TABLES, Table};

/// Gives a role the permissions of its process, and no others, in the schema of this session.
///
/// The permissions that it had before are revoked first. All this is one transaction, so a running process does not
/// notice it. No other role gains or loses anything, except that PUBLIC can no longer create objects or temporary
/// tables here.
///
/// # Errors
/// [`DbError`]; for example when this session's user does not own the tables.
pub async fn apply(tx: &mut PgConnection, service: Service, role: &str) -> Result<(), DbError> {
    let place = sqlx::query!(
        r#"select quote_ident(current_schema()) as "schema!", quote_ident(current_database()) as "database!""#
    );
    let place = place.fetch_one(&mut *tx).await?;
    let (schema, database, role) = (place.schema, place.database, quoted(role));
    let mut statements = vec![
        format!("revoke create on schema {schema} from public"),
        format!("revoke temporary on database {database} from public"),
        format!("revoke all on all tables in schema {schema} from {role}"),
        format!("revoke all on all sequences in schema {schema} from {role}"),
        format!("revoke all on schema {schema} from {role}"),
        format!("grant usage on schema {schema} to {role}"),
    ];
    for table in TABLES {
        for grant in table.grants.iter().filter(|grant| grant.to.contains(&service)) {
            let columns = grant.columns.map(|columns| format!(" ({})", columns.join(", "))).unwrap_or_default();
            statements.push(format!("grant {}{columns} on {schema}.{} to {role}", grant.right.as_str(), table.name));
        }
    }
    for Function { name, arguments, to } in FUNCTIONS {
        let function = format!("function {schema}.{name} ({arguments})");
        statements.push(format!("revoke all on {function} from public, {role}"));
        if to.contains(&service) {
            statements.push(format!("grant execute on {function} to {role}"));
        }
    }
    for statement in statements {
        tx.execute(AssertSqlSafe(statement)).await?;
    }
    Ok(())
}

/// Makes other processes that set permissions in this database wait until the transaction ends. Two at the same time
/// would make each other fail.
///
/// # Errors
/// [`DbError`].
pub async fn take_turns(tx: &mut PgConnection) -> Result<(), DbError> {
    sqlx::query!("select pg_advisory_xact_lock($1) as done", GRANTING).fetch_one(tx).await?;
    Ok(())
}

/// Whether a role of this name exists.
///
/// # Errors
/// [`DbError`].
pub async fn role_exists(connection: &mut PgConnection, role: &str) -> Result<bool, DbError> {
    let row = sqlx::query!(r#"select exists (select from pg_roles where rolname = $1) as "exists!""#, role);
    Ok(row.fetch_one(connection).await?.exists)
}

/// The difference between a role's permissions and the table above.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Permissions that the process needs and the role lacks, such as `update payment_orders.status`.
    pub lacking: BTreeSet<String>,
    /// Permissions that the role has and the process does not need.
    pub exceeding: BTreeSet<String>,
}

/// Compares a role's permissions here (its own, inherited from other roles, from PUBLIC, or as a superuser) with the
/// table above.
///
/// # Errors
/// [`DbError`]; for example when the role does not exist.
pub async fn compare(connection: &mut PgConnection, service: Service, role: &str) -> Result<Difference, DbError> {
    let columns = columns(&mut *connection).await?;
    let wanted = wanted(service, &columns);
    let held = sqlx::query!(
        r#"
        select c.relname::text || '.' || a.attname as "object!", p.name as "right!"
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        cross join (values ('SELECT'), ('INSERT'), ('UPDATE')) as p (name)
        where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
          and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
          and has_column_privilege($1::text::name, c.oid, a.attnum, p.name)
        union
        select c.relname, p.name
        from pg_class c cross join (values ('DELETE'), ('TRUNCATE'), ('TRIGGER')) as p (name)
        where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
          and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
          and has_table_privilege($1::text::name, c.oid, p.name)
        union
        select p.proname, 'EXECUTE' from pg_proc p
        where p.pronamespace = current_schema()::regnamespace and p.prosecdef
          and has_function_privilege($1::text::name, p.oid, 'EXECUTE')
        "#,
        role,
    );
    let held = held.fetch_all(connection).await?;
    let held: BTreeSet<String> =
        held.into_iter().map(|row| format!("{} {}", row.right.to_lowercase(), row.object)).collect();
    Ok(Difference {
        lacking: wanted.difference(&held).cloned().collect(),
        exceeding: held.difference(&wanted).cloned().collect(),
    })
}

/// The reason why the database user of a process cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// Permissions are missing.
    #[error("user {user} may not {}", .lacking.join(", "))]
    Lacking {
        /// The user that logs in.
        user: String,
        /// The missing permissions.
        lacking: Vec<String>,
    },
    /// The permissions could not be read.
    #[error("cannot read the rights of this user")]
    Db(#[from] DbError),
}

/// The largest number of missing permissions that a message names.
const NAMED: usize = 5;

/// Checks that the user of this pool has the permissions that its process needs. Returns the permissions beyond that:
/// they do not prevent a start, but deserve a warning.
///
/// # Errors
/// [`RightsError`].
pub async fn check(pool: &PgPool, service: Service) -> Result<Option<Excess>, RightsError> {
    let mut connection = pool.acquire().await.map_err(DbError::from)?;
    let row = sqlx::query!(r#"select current_user::text as "name!""#).fetch_one(&mut *connection).await;
    let user = row.map_err(DbError::from)?.name;
    let Difference { lacking, exceeding } = compare(&mut connection, service, &user).await?;
    if !lacking.is_empty() {
        return Err(RightsError::Lacking { user, lacking: first(lacking) });
    }
    Ok((!exceeding.is_empty()).then(|| Excess { user, rights: first(exceeding) }))
}

/// Permissions that a user has and its process does not need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// The user that logs in.
    pub user: String,
    /// The first of these permissions, and how many more there are.
    pub rights: Vec<String>,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {} may also {}", self.user, self.rights.join(", "))
    }
}

fn first(rights: BTreeSet<String>) -> Vec<String> {
    let mut rights = rights.into_iter();
    let mut named: Vec<String> = rights.by_ref().take(NAMED).collect();
    let others = rights.count();
    if others > 0 {
        named.push(format!("and {others} more"));
    }
    named
}

/// Every table of this session's schema with its columns.
///
/// # Errors
/// [`DbError`].
pub async fn columns(connection: &mut PgConnection) -> Result<BTreeMap<String, Vec<String>>, DbError> {
    let rows = sqlx::query!(
        r#"
        select c.relname::text as "table!", a.attname::text as "column!"
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
          and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
        order by c.relname, a.attnum
        "#
    );
    let mut columns = BTreeMap::<String, Vec<String>>::new();
    for row in rows.fetch_all(connection).await? {
        columns.entry(row.table).or_default().push(row.column);
    }
    Ok(columns)
}

/// The permissions in the table above, column by column; `delete` applies to whole rows.
fn wanted(service: Service, columns: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let functions = FUNCTIONS.iter().filter(|function| function.to.contains(&service));
    let mut wanted: BTreeSet<String> = functions.map(|function| format!("execute {}", function.name)).collect();
    for table in TABLES {
        for grant in table.grants.iter().filter(|grant| grant.to.contains(&service)) {
            let right = grant.right.as_str();
            match (grant.right, grant.columns) {
                (Right::Delete, _) => drop(wanted.insert(format!("{right} {}", table.name))),
                (_, Some(only)) => wanted.extend(only.iter().map(|column| format!("{right} {}.{column}", table.name))),
                (_, None) => {
                    let all = columns.get(table.name).into_iter().flatten();
                    wanted.extend(all.map(|column| format!("{right} {}.{column}", table.name)));
                }
            }
        }
    }
    wanted
}

/// The key of the lock that is held while permissions are set.
const GRANTING: i64 = 0x7061_7967_7261_6e74;

/// A name, quoted as an SQL identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
