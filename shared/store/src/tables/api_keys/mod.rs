//! `api_keys` and `api_keys_version`: the keys by which the merchant's backend proves itself.
//!
//! Every change of a key raises the version and records the act, both in its transaction; a trigger raises the version,
//! so no role can forget it. Here is the life of a key; what checks requests reads `active`.

mod active;

use domain::{ApiKeyId, ApiKeyName, ApiKeyState, KeyDigest, KeyEnvironment, Scope, Scopes};
use ipnet::IpNet;
use serde_json::{Value, json};
use sqlx::{PgConnection, PgExecutor};
use time::{Duration, OffsetDateTime};

use crate::error::{DbError, NotDone};
use crate::page::Mark;
use crate::tables::audit::{self, Act};
use crate::tables::jobs::millis;

pub use active::{ActiveKey, ActiveSecret, KeyUse, SealedSecret, active, note_used, offer_secret_place, version};

/// A key that is to be created.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Its name, which no other key has or had.
    pub name: ApiKeyName,
    /// What it is for.
    pub environment: KeyEnvironment,
    /// What it may do; the database refuses the scopes of people.
    pub scopes: Scopes,
    /// The addresses that its requests may come from; an empty list allows every address.
    pub networks: Vec<IpNet>,
    /// The digest of its secret.
    pub digest: KeyDigest,
    /// When it ends by itself, if it does.
    pub expires_at: Option<OffsetDateTime>,
}

impl NewApiKey {
    /// The state in which it begins: a key that returns money waits for another person.
    pub fn state(&self) -> ApiKeyState {
        if self.scopes.contains(Scope::Refund) { ApiKeyState::Proposed } else { ApiKeyState::Active }
    }
}

/// A key, without its digests.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Its name.
    pub name: ApiKeyName,
    /// What it is for.
    pub environment: KeyEnvironment,
    /// What it may do, as far as this build knows the scopes.
    pub scopes: Scopes,
    /// The addresses that its requests may come from; an empty list allows every address.
    pub networks: Vec<IpNet>,
    /// Where it is in its life.
    pub state: ApiKeyState,
    /// Who made it.
    pub proposed_by: String,
    /// The other person, who confirmed it.
    pub confirmed_by: Option<String>,
    /// When the secret before the present one stops counting, if there is one.
    pub previous_until: Option<OffsetDateTime>,
    /// When the secret for offers before the present one stops counting, if there is one.
    pub previous_offer_until: Option<OffsetDateTime>,
    /// When it ends by itself, if it does.
    pub expires_at: Option<OffsetDateTime>,
    /// Whether that time has come, by the database's clock.
    pub has_expired: bool,
    /// When it was revoked.
    pub revoked_at: Option<OffsetDateTime>,
    /// When it was used last, to the minute.
    pub last_used_at: Option<OffsetDateTime>,
    /// By the database's clock.
    pub created_at: OffsetDateTime,
    /// The last change, by the database's clock. A use is no change.
    pub updated_at: OffsetDateTime,
}

/// Why a key cannot be changed like this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// No key has this id.
    #[error("there is no such key")]
    Unknown,
    /// Another key has or had this name.
    #[error("another key has or had this name")]
    NameTaken,
    /// It was revoked, which is final.
    #[error("the key is revoked")]
    Revoked,
    /// Its time is over.
    #[error("the key has expired")]
    Expired,
    /// It returns money, so one person cannot give it a new secret.
    #[error("a key that returns money gets no new secret: make another key, have it confirmed, then revoke this one")]
    TakesTwo,
    /// It waits for another person.
    #[error("the key waits for another person to confirm it")]
    NotConfirmed,
    /// It is active, so it needs no confirmation.
    #[error("the key is active already")]
    Active,
    /// It may not create orders, so it may not vouch for their terms.
    #[error("the key may not create orders, so it signs no offers")]
    NoOrders,
    /// The person who made the key cannot confirm it.
    #[error("the person who made the key cannot confirm it")]
    SamePerson,
}

/// Who acts, without regard to ASCII case and to the tool by which they came.
fn person(by: &str) -> String {
    let lower = by.to_ascii_lowercase();
    lower.strip_prefix(OPERATOR).map(str::to_owned).unwrap_or(lower)
}

/// The start of a subject that `paymentctl` writes.
const OPERATOR: &str = "paymentctl/";

