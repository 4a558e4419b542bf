//! Everything wrong at once: the start fails and names each fault with what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::gateways::Gateways;
use e2e::process::{Program, free_address};
use e2e::servers::{Addresses, Database, Servers};
use e2e::unique;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};

const LIMIT: Duration = Duration::from_secs(60);

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let dir = std::env::temp_dir().join(format!("payment-e2e-{}", unique()));
        fs::create_dir_all(&dir).expect("a folder can be made");
        Folder(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A gateways.toml whose key files are missing, of the wrong kind and too short.
async fn broken_gateways(dir: &Path) -> String {
    let gateways = Gateways::start(&dir.join("gateways"), 1.0, "http://127.0.0.1:1".to_owned(), false).await;
    let keys = gateways.dir.join("keys");
    fs::remove_file(keys.join("alipay_main_app_private.pem")).expect("the file is there");
    fs::copy(keys.join("alipay_main_public.pem"), keys.join("wechat_main_merchant_private.pem")).expect("a copy");
    fs::write(keys.join("wechat_main_apiv3_key"), "0123456789012345678901234567890").expect("31 bytes");
    gateways.file().display().to_string()
}

/// The program ends with a failure, and what it says has all of this in it and none of that.
async fn fails_naming(program: Program, dir: &Path, named: &[&str], secret: &[&str]) {
    let ended = program.run(dir, LIMIT).await;
    assert!(!ended.status.success(), "it started: {}", ended.said);
    assert!(ended.status.code().is_some(), "it was killed: {}", ended.said);
    let missing: Vec<_> = named.iter().filter(|name| !ended.said.contains(**name)).collect();
    assert!(missing.is_empty(), "not named: {missing:?} in:\n{}", ended.said);
    let leaked: Vec<_> = secret.iter().filter(|secret| ended.said.contains(**secret)).collect();
    assert!(leaked.is_empty(), "told: {leaked:?}");
    assert!(!ended.said.contains("panicked"), "{}", ended.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_program_names_every_fault_at_once() {
    e2e::http::install_crypto();
    let folder = Folder::new();
    let gateways = broken_gateways(&folder.0).await;
    // There, but without tables.
    let database = Database::create(&testkit::env("DATABASE_URL")).await;
    let no_broker = format!("amqp://payment:hidden-password@{}/%2f", free_address());
    let program = |name: &str| {
        Program::new(name)
            .env("DATABASE_URL", database.url())
            .env("AMQP_URL", &no_broker)
            .env("OPS_ADDR", "9100")
            .env("REDIS_URL", "redis//:hidden-password@h")
    };
    let keys = [
        "alipay_main_app_private.pem, which cannot be read",
        "merchant_private_key_file holds a PEM block `PUBLIC KEY`",
        "apiv3_key_file is 31 bytes long",
        "GATEWAYS_FILE",
    ];
    let everywhere = [
        "OPS_ADDR",
        "REDIS_URL: it is not a Redis URL",
        "broker",
        "no broker could be reached",
        "paymentctl migrate",
        "database",
    ];
    let secret = ["hidden-password", "0123456789012345678901234567890"];

    let relay = program("relay");
    fails_naming(relay, &folder.0, &everywhere, &secret).await;
    let worker = program("callback-worker").env("GATEWAYS_FILE", &gateways).env("CALLBACK_BATCH", "0");
    fails_naming(worker, &folder.0, &[&everywhere[..], &keys, &["CALLBACK_BATCH"]].concat(), &secret).await;
    for name in ["check-worker", "refund-worker"] {
        let own: &[&str] = if name == "refund-worker" { &["PUBLIC_URL"] } else { &[] };
        let worker = program(name).env("GATEWAYS_FILE", &gateways);
        fails_naming(worker, &folder.0, &[&everywhere[..], &keys, own].concat(), &secret).await;
    }
    let api = program("payment-api").env("GATEWAYS_FILE", &gateways).env("JWT_HS256_SECRET", "hidden-short");
    let own = ["PUBLIC_URL", "VIEW_TOKEN_SECRET", "JWT_HS256_SECRET", "it is not set", "LISTEN_ADDR"];
    let api = api.env("LISTEN_ADDR", "here");
    fails_naming(api, &folder.0, &[&everywhere[..], &keys, &own].concat(), &[&secret[..], &["hidden-short"]].concat())
        .await;

    let bare = [("payment-api", &["DATABASE_URL", "AMQP_URL", "GATEWAYS_FILE", "PUBLIC_URL"][..])];
    let bare = bare.into_iter().chain([
        ("callback-worker", &["DATABASE_URL", "AMQP_URL", "GATEWAYS_FILE"][..]),
        ("check-worker", &["DATABASE_URL", "AMQP_URL", "GATEWAYS_FILE"][..]),
        ("refund-worker", &["DATABASE_URL", "AMQP_URL", "GATEWAYS_FILE", "PUBLIC_URL"][..]),
        ("relay", &["DATABASE_URL", "AMQP_URL"][..]),
    ]);
    for (name, variables) in bare {
        fails_naming(Program::new(name), &folder.0, variables, &[]).await;
    }
    let setup = ["AMQP_ADMIN_URL", "RABBITMQ_MANAGEMENT_URL"];
    fails_naming(Program::new("payment-api").arg("broker-setup"), &folder.0, &setup, &[]).await;
    fails_naming(Program::new("payment-api").arg("migrate"), &folder.0, &["DATABASE_URL"], &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflicting_topology_is_named_object_by_object() {
    let servers = Servers::shared().await;
    let addresses = servers.addresses();
    let folder = Folder::new();
    let gateways = broken_gateways(&folder.0).await;
    declare_conflicts(&addresses).await;
    let setup = Program::new("payment-api")
        .arg("broker-setup")
        .env("AMQP_ADMIN_URL", &addresses.admin)
        .env("RABBITMQ_MANAGEMENT_URL", &addresses.management);
    fails_naming(setup, &folder.0, &["exchange payment.in", "queue payment.callbacks", "queue payment.dead"], &[])
        .await;
    let program = |name: &str| {
        let program = Program::new(name).env("DATABASE_URL", &addresses.database).env("AMQP_URL", &addresses.amqp);
        program.env("GATEWAYS_FILE", &gateways).env("OPS_ADDR", free_address().to_string())
    };
    let both = ["apiv3_key_file is 31 bytes long", "paymentctl migrate"];
    let worker = program("callback-worker");
    fails_naming(worker, &folder.0, &[&both[..], &["queue payment.callbacks"]].concat(), &[]).await;
    let api = program("payment-api");
    fails_naming(api, &folder.0, &[&both[..], &["exchange payment.in", "PUBLIC_URL"]].concat(), &[]).await;
}

/// The queue of callbacks as a classic one, dead letters as a transient-looking one, an exchange of another type.
async fn declare_conflicts(addresses: &Addresses) {
    let connection = Connection::connect(&addresses.admin, ConnectionProperties::default()).await.expect("the broker");
    let channel = connection.create_channel().await.expect("a channel");
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for queue in ["payment.callbacks", "payment.dead"] {
        channel.queue_declare(queue.into(), durable, FieldTable::default()).await.expect("a classic queue");
    }
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let fanout = channel.exchange_declare("payment.in".into(), ExchangeKind::Fanout, durable, FieldTable::default());
    fanout.await.expect("an exchange");
    connection.close(200, "bye".into()).await.expect("a clean end");
}
