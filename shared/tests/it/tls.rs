//! TLS to the broker, to the database and to Redis: with the right authority, with another one, with and without an identity.

use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use shared::cache::{Redis, RedisConfig};
use shared::config::{AmqpConfig, Env};
use shared::db::{self, DbError};
use shared::mq::topology;
use shared::mq::{self, MqError};
use shared::service::Service;
use testkit::{Clients, Speaks, TestBroker, TlsFront};
use url::Url;

/// A broker's or a database's address, by way of `front`, with these parameters.
fn through(front: &TlsFront, url: &str, scheme: &str, parameters: &[(&str, &Path)]) -> SecretString {
    let rest = url.split_once("://").unwrap().1;
    let mut url = Url::parse(&format!("{scheme}://{rest}")).unwrap();
    url.set_host(Some("localhost")).unwrap();
    url.set_port(Some(front.port())).unwrap();
    for (name, path) in parameters {
        url.query_pairs_mut().append_pair(name, path.to_str().unwrap());
    }
    SecretString::from(String::from(url))
}

fn place(url: &str) -> String {
    let url = Url::parse(url).unwrap();
    format!("{}:{}", url.host_str().unwrap(), url.port().unwrap())
}

async fn in_front_of(broker: &TestBroker, clients: Clients) -> TlsFront {
    TlsFront::start(place(broker.uri().expose_secret()), Speaks::TlsAtOnce, clients).await
}

async fn refused(uri: &SecretString) -> String {
    match mq::open(uri, "test").await {
        Err(error @ MqError::Unreachable(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_broker_is_trusted_when_the_named_authority_vouches_for_it() {
    let broker = TestBroker::new().await;
    let front = in_front_of(&broker, Clients::Anyone).await;
    let plain = broker.uri_for(Service::PaymentApi).await;
    let uri = |parameters: &[_]| through(&front, plain.expose_secret(), "amqps", parameters);
    let (ca, stranger) = (front.ca(), front.stranger());
    let connection = mq::open(&uri(&[("cacertfile", &ca)]), "test").await.unwrap();
    topology::check(&connection, topology::Needs::API).await.unwrap();
    mq::close(&connection).await;
    for untrusted in [uri(&[("cacertfile", &stranger)]), uri(&[])] {
        let error = refused(&untrusted).await;
        assert!(error.contains("name the authority with ?cacertfile="), "{error}");
    }
    let other_name = uri(&[("cacertfile", &ca)]).expose_secret().replace("localhost", "127.0.0.1");
    let error = refused(&SecretString::from(other_name)).await;
    assert!(error.contains("its certificate is for another host"), "{error}");
}

#[tokio::test]
async fn a_broker_that_asks_who_we_are_is_shown_our_certificate() {
    let broker = TestBroker::new().await;
    let front = in_front_of(&broker, Clients::Known).await;
    let (ca, (certificate, key)) = (front.ca(), front.identity());
    let plain = broker.uri_for(Service::PaymentApi).await;
    let uri = |parameters: &[_]| through(&front, plain.expose_secret(), "amqps", parameters);
    let known = uri(&[("cacertfile", &ca), ("certfile", &certificate), ("keyfile", &key)]);
    let connection = mq::open(&known, "test").await.unwrap();
    topology::check(&connection, topology::Needs::API).await.unwrap();
    mq::close(&connection).await;
    refused(&uri(&[("cacertfile", &ca)])).await;
}

#[test]
fn a_start_names_the_file_that_is_missing() {
    let mut env = Env::of([("AMQP_URL", "amqps://u:hidden@h/v?cacertfile=/nowhere/ca.pem")]);
    assert!(AmqpConfig::from_env(&mut env).is_none());
    let error = env.finish().unwrap_err().to_string();
    assert!(error.contains("AMQP_URL: /nowhere/ca.pem cannot be read") && !error.contains("hidden"), "{error}");
}

#[tokio::test]
async fn a_database_is_trusted_when_the_named_authority_vouches_for_it() {
    let plain = testkit::env("DATABASE_URL");
    let front = TlsFront::start(place(&plain), Speaks::Postgres, Clients::Known).await;
    let (ca, stranger, (certificate, key)) = (front.ca(), front.stranger(), front.identity());
    let url = |root: &Path, identity: &[(&str, &Path)]| {
        let parameters = [&[("sslmode", Path::new("verify-full")), ("sslrootcert", root)], identity].concat();
        through(&front, &plain, "postgres", &parameters)
    };
    let identity = [("sslcert", certificate.as_path()), ("sslkey", key.as_path())];
    let pool = db::connect(&url(&ca, &identity), "test", 1).await.unwrap();
    db::ping(&pool).await.unwrap();
    pool.close().await;
    for untrusted in [url(&stranger, &identity), url(&ca, &[])] {
        assert!(matches!(db::connect(&untrusted, "test", 1).await, Err(DbError::Unavailable(_))));
    }
}

#[tokio::test]
async fn a_redis_is_trusted_when_the_named_authority_vouches_for_it() {
    let plain = testkit::env("REDIS_URL");
    let front = TlsFront::start(place(&plain), Speaks::TlsAtOnce, Clients::Known).await;
    let (ca, stranger, (certificate, key)) = (front.ca(), front.stranger(), front.identity());
    let url = |root: &Path, identity: &[(&str, &Path)]| {
        through(&front, &plain, "rediss", &[&[("cacertfile", root)], identity].concat())
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
