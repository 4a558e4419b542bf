//! What no log of any run may contain.

use std::fs;
use std::path::Path;

use url::Url;

use crate::World;
use crate::servers::Addresses;
use crate::shop::OPENID;

impl World {
    /// The secrets of the processes and the identity of the payer, each with a name.
    #[must_use]
    pub fn secrets(&self) -> Vec<(&'static str, String)> {
        let mut secrets = vec![
            ("JWT_HS256_SECRET", self.shop.jwt_secret.clone()),
            ("VIEW_TOKEN_SECRET", self.view_token_secret.clone()),
            ("SEAL_KEY", self.seal_key.clone()),
            ("COPIES_KEY", self.copies_key.clone()),
            ("a payer's id", OPENID.to_owned()),
            ("a payer's id", "2088102122524333".to_owned()),
            ("a payer's login", "159****5620".to_owned()),
        ];
        let Addresses { database, amqp, admin, redis, logins, .. } = &self.addresses;
        let of_processes = logins.iter().flat_map(|(_, database, amqp)| [database, amqp]);
        for url in [database, amqp, admin, redis].into_iter().chain(of_processes) {
            let url = Url::parse(url).expect("a URL");
            secrets.push(("a password", url.password().expect("a password").to_owned()));
        }
        for entry in fs::read_dir(self.gateways.dir.join("keys")).expect("the keys") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.contains("private") || name.contains("apiv3") {
                secrets.extend(lines_of(&path).map(|line| ("key material", line)));
            }
        }
        secrets
    }

    /// Asserts at the end of each run: no process panicked, and no log line contains a secret.
    pub fn logs_are_clean(&self) {
        let (logs, secrets) = (self.logs(), self.secrets());
        let reveals = |line: &&str| secrets.iter().any(|(_, secret)| line.contains(secret.as_str()));
        let wrong: Vec<&str> = logs.lines().filter(|line| line.contains("panicked at") || reveals(line)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        // The control: these really are the logs of a run, so the search above was not over an empty text.
        assert!(logs.contains("Serving on"), "these are not the logs of a run");
    }
}

/// The lines of key material without the frame of a PEM file, which is no secret.
fn lines_of(path: &Path) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(path).expect("a key file");
    let lines: Vec<String> = text.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned).collect();
    lines.into_iter().filter(|line| line.len() >= 16)
}
