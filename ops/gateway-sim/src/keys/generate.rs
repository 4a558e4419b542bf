//! Creates a new key set with two accounts at each gateway.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};

use super::{ALIPAY, AlipayEntry, Authority, CertificatesEntry, File, SigningKeyEntry, Wanted, WechatEntry, read};
use crate::crypto::{ALPHANUMERIC, DIGITS, HEX_UPPER, Signer, random_text};

/// The result of [`generate_if_missing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existed {
    /// A key set exists already and is kept.
    Yes,
    /// There was none, so one was created.
    No,
}

/// Creates a key set in `dir` for gateways at `url`, and overwrites existing files.
///
/// # Errors
/// When a file cannot be written.
pub fn generate(dir: &Path, url: &str) -> Result<()> {
    let url = url.trim_end_matches('/');
    for folder in ["keys", "sim"] {
        fs::create_dir_all(dir.join(folder)).with_context(|| format!("making {}", dir.join(folder).display()))?;
    }
    let mut keys = many_keys(11)?.into_iter();
    let mut next = || keys.next().context("too few keys were made");
    let mut merchant_side = HEAD.to_owned();
    let stranger = "sim/stranger_private.pem";
    write_private(dir, stranger, &next()?.private_pem()?)?;
    let ca = next()?;
    let ca_file = "sim/alipay_ca_private.pem";
    write_private(dir, ca_file, &ca.private_pem()?)?;
    let ca = Authority::new(ca)?;
    write(dir, "keys/alipay_root_cert.pem", &ca.pem)?;
    let mut file = File {
        url: url.to_owned(),
        stranger_private_key_file: stranger.into(),
        alipay_ca_private_key_file: Some(ca_file.to_owned()),
        alipay: vec![],
        wechat: vec![],
    };
    for account in ["main", "second"] {
        let entry = alipay(dir, account, &ca, [next()?, next()?])?;
        write_alipay_table(&mut merchant_side, &entry, url)?;
        file.alipay.push(entry);
    }
    for account in ["main", "second"] {
        let signing = if account == "main" { vec![next()?, next()?] } else { vec![next()?] };
        let entry = wechat(dir, account, &next()?, &signing)?;
        write_wechat_table(&mut merchant_side, &entry, url)?;
        file.wechat.push(entry);
    }
    write(dir, "gateways.toml", &merchant_side)?;
    write(dir, "sim.json", &serde_json::to_string_pretty(&file)?) // Last: if it exists, the set is complete.
}

/// Creates a key set unless `dir` contains one.
///
/// # Errors
/// As [`generate()`].
pub fn generate_if_missing(dir: &Path, url: &str) -> Result<Existed> {
    if dir.join("sim.json").exists() {
        return Ok(Existed::Yes);
    }
    generate(dir, url)?;
    Ok(Existed::No)
}

/// Changes the simulator's address in the `gateways.toml` of an existing set, and keeps the keys.
///
/// # Errors
/// When the set cannot be read or written.
pub fn point_at(dir: &Path, url: &str) -> Result<()> {
    let url = url.trim_end_matches('/');
    let mut file: File = serde_json::from_str(&read(&dir.join("sim.json"))?)?;
    let text = read(&dir.join("gateways.toml"))?;
    write(
        dir,
        "gateways.toml",
        &text
            .replace(&format!("\"{}/gateway.do\"", file.url), &format!("\"{url}/gateway.do\""))
            .replace(&format!("\"{}\"", file.url), &format!("\"{url}\"")),
    )?;
    url.clone_into(&mut file.url);
    write(dir, "sim.json", &serde_json::to_string_pretty(&file)?)
}

const HEAD: &str =
    "# Accounts at the gateway simulator. Made by `gateway-sim keygen`; the keys are worth nothing elsewhere.\n";

/// Generating RSA keys is slow, so all cores are used.
fn many_keys(count: usize) -> Result<Vec<Signer>> {
    let threads = thread::available_parallelism().map_or(1, usize::from).clamp(1, count);
    thread::scope(|scope| {
        let share = |index: usize| count / threads + usize::from(index < count % threads);
        let started: Vec<_> = (0..threads)
            .map(|index| scope.spawn(move || (0..share(index)).map(|_| Signer::generate()).collect::<Result<Vec<_>>>()))
            .collect();
        let mut keys = Vec::with_capacity(count);
        for thread in started {
            keys.extend(thread.join().map_err(|_| anyhow::anyhow!("making keys failed"))??);
        }
        Ok(keys)
    })
}

fn alipay(dir: &Path, account: &str, ca: &Authority, [app, gateway]: [Signer; 2]) -> Result<AlipayEntry> {
    let term = Wanted { organization: "Merchant", from_days: -1.0, until_days: 5.0 * 365.0 };
    let app_cert = ca.issue(&term, &app)?;
    let cert = ca.issue(&Wanted { organization: ALIPAY, ..term }, &gateway)?;
    let cert_file = format!("keys/alipay_{account}_cert.pem");
    write(dir, &format!("keys/alipay_{account}_app_cert.pem"), &app_cert.pem)?;
    write(dir, &cert_file, &cert.pem)?;
    write_private(dir, &format!("keys/alipay_{account}_app_private.pem"), &app.private_pem()?)?;
    write(dir, &format!("keys/alipay_{account}_public.pem"), &gateway.public_pem()?)?;
    let app_public_key_file = format!("sim/alipay_{account}_app_public.pem");
    write(dir, &app_public_key_file, &app.public_pem()?)?;
    let gateway_private_key_file = format!("sim/alipay_{account}_gateway_private.pem");
    write_private(dir, &gateway_private_key_file, &gateway.private_pem()?)?;
    Ok(AlipayEntry {
        account: account.to_owned(),
        app_id: format!("2021{}", random_text(12, DIGITS)),
        seller_id: format!("2088{}", random_text(12, DIGITS)),
        app_public_key_file,
        gateway_private_key_file,
        certificates: Some(CertificatesEntry { app_sn: app_cert.sn, sn: cert.sn, file: cert_file }),
    })
}