impl ApiKey {
    /// Whether this person may confirm the key now.
    ///
    /// # Errors
    /// [`KeyRefusal`].
    pub fn may_confirm(&self, by: &str) -> Result<(), KeyRefusal> {
        match self.state {
            ApiKeyState::Revoked => Err(KeyRefusal::Revoked),
            ApiKeyState::Active => Err(KeyRefusal::Active),
            ApiKeyState::Proposed if self.has_expired => Err(KeyRefusal::Expired),
            ApiKeyState::Proposed if person(by) == person(&self.proposed_by) => Err(KeyRefusal::SamePerson),
            ApiKeyState::Proposed => Ok(()),
        }
    }

    /// Whether the key can get a new secret now.
    ///
    /// # Errors
    /// [`KeyRefusal`].
    pub fn may_rotate(&self) -> Result<(), KeyRefusal> {
        self.is_in_force()?;
        if self.scopes.contains(Scope::Refund) { Err(KeyRefusal::TakesTwo) } else { Ok(()) }
    }

    /// Whether the key can get a secret for offers now.
    ///
    /// # Errors
    /// [`KeyRefusal`].
    pub fn may_offer(&self) -> Result<(), KeyRefusal> {
        self.is_in_force()?;
        if self.scopes.contains(Scope::Orders) { Ok(()) } else { Err(KeyRefusal::NoOrders) }
    }

    /// Whether the key opens anything now.
    fn is_in_force(&self) -> Result<(), KeyRefusal> {
        match self.state {
            ApiKeyState::Revoked => Err(KeyRefusal::Revoked),
            ApiKeyState::Proposed => Err(KeyRefusal::NotConfirmed),
            ApiKeyState::Active if self.has_expired => Err(KeyRefusal::Expired),
            ApiKeyState::Active => Ok(()),
        }
    }

    /// Whether the key can be revoked: in every state but the last, and after its end as well.
    ///
    /// # Errors
    /// [`KeyRefusal::Revoked`].
    pub fn may_revoke(&self) -> Result<(), KeyRefusal> {
        if self.state == ApiKeyState::Revoked { Err(KeyRefusal::Revoked) } else { Ok(()) }
    }

    fn detail(&self, more: Value) -> Value {
        let mut detail = json!({ "name": self.name.as_str(), "scopes": self.scopes.to_string() });
        if let (Value::Object(detail), Value::Object(more)) = (&mut detail, more) {
            detail.extend(more);
        }
        detail
    }
}

