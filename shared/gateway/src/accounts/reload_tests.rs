//! Files that change under a running process: reloaded completely, or not at all.

use std::os::unix::fs::MetadataExt as _;

use crate::accounts::reload::Watch;
use crate::accounts::tests::{ALIPAY, APIV3, Dir, KEYS, WECHAT};
use crate::accounts::*;
use crate::keys::SigningKey;

fn key(name: &str) -> String {
    std::fs::read_to_string(format!("{KEYS}/{name}")).unwrap()
}

/// Both accounts; Alipay's public key is in a separate file of the test directory.
struct Running {
    dir: Dir,
    gateways: Gateways,
    watch: Watch,
}

impl Running {
    fn new() -> Running {
        let dir = Dir::new();
        dir.write("apiv3", APIV3);
        dir.write("alipay.pem", &key("alipay_platform_public.pem"));
        let gateways = dir.load(&text()).unwrap();
        Running { dir, watch: gateways.watch(), gateways }
    }

    /// Writes a file so that the change is noticed, then looks until the file is read. Returns the outcome.
    fn change(&mut self, name: &str, text: &str) -> Option<Result<(), String>> {
        self.write(name, text);
        assert!(self.watch.look(&self.gateways).is_none(), "it may still be being written");
        let outcome = self.watch.look(&self.gateways);
        assert!(self.watch.look(&self.gateways).is_none(), "once for each change");
        outcome.map(|outcome| outcome.map_err(|faults| faults.iter().map(|fault| format!("{fault}\n")).collect()))
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.write(name, &text.replace("KEYS", KEYS));
        // Where the clock of files is coarse, two writes can have the same time. The time set here depends on the
        // length.
        let written = std::fs::metadata(&path).unwrap();
        let later = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(written.size() + 1_000_000);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    }

    /// Whether the public half of this private key counts as Alipay's key now.
    fn trusts(&self, private: &str) -> bool {
        let text = "a=1";
        let sign = SigningKey::from_pem(&key(private)).unwrap().sign(text.as_bytes()).unwrap();
        let body: String = url::form_urlencoded::Serializer::new(text.to_owned())
            .append_pair("sign", &sign)
            .append_pair("sign_type", "RSA2")
            .finish();
        let account = AccountName::parse("main").unwrap();
        let gateway = self.gateways.get(PaymentMethod::Alipay, &account).unwrap();
        let at = time::OffsetDateTime::UNIX_EPOCH;
        let callback = domain::message::callback::Callback {
            method: PaymentMethod::Alipay,
            account,
            headers: Vec::new(),
            body: body.into(),
            received_at: at,
            job_id: None,
        };
        gateway.verify(callback, None).is_ok()
    }
}

fn text() -> String {
    [&ALIPAY.replace("KEYS/alipay_platform_public.pem", "alipay.pem"), WECHAT].concat()
}

const OLD: &str = "alipay_platform_private_pkcs8.pem";
const NEW: &str = "alipay_other_private_pkcs8.pem";

#[test]
fn a_key_file_that_is_replaced_counts_without_a_restart_for_every_clone() {
    let mut running = Running::new();
    assert!(running.watch.look(&running.gateways).is_none(), "nothing changed");
    assert!(running.trusts(OLD) && !running.trusts(NEW));
    assert_eq!(running.change("alipay.pem", &key("alipay_other_public.pem")), Some(Ok(())));
    assert!(running.trusts(NEW) && !running.trusts(OLD));
}

#[test]
fn a_bad_file_leaves_the_old_key_in_force_and_says_what_is_wrong() {
    let mut running = Running::new();
    let whole = key("alipay_other_public.pem");
    for (bad, why) in [
        (&whole[..whole.len() / 2], "cannot be decoded"),
        ("", "holds no PEM block"),
        (&key("alipay_app_private_pkcs8.pem"), "holds a PEM block `PRIVATE KEY`"),
        (&key("alipay_app_public.pem"), "own public key"),
    ] {
        let Some(Err(faults)) = running.change("alipay.pem", bad) else { panic!("{why}") };
        assert!(faults.contains(why) && !faults.contains("BEGIN PRIVATE"), "{faults}");
        assert!(running.trusts(OLD));
    }
    // The file is loaded as soon as it is complete.
    assert_eq!(running.change("alipay.pem", &whole), Some(Ok(())));
    assert!(running.trusts(NEW));
}

#[test]
fn what_is_still_being_written_is_left_alone() {
    let mut running = Running::new();
    let whole = key("alipay_other_public.pem");
    for length in [10, 100, 200] {
        running.write("alipay.pem", &whole[..length]);
        assert!(running.watch.look(&running.gateways).is_none());
    }
    running.write("alipay.pem", &whole);
    assert!(running.watch.look(&running.gateways).is_none());
    assert!(running.watch.look(&running.gateways).unwrap().is_ok());
    assert!(running.trusts(NEW));
}