fn write_alipay_table(text: &mut String, entry: &AlipayEntry, url: &str) -> Result<()> {
    let AlipayEntry { account, app_id, seller_id, .. } = entry;
    write!(
        text,
        r#"
[[alipay]]
account = "{account}"
environment = "simulator"
scenes = ["page", "wap", "app", "qr"]
[alipay.simulator]
gateway_url = "{url}/gateway.do"
app_id = "{app_id}"
seller_id = "{seller_id}"
app_private_key_file = "keys/alipay_{account}_app_private.pem"
alipay_public_key_file = "keys/alipay_{account}_public.pem"
"#
    )?;
    Ok(())
}

fn wechat(dir: &Path, account: &str, merchant: &Signer, signing: &[Signer]) -> Result<WechatEntry> {
    let mchid = format!("19{}", random_text(8, DIGITS));
    write_private(dir, &format!("keys/wechat_{account}_merchant_private.pem"), &merchant.private_pem()?)?;
    let merchant_public_key_file = format!("sim/wechat_{account}_merchant_public.pem");
    write(dir, &merchant_public_key_file, &merchant.public_pem()?)?;
    let apiv3_key_file = format!("keys/wechat_{account}_apiv3_key");
    write_private(dir, &apiv3_key_file, &random_text(32, ALPHANUMERIC))?;
    let mut signing_keys = Vec::new();
    for (index, key) in signing.iter().enumerate() {
        let private_key_file = format!("sim/wechat_{account}_gateway_private_{}.pem", index + 1);
        write_private(dir, &private_key_file, &key.private_pem()?)?;
        write(dir, &verify_key_file(account, index), &key.public_pem()?)?;
        let serial = format!("PUB_KEY_ID_01{mchid}{}{:08}", random_text(14, DIGITS), index + 1);
        signing_keys.push(SigningKeyEntry { serial, private_key_file });
    }
    Ok(WechatEntry {
        account: account.to_owned(),
        mchid,
        appids: vec![format!("wx{}", random_text(16, b"0123456789abcdef"))],
        merchant_serial_no: random_text(40, HEX_UPPER),
        merchant_public_key_file,
        apiv3_key_file,
        signing_keys,
    })
}

fn verify_key_file(account: &str, index: usize) -> String {
    format!("keys/wechat_{account}_public_{}.pem", index + 1)
}

fn write_wechat_table(text: &mut String, entry: &WechatEntry, url: &str) -> Result<()> {
    let WechatEntry { account, mchid, appids, merchant_serial_no, apiv3_key_file, .. } = entry;
    let appid = appids.first().map_or("", String::as_str);
    write!(
        text,
        r#"
[[wechat]]
account = "{account}"
environment = "simulator"
scenes = ["native", "jsapi", "mini", "h5", "app"]
[wechat.simulator]
base_url = "{url}"
mchid = "{mchid}"
appid = "{appid}"
merchant_serial_no = "{merchant_serial_no}"
merchant_private_key_file = "keys/wechat_{account}_merchant_private.pem"
apiv3_key_file = "{apiv3_key_file}"
"#
    )?;
    for (index, key) in entry.signing_keys.iter().enumerate() {
        let file = verify_key_file(account, index);
        write!(text, "[[wechat.simulator.verify_keys]]\nserial = \"{}\"\nfile = \"{file}\"\n", key.serial)?;
    }
    Ok(())
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// A private key must be readable only by its owner, even a worthless one: the service refuses other keys or warns
/// about them.
fn write_private(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SimKeys;

    #[test]
    fn a_key_set_is_reused_and_can_be_pointed_elsewhere() {
        let dir = std::env::temp_dir().join(format!("gateway-sim-keys-{}", random_text(16, ALPHANUMERIC)));
        assert_eq!(generate_if_missing(&dir, "http://127.0.0.1:7000/").unwrap(), Existed::No);
        let first = read(&dir.join("gateways.toml")).unwrap();
        assert_eq!(generate_if_missing(&dir, "http://127.0.0.1:7001").unwrap(), Existed::Yes);
        assert_eq!(read(&dir.join("gateways.toml")).unwrap(), first);
        point_at(&dir, "http://127.0.0.1:7001").unwrap();
        assert_eq!(read(&dir.join("gateways.toml")).unwrap(), first.replace(":7000", ":7001"));
        assert_eq!(first.matches("http://127.0.0.1:7000").count(), 4);

        let keys = SimKeys::load(&dir).unwrap();
        assert_eq!((keys.alipay.len(), keys.wechat.len()), (2, 2));
        assert_eq!(keys.wechat[0].signing_keys.len(), 2);
        for named in [&keys.alipay[1].app_id, &keys.wechat[1].mchid, &keys.wechat[0].signing_keys[1].0] {
            assert!(first.contains(&format!("\"{named}\"")), "{named}");
        }
        let private = Signer::from_pem(&read(&dir.join("keys/alipay_main_app_private.pem")).unwrap()).unwrap();
        assert!(keys.alipay[0].app_key.accepts(b"x", &private.sign(b"x")));
        fs::remove_dir_all(&dir).unwrap();
        assert!(SimKeys::load(&dir).unwrap_err().to_string().contains("sim.json"));
    }
}
