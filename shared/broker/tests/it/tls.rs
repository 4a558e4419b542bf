//! TLS to the broker: with the right authority, with another one, with and without an identity.

use broker::topology::{self, Needs};
use broker::{AmqpConfig, BrokerError};
use runtime::env::Env;
use runtime::service::Service;
use secrecy::{ExposeSecret, SecretString};
use testkit::{Clients, Speaks, TestBroker, TlsFront};

async fn in_front_of(broker: &TestBroker, clients: Clients) -> TlsFront {
    TlsFront::start(testkit::place(broker.uri().expose_secret()), Speaks::TlsAtOnce, clients).await
}

async fn refused(uri: &SecretString) -> String {
    match broker::open(uri, "test").await {
        Err(error @ BrokerError::Unreachable(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_broker_is_trusted_when_the_named_authority_vouches_for_it() {
    let broker = TestBroker::new().await;
    let front = in_front_of(&broker, Clients::Anyone).await;
    let plain = broker.uri_for(Service::PaymentApi).await;
    let uri = |parameters: &[_]| front.address_of(plain.expose_secret(), "amqps", parameters);
    let (ca, stranger) = (front.ca(), front.stranger());
    let connection = broker::open(&uri(&[("cacertfile", &ca)]), "test").await.unwrap();
    topology::check(&connection, &Needs::of(Service::PaymentApi)).await.unwrap();
    broker::close(&connection).await;
    for untrusted in [uri(&[("cacertfile", &stranger)]), uri(&[])] {
        let error = refused(&untrusted).await;
        assert!(error.contains("name the authority with ?cacertfile="), "{error}");
    }
    let other_name = uri(&[("cacertfile", &ca)]).expose_secret().replace("localhost", "127.0.0.1");
    let error = refused(&SecretString::from(other_name)).await;
    assert!(error.contains("its certificate is for another host"), "{error}");
}

#[tokio::test]
async fn a_broker_that_requires_a_certificate_is_shown_ours() {
    let broker = TestBroker::new().await;
    let front = in_front_of(&broker, Clients::Known).await;
    let (ca, (certificate, key)) = (front.ca(), front.identity());
    let plain = broker.uri_for(Service::PaymentApi).await;
    let uri = |parameters: &[_]| front.address_of(plain.expose_secret(), "amqps", parameters);
    let known = uri(&[("cacertfile", &ca), ("certfile", &certificate), ("keyfile", &key)]);
    let connection = broker::open(&known, "test").await.unwrap();
    topology::check(&connection, &Needs::of(Service::PaymentApi)).await.unwrap();
    broker::close(&connection).await;
    refused(&uri(&[("cacertfile", &ca)])).await;
}

#[test]
fn a_start_names_the_file_that_is_missing() {
    let mut env = Env::of([("AMQP_URL", "amqps://u:hidden@h/v?cacertfile=/nowhere/ca.pem")]);
    assert!(AmqpConfig::from_env(&mut env).is_none());
    let error = env.finish().unwrap_err().to_string();
    assert!(error.contains("AMQP_URL: /nowhere/ca.pem cannot be read") && !error.contains("hidden"), "{error}");
}
