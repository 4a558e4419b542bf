//! The protocol vectors: every file, each case by its name, none skipped. `VECTORS_DIR` selects another folder of the
//! same format, which its README describes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rsa::pkcs1v15;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::sha2::Sha256;
use rsa::signature::{SignatureEncoding as _, Signer as _};
use serde_json::Value;

mod alipay;
mod captured;
mod wechat;

/// The result of a case: a success, or a description of what was found instead.
type Outcome = Result<(), String>;

fn root() -> PathBuf {
    match std::env::var_os("VECTORS_DIR") {
        Some(dir) => dir.into(),
        None => fixtures(),
    }
}

/// The vectors of this repository. Keys that do not matter to a case also come from here.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vectors")
}

/// One file of vectors; paths inside it are relative to it.
struct VectorFile {
    path: PathBuf,
    json: Value,
}

impl VectorFile {
    fn open(name: &str) -> VectorFile {
        let path = root().join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        VectorFile { json: serde_json::from_str(&text).expect(name), path }
    }

    fn text(&self, field: &str) -> &str {
        text(&self.json, field)
    }

    /// The path of a file that a field names.
    fn place(&self, relative: &str) -> PathBuf {
        self.path.parent().expect("a file is in a folder").join(relative)
    }

    /// The text of the file that a field names.
    fn pem(&self, field: &str) -> String {
        self.pem_at(self.text(field))
    }

    fn pem_at(&self, relative: &str) -> String {
        let path = self.place(relative);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Runs every case of a list, then fails with the names of all failed cases.
    fn each(&self, list: &str, check: impl Fn(&Value) -> Outcome) {
        let cases = self.json[list].as_array().unwrap_or_else(|| panic!("{}: no {list}", self.path.display()));
        assert!(!cases.is_empty(), "{}: no case in {list}", self.path.display());
        let mut failures = Vec::new();
        for (at, case) in cases.iter().enumerate() {
            let names = ["id", "file", "client", "serial_no"];
            let name = names.iter().find_map(|field| case[*field].as_str());
            let name = name.map_or_else(|| format!("{list}[{at}]"), str::to_owned);
            match check(case) {
                Ok(()) => println!("{name}: ok"),
                Err(found) => failures.push(format!("{name}: {found}")),
            }
        }
        assert!(failures.is_empty(), "{}:\n{}", self.path.display(), failures.join("\n"));
    }
}

#[track_caller]
fn text<'a>(json: &'a Value, field: &str) -> &'a str {
    json[field].as_str().unwrap_or_else(|| panic!("no text {field} in {json}"))
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected { Ok(()) } else { Err(format!("{what}:\n  found    {found:?}\n  expected {expected:?}")) }
}

/// The signature by an implementation that shares no code with ours.
fn second_opinion(pkcs8_pem: &str, message: &[u8]) -> String {
    let key = rsa::RsaPrivateKey::from_pkcs8_pem(pkcs8_pem).expect("a PKCS#8 key");
    STANDARD.encode(pkcs1v15::SigningKey::<Sha256>::new(key).sign(message).to_bytes())
}

/// A folder for a `gateways.toml`, removed on drop.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> TempDir {
        let dir = std::env::temp_dir().join(format!("vectors-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&dir).expect("a temporary folder");
        TempDir(dir)
    }

    fn load(&self, toml: &str) -> gateway::Gateways {
        let path = self.0.join("gateways.toml");
        std::fs::write(&path, toml).expect("a temporary file");
        gateway::Gateways::load(&path).unwrap_or_else(|faults| panic!("{faults:?}"))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Every file of the vectors must be tested.
#[test]
fn every_file_has_its_test() {
    let mut found = BTreeSet::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folder of vectors") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "json") {
                found.insert(path.strip_prefix(root()).expect("below the root").display().to_string());
            }
        }
    }
    let tested = BTreeSet::from(
        [
            "alipay/cert_sn.json",
            "alipay/notify_verify.json",
            "alipay/request_sign.json",
            "alipay/response_verify.json",
            "captured_requests.json",
            "wechat/certificates.json",
            "wechat/notify.json",
            "wechat/pay_sign.json",
            "wechat/request_authorization.json",
            "wechat/response_verify.json",
            "wechat/sensitive_oaep.json",
        ]
        .map(str::to_owned),
    );
    assert_eq!(found, tested);
}
