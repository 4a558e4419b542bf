//! A start that cannot succeed names every fault at once; a start with the example settings succeeds.

use std::fs;
use std::path::{Path, PathBuf};

use domain::PaymentMethod;
use gateway::Gateways;
use payment_api::start;
use runtime::env::Env;
use runtime::seal::SealKeys;
use testkit::RsaPair;
use tokio_util::sync::CancellationToken;

/// The serial number of the platform certificate in `ops/gateways.example.toml`.
const SERIAL: &str = "5D008BE308C26237789E43DAB6260133B42601A4";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[tokio::test]
async fn every_fault_of_a_start_is_named_at_once_without_secrets() {
    runtime::telemetry::install_crypto();
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

/// The variables of `.env.example` as they stand in it.
fn example() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join(".env.example")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("# ") && line.contains('='));
    lines.map(|line| line.split_once('=').unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test]
async fn a_copy_of_the_example_starts_nothing() {
    runtime::telemetry::install_crypto();
    let example = example();
    let free = ["LISTEN_ADDR", "OPS_ADDR"].map(|name| (name, "127.0.0.1:0"));
    let variables = example.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(free);
    let Err(faults) = start::prepare(Env::of(variables), CancellationToken::new()).await else { panic!("it started") };
    let text = faults.to_string();
    for wrong in [
        "DATABASE_URL: it holds a placeholder",
        "AMQP_URL: it holds a placeholder",
        "REDIS_URL: it holds a placeholder",
        "VIEW_TOKEN_SECRET: it is not set",
        "JWT_HS256_SECRET: neither it nor",
    ] {
        assert!(text.contains(wrong), "{wrong}: {text}");
    }
    // Each address is a process's, each with a password.
    let mut refused = 0;
    for (name, value) in example.iter().filter(|(_, value)| value.contains('@')) {
        let mut env = Env::of([("DATABASE_URL", value.as_str())]);
        assert!(env.address("DATABASE_URL", "").is_none(), "{name}");
        refused += 1;
    }
    assert!(refused > 15, "{refused}");
}

/// What `.env.example` held in any release before.
#[test]
fn no_secret_that_was_ever_published_is_taken() {
    for (name, value) in [
        ("JWT_HS256_SECRET", "change-me-9876543210-9876543210-9876543210"),
        ("VIEW_TOKEN_SECRET", "change-me-0123456789-0123456789-0123456789"),
    ] {
        let mut env = Env::of([(name, value), ("JWT_JWKS_FILE", "")]);
        let taken = match name {
            "VIEW_TOKEN_SECRET" => env.secret("VIEW_TOKEN_SECRET", 32, "").is_some(),
            _ => env.optional_secret("JWT_HS256_SECRET", 32, "").is_some(),
        };
        assert!(!taken, "{name}");
    }
    let zeros = "0".repeat(64);
    assert!(SealKeys::from_env(&mut Env::of([("SEAL_KEY", zeros.as_str())])).is_none());
}

/// The example with fresh keys in the places that it names; without them it would only be read.
#[test]
fn the_example_of_the_accounts_loads_with_and_without_what_may_be_left_out() {
    runtime::telemetry::install_crypto();
    let example = fs::read_to_string(root().join("ops/gateways.example.toml")).unwrap();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("gateways-example-{}", std::process::id()));
    fs::create_dir_all(dir.join("keys")).unwrap();
    let (ours, theirs, before) = (RsaPair::generate(), RsaPair::generate(), RsaPair::generate());
    let serial: Vec<u8> = (0..20).map(|at| u8::from_str_radix(&SERIAL[2 * at..2 * at + 2], 16).unwrap()).collect();
    assert!(example.contains(&format!("serial = {SERIAL:?}")));
    for (name, pem) in [
        ("alipay_app_private.pem", ours.private_pem()),
        ("alipay_public.pem", theirs.public_pem()),
        ("alipay_public_before.pem", before.public_pem()),
        ("wechat_merchant_private.pem", ours.private_pem()),
        ("wechat_public.pem", theirs.public_pem()),
        ("wechat_platform_certificate.pem", before.certificate_pem(&serial)),
    ] {
        fs::write(dir.join("keys").join(name), pem).unwrap();
    }
    for name in ["wechat_apiv3_key", "wechat_apiv3_key_before"] {
        fs::write(dir.join("keys").join(name), "an-APIv3-key-of-thirty-two-bytes\n").unwrap();
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
