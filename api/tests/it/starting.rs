//! A start that cannot succeed names every fault at once; one that goes by the examples succeeds.

use std::fs;
use std::path::{Path, PathBuf};

use payment_api::start;
use shared::config::Env;
use shared::domain::PaymentMethod;
use shared::gateway::Gateways;
use tokio_util::sync::CancellationToken;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[tokio::test]
async fn every_fault_of_a_start_is_named_at_once_without_secrets() {
    shared::telemetry::install_crypto();
    let gateways = format!("{}/tests/fixtures/faulty.toml", env!("CARGO_MANIFEST_DIR"));
    let env = Env::of([
        ("DATABASE_URL", "postgres://user:hidden@127.0.0.1:9/payment"),
        ("AMQP_URL", "amqp://user:hidden@127.0.0.1:9/%2f"),
        ("REDIS_URL", "redis//:hidden@127.0.0.1"),
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

/// The example with keys of the protocol vectors in the places that it names; without them it would only be read.
#[test]
fn the_example_of_the_accounts_loads_with_and_without_what_may_be_left_out() {
    shared::telemetry::install_crypto();
    let example = fs::read_to_string(root().join("ops/gateways.example.toml")).unwrap();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("gateways-example-{}", std::process::id()));
    fs::create_dir_all(dir.join("keys")).unwrap();
    let vectors = root().join("shared/tests/fixtures/vectors/keys");
    for (name, of) in [
        ("alipay_app_private.pem", "alipay_app_private_pkcs8.pem"),
        ("alipay_public.pem", "alipay_platform_public.pem"),
        ("alipay_public_before.pem", "alipay_other_public.pem"),
        ("wechat_merchant_private.pem", "wx_merchant_private_pkcs8.pem"),
        ("wechat_public.pem", "wx_pubkey_public.pem"),
        ("wechat_platform_certificate.pem", "wx_platform_cert.pem"),
    ] {
        fs::copy(vectors.join(of), dir.join("keys").join(name)).unwrap();
    }
    for name in ["wechat_apiv3_key", "wechat_apiv3_key_before"] {
        fs::write(dir.join("keys").join(name), "dev0123456789ABCDEFabcdef-_TEST!\n").unwrap();
    }

    // A field that may be left out has its `#` right in front, prose has a space behind it.
    let whole: Vec<&str> = example
        .lines()
        .map(|line| line.strip_prefix('#').filter(|field| !field.is_empty() && !field.starts_with(' ')).unwrap_or(line))
        .collect();
    for text in [example.clone(), whole.join("\n")] {
        fs::write(dir.join("gateways.toml"), &text).unwrap();
        let gateways = Gateways::load(&dir.join("gateways.toml")).unwrap_or_else(|faults| panic!("{faults:#?}"));
        assert_eq!(format!("{gateways:?}"), r#"["alipay/main", "wechat/main"]"#);
        for method in PaymentMethod::ALL {
            assert_eq!(gateways.scenes(*method), method.scenes(), "{method}");
        }
    }
    fs::remove_dir_all(dir).unwrap();
}
