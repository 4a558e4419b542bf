//! What a process needs to check requests: the active keys, their version, and when they were used last.
//!
//! A process holds all active keys in memory. It reads [`version`] first and then [`active`], so that a change in
//! between is found by the next look at the version.

use domain::{ApiKeyId, ApiKeyName, KeyDigest, KeyEnvironment, Scopes};
use ipnet::IpNet;
use runtime::seal::Place;
use sqlx::PgExecutor;
use time::OffsetDateTime;

use super::networks;
use crate::error::DbError;

/// The version of all keys. It rises with every change, except of the last use.
///
/// # Errors
/// [`DbError`].
pub async fn version(db: impl PgExecutor<'_>) -> Result<i64, DbError> {
    Ok(sqlx::query!("select version from api_keys_version").fetch_one(db).await?.version)
}

/// A key that requests may come with.
#[derive(Debug, Clone)]
pub struct ActiveKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Its name, for logs.
    pub name: ApiKeyName,
    /// What it is for. The text of the key must name the same environment.
    pub environment: KeyEnvironment,
    /// What it may do. Never a scope of people.
    pub scopes: Scopes,
    /// The addresses that its requests may come from; an empty list allows every address.
    pub networks: Vec<IpNet>,
    /// The secrets that count: one or two, the present one first.
    pub secrets: Vec<ActiveSecret>,
    /// When it ends by itself, if it does.
    pub expires_at: Option<OffsetDateTime>,
    /// The sealed secrets with which its offers are signed: none, one or two, the present one first.
    pub offer_secrets: Vec<SealedSecret>,
}

/// A secret that counts.
#[derive(Debug, Clone, Copy)]
pub struct ActiveSecret {
    /// Its digest.
    pub digest: KeyDigest,
    /// When it stops counting; `None`: with the key.
    pub until: Option<OffsetDateTime>,
}

/// A secret of offers, as it is stored.
#[derive(Clone)]
pub struct SealedSecret {
    /// Opens in [`offer_secret_place`].
    pub sealed: Vec<u8>,
    /// When it stops counting; `None`: with the key.
    pub until: Option<OffsetDateTime>,
}

/// Shows no secret, not even a sealed one.
impl std::fmt::Debug for SealedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealedSecret(until {:?})", self.until)
    }
}

/// Where the offer secret of a key is sealed. It stays valid when the secret becomes the previous one.
pub fn offer_secret_place(id: &str) -> Place<'_> {
    Place { table: "api_keys", column: "offer_secret", id }
}

/// The keys that are active and have not expired, by their ids. The caller must still look at `expires_at` and at the
/// ends of the secrets, because no change of the version announces them.
///
/// # Errors
/// [`DbError`].
pub async fn active(db: impl PgExecutor<'_>) -> Result<Vec<ActiveKey>, DbError> {
    let rows = sqlx::query!(
        r#"
        select
          id as "id: ApiKeyId", name as "name: ApiKeyName", environment as "environment: KeyEnvironment", scopes, networks,
          digest, case when previous_until > now() then previous_digest end as previous_digest, previous_until, expires_at,
          offer_secret, case when previous_offer_until > now() then previous_offer_secret end as previous_offer_secret,
          previous_offer_until
        from api_keys
        where state = 'active' and (expires_at is null or expires_at > now())
        order by id
        "#
    );
    let read = rows.fetch_all(db).await?.into_iter().map(|row| {
        let present = KeyDigest::from_slice(&row.digest).map(|digest| ActiveSecret { digest, until: None });
        let previous = row.previous_digest.as_deref().and_then(KeyDigest::from_slice);
        let previous = previous.map(|digest| ActiveSecret { digest, until: row.previous_until });
        let offer = row.offer_secret.map(|sealed| SealedSecret { sealed, until: None });
        let until = row.previous_offer_until;
        let previous_offer = row.previous_offer_secret.map(|sealed| SealedSecret { sealed, until });
        Ok(ActiveKey {
            offer_secrets: offer.into_iter().chain(previous_offer).collect(),
            networks: networks(row.id, &row.networks)?,
            id: row.id,
            name: row.name,
            environment: row.environment,
            scopes: Scopes::of_words(&row.scopes).without_people(),
            secrets: present.into_iter().chain(previous).collect(),
            expires_at: row.expires_at,
        })
    });
    read.collect()
}

/// A use of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUse {
    /// The key.
    pub id: ApiKeyId,
    /// When it was used, by the caller's clock. A time ahead of the database's clock counts as now.
    pub at: OffsetDateTime,
}

/// Notes when keys were used last, where the noted time is missing or more than a minute before. A key may occur
/// several times; an unknown one is ignored. A key that another transaction holds is left out, so this waits for no
/// lock. Returns how many keys were noted.
///
/// # Errors
/// [`DbError`].
pub async fn note_used(db: impl PgExecutor<'_>, uses: &[KeyUse]) -> Result<u64, DbError> {
    let ids: Vec<ApiKeyId> = uses.iter().map(|used| used.id).collect();
    let times: Vec<OffsetDateTime> = uses.iter().map(|used| used.at).collect();
    let done = sqlx::query!(
        r#"
        with used as (
          select id, least(max(at), now()) as at
          from unnest($1::bpchar[], $2::timestamptz[]) as used (id, at)
          group by id
        ), due as (
          select k.id, u.at
          from api_keys k join used u on u.id = k.id
          where k.last_used_at is null or k.last_used_at < u.at - interval '1 minute'
          order by k.id
          for no key update of k skip locked
        )
        update api_keys k set last_used_at = due.at from due where k.id = due.id
        "#,
        &ids as &[ApiKeyId],
        &times,
    );
    Ok(done.execute(db).await?.rows_affected())
}
