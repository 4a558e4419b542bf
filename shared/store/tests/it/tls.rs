//! TLS to the database and to Redis: with the right authority, with another one, with and without an identity.

use std::path::Path;
use std::time::Duration;

use secrecy::SecretString;
use store::DbError;
use store::cache::{Redis, RedisConfig};
use testkit::{Clients, Speaks, TlsFront};

#[tokio::test]
async fn a_database_is_trusted_when_the_named_authority_vouches_for_it() {
    let plain = testkit::env("DATABASE_URL");
    let front = TlsFront::start(testkit::place(&plain), Speaks::Postgres, Clients::Known).await;
    let (ca, stranger, (certificate, key)) = (front.ca(), front.stranger(), front.identity());
    let url = |root: &Path, identity: &[(&str, &Path)]| {
        let parameters = [&[("sslmode", Path::new("verify-full")), ("sslrootcert", root)], identity].concat();
        front.address_of(&plain, "postgres", &parameters)
    };
    let identity = [("sslcert", certificate.as_path()), ("sslkey", key.as_path())];
    let pool = store::connect::connect(&url(&ca, &identity), "test", 1).await.unwrap();
    store::connect::ping(&pool).await.unwrap();
    pool.close().await;
    for untrusted in [url(&stranger, &identity), url(&ca, &[])] {
        assert!(matches!(store::connect::connect(&untrusted, "test", 1).await, Err(DbError::Unavailable(_))));
    }
}

#[tokio::test]
async fn a_redis_is_trusted_when_the_named_authority_vouches_for_it() {
    let plain = testkit::env("REDIS_URL");
    let front = TlsFront::start(testkit::place(&plain), Speaks::TlsAtOnce, Clients::Known).await;
    let (ca, stranger, (certificate, key)) = (front.ca(), front.stranger(), front.identity());
    let url = |root: &Path, identity: &[(&str, &Path)]| {
        front.address_of(&plain, "rediss", &[&[("cacertfile", root)], identity].concat())
    };
    let connected = async |url: SecretString| Redis::connect(&RedisConfig::new(url, "").unwrap()).await.is_connected();
    let identity = [("certfile", certificate.as_path()), ("keyfile", key.as_path())];
    // A busy machine may need more than the moment that a start waits.
    let patient = async { while !connected(url(&ca, &identity)).await {} };
    tokio::time::timeout(Duration::from_secs(30), patient).await.expect("a connection");
    for untrusted in [url(&stranger, &identity), url(&ca, &[])] {
        assert!(!connected(untrusted).await);
    }
    let nowhere = RedisConfig::new(url(Path::new("/nowhere/ca.pem"), &[]), "").unwrap_err();
    assert!(nowhere.starts_with("/nowhere/ca.pem cannot be read"), "{nowhere}");
}
