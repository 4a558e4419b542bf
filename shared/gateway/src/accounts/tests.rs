//! Good files load; for bad ones every fault is reported.

use std::path::PathBuf;

use crate::accounts::*;

pub(super) const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/vectors/keys");

/// A temporary directory of its own, removed on drop.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Dir {
        let dir = std::env::temp_dir().join(format!("gateways-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&dir).unwrap();
        Dir(dir)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn load(&self, text: &str) -> Result<Gateways, Vec<AccountFault>> {
        Gateways::load(&self.write("gateways.toml", &text.replace("KEYS", KEYS)))
    }

    /// The faults as text, one per line.
    fn faults(&self, text: &str) -> String {
        let faults = self.load(text).unwrap_err();
        faults.iter().map(|fault| format!("{fault}\n")).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) const ALIPAY: &str = r#"
[[alipay]]
account = "main"
environment = "simulator"
scenes = ["page", "wap", "app", "qr"]
[alipay.simulator]
gateway_url = "http://127.0.0.1:7000/gateway.do"
app_id = "2021000122671080"
seller_id = "2088621955702100"
app_private_key_file = "KEYS/alipay_app_private_pkcs1.pem"
alipay_public_key_file = "KEYS/alipay_platform_public.pem"
"#;

pub(super) const WECHAT: &str = r#"
[[wechat]]
account = "main"
environment = "simulator"
scenes = ["native", "jsapi", "mini", "h5", "app"]
[wechat.simulator]
base_url = "http://localhost:7000"
mchid = "1900000109"
appid = "wxd678efh567hg6787"
merchant_serial_no = "510fbe783019212c010d88f4dd891e848c8f4b35"
merchant_private_key_file = "KEYS/wx_merchant_private_pkcs8.pem"
apiv3_key_file = "apiv3"
[wechat.simulator.appids]
mini = "wx0000000000000001"
[[wechat.simulator.verify_keys]]
serial = "PUB_KEY_ID_0119000001092026010500192000000001"
file = "KEYS/wx_pubkey_public.pem"
[[wechat.simulator.verify_keys]]
serial = "5D008BE308C26237789E43DAB6260133B42601A4"
file = "KEYS/wx_platform_cert.pem"
"#;

pub(super) const APIV3: &str = "dev0123456789ABCDEFabcdef-_TEST!\n";

fn name(text: &str) -> AccountName {
    AccountName::parse(text).unwrap()
}

#[test]
fn accounts_of_both_gateways_load_and_show_no_key() {
    let dir = Dir::new();
    dir.write("apiv3", APIV3);
    let second = ALIPAY.replace("\"main\"", "\"second\"").replace("[\"page\", \"wap\", \"app\", \"qr\"]", "[\"qr\"]");
    let retired = second.replace("second", "old").replace("environment", "new_orders = false\nenvironment");
    let gateways = dir.load(&[WECHAT, &retired, &second, ALIPAY].concat()).unwrap();
    assert_eq!(format!("{gateways:?}"), r#"["alipay/old", "alipay/second", "alipay/main", "wechat/main"]"#);

    assert_eq!(gateways.scenes(PaymentMethod::Alipay), PaymentMethod::Alipay.scenes());
    let picked = |scene, account: Option<&str>| {
        let account = account.map(name);
        let gateway = gateways.for_new_order(PaymentMethod::Alipay, scene, account.as_ref());
        gateway.map(|gateway| gateway.account().to_string())
    };
    assert_eq!(picked(Scene::Qr, None).as_deref(), Ok("second"));
    assert_eq!(picked(Scene::Page, None).as_deref(), Ok("main"));
    assert_eq!(picked(Scene::Qr, Some("main")).as_deref(), Ok("main"));
    assert_eq!(picked(Scene::Page, Some("second")), Err(NoAccount::Scene));
    assert_eq!(picked(Scene::Native, None), Err(NoAccount::Scene));
    assert_eq!(picked(Scene::Qr, Some("old")), Err(NoAccount::Retired));
    assert_eq!(picked(Scene::Qr, Some("none")), Err(NoAccount::Unknown));
    assert!(gateways.get(PaymentMethod::Alipay, &name("old")).is_some());
    assert!(gateways.get(PaymentMethod::Wechat, &name("old")).is_none());
    assert_eq!(gateways.iter().count(), 4);
}

#[test]
fn production_and_sandbox_bring_their_hosts_and_want_keys_of_their_own() {
    let dir = Dir::new();
    dir.write("apiv3", APIV3);
    let moved = |text: &str, environment: &str| {
        let lines = text.lines().filter(|line| !line.contains("_url ="));
        lines.map(|line| format!("{}\n", line.replace("simulator", environment))).collect::<String>()
    };
    dir.write("apiv3_own", "an-APIv3-key-of-thirty-two-bytes");
    let (ours, theirs) = (testkit::RsaPair::generate(), testkit::RsaPair::generate());
    dir.write("ours.pem", &ours.private_pem());
    dir.write("theirs.pem", &theirs.public_pem());
    let (wechat, _) = WECHAT.rsplit_once("[[wechat.simulator.verify_keys]]").unwrap();
    let own = |text: &str| {
        text.replace("KEYS/alipay_app_private_pkcs1.pem", "ours.pem")
            .replace("KEYS/alipay_platform_public.pem", "theirs.pem")
            .replace("KEYS/wx_merchant_private_pkcs8.pem", "ours.pem")
            .replace("KEYS/wx_pubkey_public.pem", "theirs.pem")
            .replace("\"apiv3\"", "\"apiv3_own\"")
    };
    for text in [moved(ALIPAY, "production"), moved(ALIPAY, "sandbox"), moved(wechat, "production")] {
        dir.load(&own(&text)).unwrap();
    }
    insta::assert_snapshot!(dir.faults(&[moved(ALIPAY, "sandbox"), moved(WECHAT, "production")].concat()), @r##"
    alipay "main": sandbox.app_private_key_file is a key of this repository's test vectors, which everybody has; make one of your own, or fetch the gateway's
    alipay "main": sandbox.alipay_public_key_file is a key of this repository's test vectors, which everybody has; make one of your own, or fetch the gateway's
    wechat "main": production.merchant_private_key_file is a key of this repository's test vectors, which everybody has; make one of your own, or fetch the gateway's
    wechat "main": production.apiv3_key_file is a key of this repository's test vectors, which everybody has; make one of your own, or fetch the gateway's
    wechat "main": production.verify_keys[0].file is a key of this repository's test vectors, which everybody has; make one of your own, or fetch the gateway's
    wechat "main": production.verify_keys[1].file is a key of this repository's test vectors, which everybody has; make one of your own, or fetch the gateway's
    "##);
    assert_eq!(
        dir.faults(&moved(ALIPAY, "simulator")),
        "alipay \"main\": simulator.gateway_url is missing; give it as text in quotes\n"
    );
}

#[test]
fn a_file_that_is_not_there_or_not_toml_is_one_fault() {
    let dir = Dir::new();
    let missing = Gateways::load(&dir.0.join("none.toml")).unwrap_err();
    assert!(missing[0].to_string().contains("GATEWAYS_FILE"), "{missing:?}");
    assert!(dir.faults("a = ").contains("is not TOML"));
    let pasted = "[[alipay]]\naccount = \"main\"\napp_private_key = MIIhidden\n";
    let faults = dir.faults(pasted);
    assert!(faults.contains("is not TOML: line 3: ") && !faults.contains("hidden"), "{faults}");
    assert!(dir.faults("").contains("names no account"));
}

#[test]
fn every_fault_of_an_alipay_account_is_named_at_once() {
    let dir = Dir::new();
    let text = ALIPAY
        .replace("\"page\", \"wap\"", "\"native\", \"wep\"")
        .replace("http://127.0.0.1:7000/", "http://pay.example.com/")
        .replace("2021000122671080", "app")
        .replace("2088621955702100", "1234")
        .replace("KEYS/alipay_app_private_pkcs1.pem", "KEYS/alipay_app_public.pem")
        .replace("alipay_public_key_file = ", "alipay_key_file = ");
    let doubled = [&text, "[[alipay]]\naccount = \"main\"\nenvironment = \"test\"\nscenes = []\n"].concat();
    insta::assert_snapshot!(dir.faults(&doubled), @r##"
    alipay "main": scenes names `native`, which alipay does not have; choose from page, wap, app, qr
    alipay "main": scenes names `wep`, which alipay does not have; choose from page, wap, app, qr
    alipay "main": simulator.gateway_url must begin with https:// (plain http is for a simulator on 127.0.0.1 only)
    alipay "main": simulator.app_id must be the application's id, 16 to 32 digits (it stands in the console)
    alipay "main": simulator.seller_id must be the payee's PID, 16 digits beginning with 2088
    alipay "main": simulator.app_private_key_file holds a PEM block `PUBLIC KEY`; it must hold an RSA private key (`PRIVATE KEY` or `RSA PRIVATE KEY`)
    alipay "main": simulator.alipay_public_key_file is missing; name a file there, or an environment variable in alipay_public_key_env
    alipay "main": simulator.alipay_key_file is not a known field; remove it or correct its spelling
    alipay "main": account is used twice at this gateway; callbacks could not be told apart, so rename one
    alipay "main": scenes must be a list of at least one text, such as ["app"]
    alipay "main": environment must be one of production, sandbox, simulator
    "##);
}

#[test]
fn every_fault_of_a_wechat_account_is_named_at_once() {
    let dir = Dir::new();
    dir.write("apiv3", &APIV3[1..]);
    let text = WECHAT
        .replace("\"native\"", "\"page\"")
        .replace("http://localhost:7000", "https://api.mch.weixin.qq.com/v3")
        .replace("1900000109\"\n", "m\"\n")
        .replace("appid = \"wxd678efh567hg6787\"\n", "")
        .replace("510fbe", "")
        .replace("KEYS/wx_merchant_private_pkcs8.pem", "KEYS/none.pem")
        .replace("KEYS/wx_pubkey_public.pem", "KEYS/wx_platform_cert.pem")
        .replace("5D008BE308C26237789E43DAB6260133B42601A4", "5C08F44341EC8FB786C3AEA11653FD06201CCD85");
    insta::assert_snapshot!(dir.faults(&text).replace(KEYS, "KEYS"), @r##"
    wechat "main": scenes names `page`, which wechat does not have; choose from native, jsapi, mini, h5, app
    wechat "main": simulator.base_url must have no path; write scheme and host only
    wechat "main": simulator.mchid must be the merchant number, 8 to 32 digits
    wechat "main": simulator.appid is missing for the scene jsapi; give appid, or appids.jsapi
    wechat "main": simulator.appid is missing for the scene h5; give appid, or appids.h5
    wechat "main": simulator.appid is missing for the scene app; give appid, or appids.app
    wechat "main": simulator.merchant_serial_no must be the merchant certificate's serial number, 40 hex digits
    wechat "main": simulator.merchant_private_key_file names KEYS/none.pem, which cannot be read (No such file or directory (os error 2)); put the key there
    wechat "main": simulator.apiv3_key_file is 31 bytes long; the APIv3 key is exactly 32 bytes of text, not decoded from hex or base64
    wechat "main": simulator.verify_keys[0].file holds a PEM block `CERTIFICATE`; it must hold a public key (`PUBLIC KEY`)
    wechat "main": simulator.verify_keys[1].serial is not the certificate's number, which is 5D008BE308C26237789E43DAB6260133B42601A4
    "##);
}

#[test]
fn a_key_of_our_own_is_no_key_of_the_gateways() {
    let dir = Dir::new();
    dir.write("apiv3", APIV3);
    let own = ALIPAY.replace("alipay_platform_public", "alipay_app_public");
    assert!(dir.faults(&own).contains("alipay_public_key_file is the application's own public key"));
    let own = WECHAT.replace("wx_pubkey_public", "wx_merchant_public");
    assert!(dir.faults(&own).contains("verify_keys[0].file is the merchant's own key"));
}

#[test]
fn a_key_by_environment_variable_must_be_set_and_alone() {
    let dir = Dir::new();
    let by_env = ALIPAY.replace("app_private_key_file", "app_private_key_env");
    assert!(dir.faults(&by_env).contains("simulator.app_private_key_env names the environment variable"));
    let both = ALIPAY.replace("app_private_key_file", "app_private_key_env = \"X\"\napp_private_key_file");
    assert!(dir.faults(&both).contains("simulator.app_private_key_file and app_private_key_env are both given"));
}

#[test]
fn an_environment_without_its_table_and_one_that_does_not_exist_are_named() {
    let dir = Dir::new();
    let missing = ALIPAY.replace("environment = \"simulator\"", "environment = \"sandbox\"");
    assert!(dir.faults(&missing).contains("needs a table [alipay.sandbox]"));
    let sandbox = WECHAT.replace("simulator", "sandbox");
    let faults = dir.faults(&sandbox);
    assert!(faults.contains("environment must be one of production, simulator"), "{faults}");
}

#[test]
fn a_short_key_and_wrong_types_are_named() {
    use rsa::pkcs8::{EncodePrivateKey as _, LineEnding};
    let dir = Dir::new();
    let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 1024).unwrap();
    dir.write("short.pem", &key.to_pkcs8_pem(LineEnding::LF).unwrap());
    let text = ALIPAY
        .replace("KEYS/alipay_app_private_pkcs1.pem", "short.pem")
        .replace("[\"page\", \"wap\", \"app\", \"qr\"]", "\"page\"")
        .replace("\"2088621955702100\"", "2088621955702100");
    let faults = dir.faults(&text);
    for part in ["app_private_key_file is an RSA key of 1024 bits", "scenes must be a list", "seller_id must be text"] {
        assert!(faults.contains(part), "{part}: {faults}");
    }
}

#[test]
fn an_account_says_what_becomes_of_late_money() {
    let dir = Dir::new();
    dir.write("apiv3", APIV3);
    let refunding = ALIPAY.replace("environment =", "late_payment = \"refund\"\nenvironment =");
    let gateways = dir.load(&[WECHAT, &refunding].concat()).unwrap();
    assert_eq!(gateways.policies().of(PaymentMethod::Alipay, &name("main")), LatePaymentPolicy::Refund);
    assert_eq!(gateways.policies().of(PaymentMethod::Wechat, &name("main")), LatePaymentPolicy::Hold);
    for bad in ["\"keep\"", "true", "\"\""] {
        let faults = dir.faults(&ALIPAY.replace("environment =", &format!("late_payment = {bad}\nenvironment =")));
        assert!(faults.contains("late_payment must be"), "{bad}: {faults}");
    }
}

#[test]
fn a_wechat_account_has_keys_or_fetches_them() {
    let dir = Dir::new();
    dir.write("apiv3", APIV3);
    let keyless = WECHAT.split("[[wechat.simulator.verify_keys]]").next().unwrap();
    dir.load(keyless).unwrap();
    let fixed = keyless.replace("mchid =", "fetch_certificates = false\nmchid =");
    assert!(dir.faults(&fixed).contains("simulator.verify_keys is missing"));
    dir.load(&WECHAT.replace("mchid =", "fetch_certificates = false\nmchid =")).unwrap();
    let wrong = WECHAT.replace("mchid =", "fetch_certificates = \"no\"\nmchid =");
    assert!(dir.faults(&wrong).contains("fetch_certificates must be true or false"));
}

#[test]
fn alipays_key_before_is_checked_like_the_one_of_today() {
    let dir = Dir::new();
    let with = |line: &str| ALIPAY.replace("app_id =", &format!("{line}\napp_id ="));
    dir.load(&with("previous_alipay_public_key_file = \"KEYS/alipay_other_public.pem\"")).unwrap();
    for (line, fault) in [
        (
            "previous_alipay_public_key_file = \"KEYS/alipay_app_public.pem\"",
            "previous_alipay_public_key_file is the application's own public key",
        ),
        ("previous_alipay_public_key_file = \"none\"", "previous_alipay_public_key_file names"),
        ("previous_alipay_public_key_env = \"NOT_SET\"", "previous_alipay_public_key_env names"),
    ] {
        assert!(dir.faults(&with(line)).contains(fault), "{line}: {}", dir.faults(&with(line)));
    }
}

#[test]
fn a_second_host_and_the_apiv3_key_before_are_checked_like_the_first() {
    let dir = Dir::new();
    dir.write("apiv3", APIV3);
    dir.write("before", "short");
    let with = |line: &str| WECHAT.replace("mchid =", &format!("{line}\nmchid ="));
    dir.load(&with("fallback_url = \"http://127.0.0.1:7001\"")).unwrap();
    dir.load(&with("previous_apiv3_key_file = \"apiv3\"")).unwrap();
    for (line, fault) in [
        ("fallback_url = \"http://api2.example.com\"", "fallback_url must begin with https://"),
        ("fallback_url = \"http://127.0.0.1:7001/v3\"", "fallback_url must have no path"),
        ("fallback_url = \"https://api2.example.com\"", "fallback_url must be reached the same way as base_url"),
        ("previous_apiv3_key_file = \"before\"", "previous_apiv3_key_file is 5 bytes long"),
        ("previous_apiv3_key_file = \"none\"", "previous_apiv3_key_file names"),
    ] {
        assert!(dir.faults(&with(line)).contains(fault), "{line}: {}", dir.faults(&with(line)));
    }
}

/// The faults of a sandbox account (not a simulator's) whose private key and `gateways.toml` have these modes.
fn faults_of_modes(dir: &Dir, key: u32, file: u32) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let (ours, theirs) = (testkit::RsaPair::generate(), testkit::RsaPair::generate());
    let text = ALIPAY
        .replace("simulator", "sandbox")
        .replace("KEYS/alipay_app_private_pkcs1.pem", "ours.pem")
        .replace("KEYS/alipay_platform_public.pem", "theirs.pem");
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    set(&dir.write("ours.pem", &ours.private_pem()), key);
    set(&dir.write("theirs.pem", &theirs.public_pem()), 0o644);
    let path = dir.write("gateways.toml", &text);
    set(&path, file);
    let faults = Gateways::load(&path).err().unwrap_or_default();
    faults.iter().map(|fault| format!("{fault}\n")).collect()
}

#[test]
fn files_that_others_may_change_are_refused_where_money_is_real() {
    for (key, file) in [(0o600, 0o600), (0o440, 0o640), (0o644, 0o644)] {
        assert_eq!(faults_of_modes(&Dir::new(), key, file), "", "{key:o} {file:o}");
    }
    for mode in [0o620, 0o602, 0o666] {
        let faults = faults_of_modes(&Dir::new(), mode, 0o600);
        assert!(faults.contains("sandbox.app_private_key_file names") && faults.contains("chmod go-w"), "{faults}");
        let faults = faults_of_modes(&Dir::new(), 0o600, mode);
        assert!(faults.contains("gateways.toml: its group or others may write it"), "{faults}");
    }
}

#[test]
fn an_account_in_production_needs_an_address_that_gateways_reach() {
    let dir = Dir::new();
    dir.write("apiv3", APIV3);
    let reason = Some("cannot have callbacks at http://10.0.0.1".to_owned());
    let load = |text: &str| {
        let path = dir.write("gateways.toml", &text.replace("KEYS", KEYS));
        let faults = Gateways::load_where(&path, reason.clone()).err().unwrap_or_default();
        faults.iter().map(|fault| format!("{fault}\n")).collect::<String>()
    };
    assert_eq!(load(&[ALIPAY, WECHAT].concat()), "");
    assert!(!load(&ALIPAY.replace("simulator", "sandbox")).contains("callbacks"));
    let faults = load(&[ALIPAY, WECHAT].concat().replace("simulator", "production"));
    for account in ["alipay", "wechat"] {
        assert!(faults.contains(&format!("{account} \"main\": production cannot have callbacks")), "{faults}");
    }
}
