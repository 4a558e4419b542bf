//! A start that cannot succeed names every fault at once.

use payment_api::start;
use shared::config::Env;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn every_fault_of_a_start_is_named_at_once_without_secrets() {
    shared::telemetry::install_crypto();
    let gateways = format!("{}/tests/fixtures/faulty.toml", env!("CARGO_MANIFEST_DIR"));
    let env = Env::of([
        ("DATABASE_URL", "postgres://user:hidden@127.0.0.1:9/payment"),
        ("AMQP_URL", "amqp://user:hidden@127.0.0.1:9/%2f"),
        ("GATEWAYS_FILE", &gateways),
        ("LISTEN_ADDR", "192.0.2.1:0"),
        ("OPS_ADDR", "9100"),
        ("VIEW_TOKEN_SECRET", "hidden"),
        ("JWT_JWKS_FILE", &gateways),
        ("MAX_STREAMS", "0"),
    ]);
    let Err(faults) = start::prepare(env, CancellationToken::new()).await else { panic!("it started") };
    let text = faults.to_string().replace(env!("CARGO_MANIFEST_DIR"), "api");
    assert!(!text.contains("hidden"), "{text}");
    insta::assert_snapshot!(text);
}
