//! A vulnerability, a licence, a ban and a source that are planted fail the check of the dependencies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `cargo deny` calls the folder of the database.
const FOLDER: &str = "advisory-db-3157b0e258782691";

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// Checks one thing under our configuration, changed; says what was found, and whether it passed.
fn deny(which: &str, name: &str, change: impl Fn(&str, &Path) -> String) -> (bool, String) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let ours = fs::read_to_string(checkout().join("deny.toml")).unwrap();
    let config = folder.join("deny.toml");
    let changed = change(&ours, &folder);
    assert_ne!(changed, ours, "nothing is planted");
    fs::write(&config, changed).unwrap();
    let mut deny = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    deny.args(["deny", "--offline", "--locked", "--config"]).arg(&config);
    deny.args(["check", "--hide-inclusion-graph", which]);
    let output = deny.current_dir(checkout()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("no such command"), "run `cargo xtask deny`, which installs it: {said}");
    (output.status.success(), said)
}

/// A database with this advisory alone.
fn database(folder: &Path, package: &str) {
    let database = folder.join("db").join(FOLDER);
    fs::create_dir_all(database.join(".git")).unwrap();
    fs::write(database.join(".git/FETCH_HEAD"), "").unwrap();
    fs::create_dir_all(database.join("crates").join(package)).unwrap();
    let advisory = format!(
        "```toml\n[advisory]\nid = \"RUSTSEC-2026-9999\"\npackage = \"{package}\"\ndate = \"2026-11-30\"\n\n\
         [versions]\npatched = []\n```\n\n# Planted\n"
    );
    fs::write(database.join("crates").join(package).join("RUSTSEC-2026-9999.md"), advisory).unwrap();
}

fn with_database(ours: &str, folder: &Path) -> String {
    ours.replace("target/advisory-db", folder.join("db").to_str().unwrap())
}

#[test]
fn a_planted_vulnerability_fails() {
    let (passed, said) = deny("advisories", "vulnerable", |ours, folder| {
        database(folder, "tokio");
        with_database(ours, folder)
    });
    assert!(!passed && said.contains("RUSTSEC-2026-9999"), "{said}");
    let (passed, said) = deny("advisories", "not-ours", |ours, folder| {
        database(folder, "a-crate-that-is-not-built-in");
        with_database(ours, folder)
    });
    assert!(passed, "of a crate that is not built in: {said}");
}

/// A copy that is more than a year old says too little.
#[test]
fn an_old_copy_fails() {
    let year = std::time::Duration::from_secs(366 * 24 * 60 * 60);
    for (name, age, fails) in [("old", year, true), ("young", year - year / 100, false)] {
        let (passed, said) = deny("advisories", name, |ours, folder| {
            database(folder, "a-crate-that-is-not-built-in");
            let head = folder.join("db").join(FOLDER).join(".git/FETCH_HEAD");
            let head = fs::File::options().write(true).open(head).unwrap();
            head.set_modified(std::time::SystemTime::now() - age).unwrap();
            with_database(ours, folder)
        });
        assert_eq!(!passed, fails, "{name}: {said}");
        assert_eq!(said.contains("stale"), fails, "{name}: {said}");
    }
}

#[test]
fn a_planted_licence_fails() {
    let (passed, said) = deny("licenses", "licence", |ours, _| ours.replace("  \"ISC\",\n", ""));
    assert!(!passed && said.contains("rejected") && said.contains("ISC"), "{said}");
}

#[test]
fn a_planted_ban_and_a_planted_source_fail() {
    let (passed, said) = deny("bans", "ban", |ours, _| ours.replace("\"native-tls\"", "\"tokio\""));
    assert!(!passed && said.contains("tokio"), "{said}");
    let (passed, said) = deny("sources", "source", |ours, _| format!("{ours}\nallow-registry = []\n"));
    assert!(!passed && said.contains("source-not-allowed"), "{said}");
}