#[test]
fn a_file_that_goes_away_and_comes_back_is_both_seen() {
    let mut running = Running::new();
    std::fs::remove_file(running.dir.write("alipay.pem", "")).unwrap();
    assert!(running.watch.look(&running.gateways).is_none());
    assert!(running.watch.look(&running.gateways).unwrap().is_err());
    assert!(running.trusts(OLD));
    assert_eq!(running.change("alipay.pem", &key("alipay_other_public.pem")), Some(Ok(())));
    assert!(running.trusts(NEW));
}

#[test]
fn accounts_come_and_retire_but_do_not_go_or_become_others() {
    let mut running = Running::new();
    let second = text() + &ALIPAY.replace("\"main\"", "\"second\"");
    assert_eq!(running.change("gateways.toml", &second), Some(Ok(())));
    assert_eq!(format!("{:?}", running.gateways), r#"["alipay/main", "alipay/second", "wechat/main"]"#);
    let retired = second.replace("account = \"second\"", "account = \"second\"\nnew_orders = false");
    assert_eq!(running.change("gateways.toml", &retired), Some(Ok(())));
    let name = AccountName::parse("second").unwrap();
    let for_new_order = running.gateways.for_new_order(PaymentMethod::Alipay, Scene::Qr, Some(&name));
    assert_eq!(for_new_order.map(drop), Err(NoAccount::Retired));

    let Some(Err(faults)) = running.change("gateways.toml", &text()) else { panic!() };
    assert_eq!(
        faults,
        "alipay \"second\": is gone while orders may name it; put it back, and retire it with `new_orders = false`\n"
    );
    let Some(Err(faults)) = running.change("gateways.toml", &retired.replace("1900000109", "1900000110")) else {
        panic!()
    };
    assert!(faults.contains("wechat \"main\": stands for merchant 1900000110 with "), "{faults}");
    let Some(Err(faults)) =
        running.change("gateways.toml", &retired.replace("wxd678efh567hg6787", "wxd678efh567hg6788"))
    else {
        panic!()
    };
    assert!(faults.contains("wechat \"main\": stands for merchant 1900000109 with "), "{faults}");
    assert!(faults.contains("keep every app of before beside a new one"), "{faults}");
    for (known, other) in [
        ("http://127.0.0.1:7000/gateway.do", "https://openapi.example.com/gateway.do"),
        ("http://127.0.0.1:7000/gateway.do", "http://127.0.0.1:7001/gateway.do"),
        ("http://localhost:7000", "http://localhost:7001"),
        (
            "base_url = \"http://localhost:7000\"",
            "base_url = \"http://localhost:7000\"\nfallback_url = \"http://localhost:7001\"",
        ),
    ] {
        let Some(Err(faults)) = running.change("gateways.toml", &retired.replace(known, other)) else {
            panic!("{other}")
        };
        assert!(faults.contains("is called at") && faults.contains("restart the process"), "{faults}");
    }
    let Some(Err(faults)) = running.change("gateways.toml", "a = ") else { panic!() };
    assert!(faults.contains("is not TOML"), "{faults}");
    assert_eq!(running.gateways.iter().count(), 3);
}

#[test]
fn an_app_is_added_while_running_and_none_is_let_go() {
    let mut running = Running::new();
    let app = |running: &Running| {
        let gateway = running.gateways.for_new_order(PaymentMethod::Wechat, Scene::App, None).unwrap();
        let order = crate::prepay::PrepayOrder {
            order_no: domain::OrderNo::parse("ORD_01").unwrap(),
            subject: domain::Subject::parse("月卡").unwrap(),
            amount: domain::Money::from_fen(1).unwrap(),
            scene: Scene::App,
            expires_at: time::OffsetDateTime::UNIX_EPOCH,
            notify_url: "https://pay.example.com/".to_owned(),
            return_url: None,
            openid: None,
            client_ip: None,
        };
        let order = serde_json::to_value(gateway.prepay_request(&order).unwrap()).unwrap();
        crate::app_of_order(PaymentMethod::Wechat, &order).unwrap().to_owned()
    };
    assert_eq!(app(&running), "wxd678efh567hg6787");
    let mini = "mini = \"wx0000000000000001\"";
    let added = text().replace(mini, &format!("{mini}\napp = \"wx0000000000000002\""));
    assert_eq!(running.change("gateways.toml", &added), Some(Ok(())));
    assert_eq!(app(&running), "wx0000000000000002");

    // Every scene has an app of its own, and the general app is still named.
    let own = ["native", "jsapi", "h5"].map(|scene| format!("{scene} = \"wx0000000000000003\"\n")).concat();
    let own = added.replace(mini, &format!("{own}{mini}"));
    assert_eq!(running.change("gateways.toml", &own), Some(Ok(())));
    for gone in ["wxd678efh567hg6787", "wx0000000000000002"] {
        let Some(Err(faults)) = running.change("gateways.toml", &own.replace(gone, "wx0000000000000009")) else {
            panic!("{gone}")
        };
        assert!(faults.contains(gone) && faults.contains("keep every app of before"), "{faults}");
    }
}