struct Row {
    id: ApiKeyId,
    name: ApiKeyName,
    environment: KeyEnvironment,
    scopes: Vec<String>,
    networks: Vec<String>,
    state: ApiKeyState,
    proposed_by: String,
    confirmed_by: Option<String>,
    previous_until: Option<OffsetDateTime>,
    previous_offer_until: Option<OffsetDateTime>,
    expires_at: Option<OffsetDateTime>,
    has_expired: bool,
    revoked_at: Option<OffsetDateTime>,
    last_used_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl Row {
    fn read(self) -> Result<ApiKey, DbError> {
        Ok(ApiKey {
            networks: networks(self.id, &self.networks)?,
            scopes: Scopes::of_words(&self.scopes),
            id: self.id,
            name: self.name,
            environment: self.environment,
            state: self.state,
            proposed_by: self.proposed_by,
            confirmed_by: self.confirmed_by,
            previous_until: self.previous_until,
            previous_offer_until: self.previous_offer_until,
            expires_at: self.expires_at,
            has_expired: self.has_expired,
            revoked_at: self.revoked_at,
            last_used_at: self.last_used_at,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

/// A constraint guarantees the form. A network that we cannot read must not make the list an empty one, which allows
/// every address.
fn networks(id: ApiKeyId, texts: &[String]) -> Result<Vec<IpNet>, DbError> {
    let corrupt = |source: ipnet::AddrParseError| DbError::Corrupt {
        table: "api_keys",
        column: "networks".to_owned(),
        row: id.to_string(),
        source: source.into(),
    };
    texts.iter().map(|text| text.parse::<IpNet>().map_err(corrupt)).collect()
}

/// Reads keys without their digests: one list of columns for every query.
macro_rules! select_keys {
    ($tail:tt $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"
            select
              id as "id: ApiKeyId", name as "name: ApiKeyName", environment as "environment: KeyEnvironment", scopes,
              networks, state as "state: ApiKeyState", proposed_by, confirmed_by,
              case when previous_until > now() then previous_until end as previous_until,
              case when previous_offer_until > now() then previous_offer_until end as previous_offer_until,
              expires_at, coalesce(expires_at <= now(), false) as "has_expired!", revoked_at, last_used_at, created_at,
              updated_at
            from api_keys
            "# + $tail
            $(, $argument)*
        )
    };
}

/// All keys, the newest first, also those that were revoked.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: impl PgExecutor<'_>) -> Result<Vec<ApiKey>, DbError> {
    select_keys!("order by created_at desc, id").fetch_all(db).await?.into_iter().map(Row::read).collect()
}

/// One page of the keys, the newest first; only keys before `before`, and of this state if it is given.
///
/// # Errors
/// [`DbError`].
pub async fn page(
    db: impl PgExecutor<'_>,
    state: Option<ApiKeyState>,
    before: Option<Mark<ApiKeyId>>,
    limit: i64,
) -> Result<Vec<ApiKey>, DbError> {
    let rows = select_keys!(
        r#"
        where ($1::text is null or state = $1)
          and ($2::timestamptz is null or created_at < $2 or created_at = $2 and id > $3)
        order by created_at desc, id
        limit $4
        "#,
        state.map(ApiKeyState::as_str),
        before.map(|before| before.at),
        before.map(|before| before.id) as Option<ApiKeyId>,
        limit,
    );
    rows.fetch_all(db).await?.into_iter().map(Row::read).collect()
}

/// One key.
///
/// # Errors
/// [`DbError`].
pub async fn get(db: impl PgExecutor<'_>, id: ApiKeyId) -> Result<Option<ApiKey>, DbError> {
    select_keys!("where id = $1", id as ApiKeyId).fetch_optional(db).await?.map(Row::read).transpose()
}

/// One key, locked until the transaction ends.
async fn lock(tx: &mut PgConnection, id: ApiKeyId) -> Result<ApiKey, NotDone<KeyRefusal>> {
    let row = select_keys!("where id = $1 for update", id as ApiKeyId).fetch_optional(tx).await;
    let row = row.map_err(DbError::from)?.ok_or(NotDone::Refused(KeyRefusal::Unknown))?;
    Ok(row.read()?)
}

/// Creates a key and records who did it. Returns its state, see [`NewApiKey::state`].
///
/// # Errors
/// [`NotDone`], with [`KeyRefusal::NameTaken`].
pub async fn create(tx: &mut PgConnection, new: &NewApiKey, by: &str) -> Result<ApiKeyState, NotDone<KeyRefusal>> {
    let state = new.state();
    let scopes: Vec<String> = new.scopes.iter().map(|scope| scope.as_str().to_owned()).collect();
    let networks: Vec<String> = new.networks.iter().map(ToString::to_string).collect();
    // The cast to `cidr` writes each network in one form.
    let done = sqlx::query!(
        r#"
        insert into api_keys (id, name, environment, scopes, networks, digest, state, proposed_by, expires_at)
        values ($1, $2, $3, $4, $5::text[]::cidr[]::text[], $6, $7, $8, $9)
        on conflict on constraint api_keys_name_key do nothing
        "#,
        new.id as ApiKeyId,
        new.name.as_str(),
        new.environment.as_str(),
        &scopes,
        &networks,
        new.digest.as_bytes(),
        state.as_str(),
        by,
        new.expires_at,
    )
    .execute(&mut *tx)
    .await
    .map_err(DbError::from)?;
    if done.rows_affected() == 0 {
        return Err(NotDone::Refused(KeyRefusal::NameTaken));
    }
    let act = if state == ApiKeyState::Proposed { "key.proposed" } else { "key.made" };
    let key = get(&mut *tx, new.id).await?.ok_or(DbError::Moved)?;
    let detail = json!({ "environment": new.environment.as_str(), "networks": networks });
    record(tx, act, &key, detail, by).await?;
    Ok(state)
}

/// Makes a proposed key active, by another person than the one who made it.
///
/// # Errors
/// [`NotDone`].
pub async fn confirm(tx: &mut PgConnection, id: ApiKeyId, by: &str) -> Result<(), NotDone<KeyRefusal>> {
    let key = lock(tx, id).await?;
    key.may_confirm(by).map_err(NotDone::Refused)?;
    let done = sqlx::query!(
        r#"
        update api_keys set state = 'active', confirmed_by = $2, updated_at = now()
        where id = $1 and state = 'proposed'
        "#,
        id as ApiKeyId,
        by,
    );
    let done = done.execute(&mut *tx).await.map_err(DbError::from)?;
    DbError::expect_rows(done.rows_affected(), 1)?;
    let detail = json!({ "proposed_by": key.proposed_by });
    Ok(record(tx, "key.confirmed", &key, detail, by).await?)
}

/// A new secret for a key.
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// The digest of the new secret.
    pub digest: KeyDigest,
    /// How long the present secret goes on to count, by the database's clock. Zero: it ends at once.
    pub overlap: Duration,
}

/// Gives a key a new secret. The present one counts on for the overlap; a secret before that one ends at once, so at
/// most two count. Returns until when the present one counts.
///
/// # Errors
/// [`NotDone`].
pub async fn rotate(
    tx: &mut PgConnection,
    id: ApiKeyId,
    rotation: &Rotation,
    by: &str,
) -> Result<Option<OffsetDateTime>, NotDone<KeyRefusal>> {
    let key = lock(tx, id).await?;
    key.may_rotate().map_err(NotDone::Refused)?;
    let done = sqlx::query!(
        r#"
        update api_keys
        set digest = $2, previous_digest = case when $3::bigint > 0 then digest end,
            previous_until = case when $3::bigint > 0 then clock_timestamp() + $3::bigint * interval '1 millisecond' end,
            updated_at = now()
        where id = $1 and state = 'active'
        returning previous_until
        "#,
        id as ApiKeyId,
        rotation.digest.as_bytes(),
        millis(rotation.overlap),
    );
    let done = done.fetch_optional(&mut *tx).await.map_err(DbError::from)?;
    let until = done.ok_or(DbError::Moved)?.previous_until;
    let detail = json!({ "overlap_seconds": rotation.overlap.whole_seconds() });
    record(tx, "key.rotated", &key, detail, by).await?;
    Ok(until)
}

/// Gives a key a new secret for its offers. The present one counts on for `overlap`. Returns until when it counts.
///
/// # Errors
/// [`NotDone`].
pub async fn set_offer_secret(
    tx: &mut PgConnection,
    id: ApiKeyId,
    sealed: &[u8],
    overlap: Duration,
    by: &str,
) -> Result<Option<OffsetDateTime>, NotDone<KeyRefusal>> {
    let key = lock(tx, id).await?;
    key.may_offer().map_err(NotDone::Refused)?;
    let done = sqlx::query!(
        r#"
        update api_keys
        set offer_secret = $2, previous_offer_secret = case when $3::bigint > 0 then offer_secret end,
            previous_offer_until = case when $3::bigint > 0 and offer_secret is not null
              then clock_timestamp() + $3::bigint * interval '1 millisecond' end,
            updated_at = now()
        where id = $1 and state = 'active'
        returning previous_offer_until
        "#,
        id as ApiKeyId,
        sealed,
        millis(overlap),
    );
    let done = done.fetch_optional(&mut *tx).await.map_err(DbError::from)?;
    let until = done.ok_or(DbError::Moved)?.previous_offer_until;
    let detail = json!({ "overlap_seconds": overlap.whole_seconds() });
    record(tx, "key.offer_secret_made", &key, detail, by).await?;
    Ok(until)
}

/// Ends a key for good.
///
/// # Errors
/// [`NotDone`].
pub async fn revoke(tx: &mut PgConnection, id: ApiKeyId, by: &str) -> Result<(), NotDone<KeyRefusal>> {
    let key = lock(tx, id).await?;
    key.may_revoke().map_err(NotDone::Refused)?;
    let done = sqlx::query!(
        r#"
        update api_keys set state = 'revoked', revoked_at = now(), updated_at = now()
        where id = $1 and state <> 'revoked'
        "#,
        id as ApiKeyId,
    );
    let done = done.execute(&mut *tx).await.map_err(DbError::from)?;
    DbError::expect_rows(done.rows_affected(), 1)?;
    let detail = json!({ "from": key.state.as_str() });
    Ok(record(tx, "key.revoked", &key, detail, by).await?)
}

async fn record(tx: &mut PgConnection, act: &str, key: &ApiKey, more: Value, by: &str) -> Result<(), DbError> {
    let detail = key.detail(more);
    let act = Act { subject: by, act, object: format!("key:{}", key.id), detail: &detail };
    if by.starts_with(OPERATOR) { audit::record_operator(tx, &act).await } else { audit::record(tx, &act).await }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_one_in_any_case_and_by_any_tool() {
        assert_eq!(person("paymentctl/Alice"), person("ALICE"));
        assert_ne!(person("paymentctl/alice"), person("paymentctl/alicE."));
        assert_ne!(person("ä"), person("Ä"), "only ASCII letters");
    }
}
