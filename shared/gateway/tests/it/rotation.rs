//! Key rotation while work goes on, against the simulator: from certificates to the public key, from one certificate to
//! the next, and in Alipay's certificate mode.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domain::message::callback::Callback;
use domain::{AccountName, OrderNo, PaymentMethod};
use gateway::{CallbackError, Gateway, GatewayError, Gateways, KeyNews, TradeAnswer, callback_headers};
use gateway_sim::keys::{WechatMerchant, generate, point_at};
use gateway_sim::ledger::{Product, Trade};
use gateway_sim::notify::{self, Overrides, SignedCallback};
use gateway_sim::{Options, Simulator};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use runtime::clock::Clock;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The time limit for anything that should be fast.
const SOON: Duration = Duration::from_secs(30);

/// A simulator, and its keys in a separate folder.
struct World {
    folder: PathBuf,
    simulator: Simulator,
    /// The number of callbacks sent so far; each one makes a new trade number.
    sent: AtomicU64,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl World {
    async fn new() -> World {
        runtime::telemetry::install_crypto();
        let name = format!("rotation-{}", Clock::system().fresh_id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        generate(&folder, "http://127.0.0.1:7000").unwrap();
        let simulator = Simulator::start(&folder, "127.0.0.1:0", &Options::default()).await.unwrap();
        point_at(&folder, &simulator.url()).unwrap();
        World { folder, simulator, sent: AtomicU64::new(0) }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("gateways.toml")
    }

    /// Loads the accounts after the text of the file has been changed.
    fn gateways(&self, change: impl Fn(&str) -> String) -> Gateways {
        std::fs::write(self.file(), change(&std::fs::read_to_string(self.file()).unwrap())).unwrap();
        Gateways::load(&self.file()).unwrap_or_else(|faults| panic!("{faults:#?}"))
    }

    fn merchant(&self) -> &Arc<WechatMerchant> {
        self.simulator.keys().wechat_account("main").unwrap()
    }

    /// What WeChat Pay posts after a payment.
    fn callback(&self) -> Callback {
        let signed = notify::wechat(self.merchant(), &self.trade(Product::Native), &Overrides::default());
        arrived(PaymentMethod::Wechat, signed)
    }

    /// What Alipay posts to an account after a payment.
    fn alipay_callback(&self, account: &str) -> Callback {
        let merchant = self.simulator.keys().alipay_account(account).unwrap();
        let signed = notify::alipay(merchant, &self.trade(Product::Page), &Overrides::default());
        arrived(PaymentMethod::Alipay, signed)
    }

    fn trade(&self, product: Product) -> Trade {
        let number = format!("ORD{:08}", self.sent.fetch_add(1, Ordering::Relaxed));
        Trade::new(product, "main", &number, 100).paid()
    }

    async fn control(&self, method: &str, path: &str, body: Value) -> Value {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let url = format!("{}{path}", self.simulator.url());
        let answer = client.request(method.parse().unwrap(), url).body(body.to_string()).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }
}

/// The callback as the ingress receives it, for the account `main`.
fn arrived(method: PaymentMethod, signed: SignedCallback) -> Callback {
    let named = signed.headers.into_iter().map(|(name, value)| (name.to_lowercase(), value));
    Callback {
        method,
        account: AccountName::parse("main").unwrap(),
        headers: named.filter(|(name, _)| callback_headers(method).contains(&name.as_str())).collect(),
        body: signed.body.into(),
        received_at: Clock::system().now(),
        job_id: None,
    }
}

fn main(gateways: &Gateways, method: PaymentMethod) -> Arc<dyn Gateway> {
    gateways.get(method, &AccountName::parse("main").unwrap()).unwrap()
}

/// Removes every configured key of WeChat Pay from the file.
fn without_keys(text: &str) -> String {
    let mut kept = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        skipping = if line.starts_with('[') { line.contains("verify_keys") } else { skipping };
        if !skipping {
            kept.push(line);
        }
    }
    kept.join("\n")
}

/// Replaces Alipay's public key with its certificates in the file.
fn certificate_mode(text: &str) -> String {
    let mode = |account: &str| {
        format!(
            "app_cert_file = \"keys/alipay_{account}_app_cert.pem\"\nalipay_cert_file = \"keys/alipay_{account}_cert.pem\"\n\
             alipay_root_cert_file = \"keys/alipay_root_cert.pem\"\n"
        )
    };
    let old = |account: &str| format!("alipay_public_key_file = \"keys/alipay_{account}_public.pem\"\n");
    ["main", "second"].iter().fold(text.to_owned(), |text, account| text.replace(&old(account), &mode(account)))
}

async fn query(gateway: &dyn Gateway) -> Result<String, GatewayError> {
    let trade = gateway.query(&OrderNo::parse("ORDER_NONE").unwrap(), Clock::system().now()).await;
    trade.map(|answer| match answer {
        TradeAnswer::Found(trade) => trade.into_inner().state,
        TradeAnswer::Absent { state } => state,
    })
}

/// Waits until the background task has fetched a certificate.
async fn until_known(gateways: &Gateways, serial: &str) {
    let wechat = main(gateways, PaymentMethod::Wechat);
    let known = async {
        while !wechat.key_status().iter().any(|key| key.serial == serial) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, known).await.expect("a certificate");
}

/// The number of callbacks verified with this serial, from the metrics of the process.
fn counted(handle: &PrometheusHandle, serial: &str) -> u64 {
    let rendered = handle.render();
    let mut lines = rendered.lines().filter(|line| line.starts_with("callbacks_by_serial_total{"));
    let line = lines.find(|line| line.contains(&format!("serial=\"{serial}\"")));
    line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// Delivers callbacks with eight parallel senders; returns how many were refused.
async fn load(world: &Arc<World>, gateways: &Gateways, callbacks: u64) -> u64 {
    let left = Arc::new(AtomicU64::new(callbacks));
    let senders = (0..8).map(|_| {
        let (world, gateways, left) = (world.clone(), gateways.clone(), left.clone());
        tokio::spawn(async move {
            let mut refused = 0;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let (callback, now) = (world.callback(), Clock::system().now());
                let taken = main(&gateways, PaymentMethod::Wechat).verify_arriving(callback, now).await;
                refused += u64::from(taken.is_err());
            }
            refused
        })
    });
    futures_util::future::join_all(senders).await.into_iter().map(Result::unwrap).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_from_certificates_to_the_public_key_fails_no_verification_and_shows_in_the_counts() {
    let handle = PrometheusBuilder::new().install_recorder().unwrap();
    let world = Arc::new(World::new().await);
    let old = world.merchant().platform.add(-300.0, 20.0).unwrap().key.0.clone();
    world.merchant().platform.set_share(Some(0.0));
    let gateways = world.gateways(str::to_owned);
    let public = world.merchant().signing_keys[0].0.clone();
    let stop = CancellationToken::new();
    let tending = tokio::spawn(gateways.clone().tend(Clock::system(), stop.clone()));
    until_known(&gateways, &old).await;

    let (mut expected_public, mut expected) = (0, 0);
    for (share, callbacks) in [(0.0, 200), (0.001, 1000), (0.01, 500), (0.1, 300), (0.5, 200), (1.0, 200)] {
        world.merchant().platform.set_share(Some(share));
        assert_eq!(load(&world, &gateways, callbacks).await, 0, "share {share}");
        expected += callbacks;
        expected_public += (callbacks as f64 * share).floor() as u64;
        let (by_public, by_certificate) = (counted(&handle, &public), counted(&handle, &old));
        println!(
            "share {share}: {callbacks} callbacks, so far {by_public} by public key, {by_certificate} by certificate"
        );
        assert_eq!(by_public, expected_public, "share {share}");
        assert_eq!(by_public + by_certificate, expected, "share {share}");
    }
    // Back to certificates. Then a certificate appears that was in no list so far: one lookup fetches it for all.
    world.merchant().platform.set_share(Some(0.0));
    let new = world.merchant().platform.add(-1.0, 1800.0).unwrap().key.0.clone();
    assert_eq!(load(&world, &gateways, 200).await, 0);
    assert_eq!(counted(&handle, &new), 200);
    stop.cancel();
    tending.await.unwrap();
    let rendered = handle.render();
    let days = rendered.lines().find(|line| line.starts_with("gateway_key_days_left{") && line.contains("wechat"));
    assert!(days.unwrap().contains("key=\"platform_certificate\""), "{rendered}");
}

#[tokio::test]
async fn a_process_without_any_key_starts_and_has_one_soon() {
    let world = World::new().await;
    world.merchant().platform.set_share(Some(0.0));
    let gateways = world.gateways(without_keys);
    let wechat = main(&gateways, PaymentMethod::Wechat);
    // No certificate exists yet: the callback is refused because of an unknown key, and the ingress answers 503.
    let (callback, now) = (world.callback(), Clock::system().now());
    let refused = wechat.verify_arriving(callback.clone(), now).await;
    assert!(matches!(refused, Err(CallbackError::UnknownKey { .. })), "{refused:?}");
    assert_eq!(wechat.refresh_keys(now).await.unwrap(), KeyNews::None);

    let serial = world.merchant().platform.add(-1.0, 1800.0).unwrap().key.0.clone();
    let tending = tokio::spawn(gateways.clone().tend(Clock::system(), CancellationToken::new()));
    until_known(&gateways, &serial).await;
    wechat.verify(world.callback(), Some(Clock::system().now())).unwrap();
    assert_eq!(query(wechat.as_ref()).await.unwrap(), "ORDER_NOT_EXIST");
    tending.abort();
}

#[tokio::test]
async fn an_expired_certificate_that_still_signs_is_refused_and_its_successor_taken() {
    let world = World::new().await;
    let merchant = world.merchant();
    merchant.platform.set_share(Some(0.0));
    let expired = merchant.platform.add(-300.0, -0.001).unwrap().key.0.clone();
    let gateways = world.gateways(without_keys);
    let wechat = main(&gateways, PaymentMethod::Wechat);
    wechat.refresh_keys(Clock::system().now()).await.unwrap();
    let refused = wechat.verify(world.callback(), Some(Clock::system().now()));
    assert!(matches!(refused, Err(CallbackError::UnknownKey { serial }) if serial == expired));
    merchant.platform.add(-1.0, 300.0).unwrap();
    wechat.verify_arriving(world.callback(), Clock::system().now()).await.unwrap();
}

#[tokio::test]
async fn fetched_certificates_outlive_a_new_reading_of_the_file() {
    let world = World::new().await;
    world.merchant().platform.add(-1.0, 300.0).unwrap();
    world.merchant().platform.set_share(Some(0.0));
    let gateways = world.gateways(without_keys);
    main(&gateways, PaymentMethod::Wechat).refresh_keys(Clock::system().now()).await.unwrap();
    gateways.reload().unwrap();
    main(&gateways, PaymentMethod::Wechat).verify(world.callback(), Some(Clock::system().now())).unwrap();
}

#[tokio::test]
async fn the_second_domain_serves_while_the_first_is_away() {
    let world = World::new().await;
    let url = world.simulator.url();
    let first = "base_url = \"http://127.0.0.1:1\"\nfallback_url = ";
    let gateways = world.gateways(|text| text.replace("base_url = ", first));
    for _ in 0..10 {
        let answer = query(main(&gateways, PaymentMethod::Wechat).as_ref()).await;
        assert!(matches!(&answer, Ok(code) if code == "ORDER_NOT_EXIST"), "{url} {answer:?}");
    }
}

#[tokio::test]
async fn certificate_mode_names_its_certificates_and_follows_alipays() {
    let world = World::new().await;
    let gateways = world.gateways(certificate_mode);
    let alipay = main(&gateways, PaymentMethod::Alipay);
    let known = || {
        let keys = alipay.key_status().into_iter();
        keys.filter(|key| key.kind == "alipay_certificate").map(|key| key.serial).collect::<Vec<_>>()
    };
    assert_eq!(query(alipay.as_ref()).await.unwrap(), "TRADE_NOT_EXIST");
    let given = known();
    assert_eq!(given.len(), 1);

    // Alipay renews a certificate but keeps its key: the first answer announces it.
    let renewed = world.control("POST", "/sim/keys/alipay/main/certificate", json!({})).await;
    assert_eq!(query(alipay.as_ref()).await.unwrap(), "TRADE_NOT_EXIST");
    let renewed = renewed["sn"].as_str().unwrap().to_owned();
    assert_eq!(known(), [renewed.as_str(), given[0].as_str()]);

    // For a certificate with another key, no lookup is due so soon after the last one; the regular refresh fetches it.
    let another = world.control("POST", "/sim/keys/alipay/main/certificate", json!({ "new_key": true })).await;
    assert!(matches!(query(alipay.as_ref()).await, Err(GatewayError::Unknown(_))));
    assert_eq!(alipay.refresh_keys(Clock::system().now()).await.unwrap(), KeyNews::Fetched { new: 1 });
    assert_eq!(query(alipay.as_ref()).await.unwrap(), "TRADE_NOT_EXIST");
    assert!(known().contains(&another["sn"].as_str().unwrap().to_owned()));
    assert_eq!(alipay.refresh_keys(Clock::system().now()).await.unwrap(), KeyNews::Fetched { new: 0 });
}

#[tokio::test]
async fn a_certificate_that_is_not_alipays_own_is_not_taken() {
    let world = World::new().await;
    let gateways = world.gateways(certificate_mode);
    let alipay = main(&gateways, PaymentMethod::Alipay);
    for (change, why) in [
        (json!({ "new_key": true, "forged": true }), "does not lead to a root"),
        (json!({ "new_key": true, "organization": "Merchant" }), "issued to somebody else"),
        (json!({ "new_key": true, "from_days": -90, "until_days": -1 }), "expired"),
        (json!({ "new_key": true, "from_days": 1, "until_days": 90 }), "is not valid before"),
    ] {
        world.control("POST", "/sim/keys/alipay/main/certificate", change).await;
        let error = alipay.refresh_keys(Clock::system().now()).await.unwrap_err();
        assert!(matches!(&error, GatewayError::Protocol(text) if text.contains(why)), "{why}: {error}");
        assert!(matches!(query(alipay.as_ref()).await, Err(GatewayError::Unknown(_))), "{why}");
        assert_eq!(alipay.key_status().len(), 2, "{why}");
    }
    world.control("POST", "/sim/keys/alipay/main/certificate", json!({})).await;
    assert_eq!(query(alipay.as_ref()).await.unwrap(), "TRADE_NOT_EXIST");
}

#[tokio::test]
async fn what_the_public_key_before_signed_counts_beside_the_certificates() {
    let world = World::new().await;
    let gateways = world.gateways(str::to_owned);
    let now = Clock::system().now();
    let on_its_way = world.alipay_callback("main");
    let verified = main(&gateways, PaymentMethod::Alipay).verify(on_its_way.clone(), Some(now)).unwrap();
    assert_eq!(main(&gateways, PaymentMethod::Alipay).key_of(&verified), "public_key");

    // The console is switched to certificates, and from then on Alipay signs with another key.
    world.control("POST", "/sim/keys/alipay/main/certificate", json!({ "new_key": true })).await;
    let certificate = world.simulator.keys().alipay_account("main").unwrap().certificates.as_ref().unwrap().current();
    std::fs::write(world.folder.join("keys/alipay_main_cert.pem"), &certificate.pem).unwrap();
    let gateways = world.gateways(certificate_mode);
    let forgotten = main(&gateways, PaymentMethod::Alipay).verify(on_its_way.clone(), Some(now));
    assert_eq!(forgotten.map(|_| ()), Err(CallbackError::BadSignature), "the key before is not on file");
    let previous = "previous_alipay_public_key_file = \"keys/alipay_main_public.pem\"\napp_cert_file";
    let gateways = world.gateways(|text| text.replacen("app_cert_file", previous, 1));
    let alipay = main(&gateways, PaymentMethod::Alipay);
    let verified = alipay.verify(on_its_way, Some(now)).unwrap();
    assert_eq!(alipay.key_of(&verified), "previous_public_key");
    assert!(alipay.key_status().iter().any(|key| key.serial == "previous_public_key"));
    let verified = alipay.verify(world.alipay_callback("main"), Some(now)).unwrap();
    assert_eq!(alipay.key_of(&verified), certificate.sn);
    let of_another = alipay.verify(world.alipay_callback("second"), Some(now));
    assert_eq!(of_another.map(|_| ()), Err(CallbackError::BadSignature));
}

#[test]
fn a_mode_is_one_or_the_other_and_whole() {
    let name = format!("rotation-{}", Clock::system().fresh_id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    generate(&folder, "http://127.0.0.1:7000").unwrap();
    let file = folder.join("gateways.toml");
    let text = certificate_mode(&std::fs::read_to_string(&file).unwrap());
    let faults = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let faults = Gateways::load(&file).unwrap_err();
        faults.iter().map(|fault| format!("{fault}\n")).collect::<String>()
    };
    let both =
        text.replacen("app_cert_file", "alipay_public_key_file = \"keys/alipay_main_public.pem\"\napp_cert_file", 1);
    assert!(
        faults(&both).contains("alipay \"main\": simulator.alipay_public_key_file and certificates are both given")
    );
    let half = text.replacen("alipay_root_cert_file", "#", 1);
    assert!(faults(&half).contains("alipay \"main\": simulator.alipay_root_cert_file is missing"));
    let swapped = text.replacen("keys/alipay_main_app_cert.pem", "keys/alipay_main_cert.pem", 1);
    assert!(faults(&swapped).contains("app_cert_file is not the certificate of app_private_key"));
    let own = text.replacen("keys/alipay_main_cert.pem", "keys/alipay_main_app_cert.pem", 1);
    assert!(faults(&own).contains("alipay_cert_file is the application's own certificate"));
    let none = text.replace(
        "app_cert_file = \"keys/alipay_main_app_cert.pem\"",
        "app_cert_file = \"keys/alipay_main_public.pem\"",
    );
    assert!(faults(&none).contains("app_cert_file holds a certificate that cannot be read"), "{}", faults(&none));
    std::fs::remove_dir_all(&folder).unwrap();
}
