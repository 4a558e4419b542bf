//! Secrets in files: `NAME_FILE=/run/secrets/name` instead of `NAME=value`. Then the value is not in the environment,
//! which other processes of the user and core dumps can show.

use std::path::{Path, PathBuf};

use crate::env::{Env, Unusable};
use crate::file_mode;

/// The variables that have a `…_FILE` form: all that hold a secret or a password.
const IN_FILES: [&str; 11] = [
    "DATABASE_URL",
    "AMQP_URL",
    "AMQP_ADMIN_URL",
    "RABBITMQ_MANAGEMENT_URL",
    "REDIS_URL",
    "VIEW_TOKEN_SECRET",
    "PREVIOUS_VIEW_TOKEN_SECRET",
    "JWT_HS256_SECRET",
    "PREVIOUS_JWT_HS256_SECRET",
    "SEAL_KEY",
    "PREVIOUS_SEAL_KEY",
];

/// The current content of a secret's file, without the line end.
///
/// # Errors
/// Describes the fault of the file, without its text.
pub fn read_secret_file(path: &Path) -> Result<String, String> {
    let wrong = |why: String| format!("{}: {why}", path.display());
    file_mode::check(path).map_err(wrong)?;
    let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("it cannot be read ({error})")))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(wrong("it is empty".to_owned())) } else { Ok(text.to_owned()) }
}

impl Env {
    /// Reads the values of the variables that are given as files.
    pub(super) fn with_files(mut self) -> Env {
        const HINT: &str = "name a file that holds the value alone and that this process may read";
        for name in IN_FILES {
            let Some(path) = self.file_of(name) else { continue };
            let variable = format!("{name}_FILE");
            let is_given = self.variables.get(name).is_some_and(|value| value.as_ref() != Ok(&String::new()));
            let value = if is_given {
                self.fault(variable, format!("{name} is set as well"), "set one of the two");
                Err(Unusable::Noted)
            } else {
                self.warnings.extend(file_mode::open_to_all(&path).map(|warning| format!("{variable}: {warning}")));
                read_secret_file(&path).map_err(|wrong| {
                    self.fault(variable, wrong, HINT);
                    Unusable::Noted
                })
            };
            self.variables.insert(name.to_owned(), value);
        }
        self
    }

    /// The file that holds the value of a variable, if it is given as a file.
    pub fn file_of(&self, name: &str) -> Option<PathBuf> {
        let path = self.variables.get(&format!("{name}_FILE"))?.as_ref().ok()?;
        (IN_FILES.contains(&name) && !path.is_empty()).then(|| PathBuf::from(path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A file with this text and mode, in its own folder.
    fn file(name: &str, text: &str, mode: u32) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("secret-files-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    const SECRET: &str = "0123456789abcdef0123456789abcdef-hidden";

    fn read(path: &Path) -> Result<String, String> {
        let mut env = Env::of([("SEAL_KEY_FILE", path.to_str().unwrap())]);
        let value = env.optional("SEAL_KEY");
        env.finish().map_err(|faults| faults.to_string())?;
        Ok(value.unwrap())
    }

    #[test]
    fn a_secret_in_a_file_is_read_without_its_line_end() {
        for (n, end) in ["", "\n", "\r\n"].iter().enumerate() {
            let path = file(&format!("good-{n}"), &format!("{SECRET}{end}"), 0o600);
            assert_eq!(read(&path).unwrap(), SECRET);
        }
        for mode in [0o400, 0o440, 0o640, 0o644] {
            assert_eq!(read(&file(&format!("mode-{mode:o}"), SECRET, mode)).unwrap(), SECRET, "{mode:o}");
        }
        let open = file("open", SECRET, 0o644);
        let env = Env::of([("SEAL_KEY_FILE", open.to_str().unwrap())]);
        assert!(env.warnings[0].contains("every user of this machine may read (mode 0644)"), "{:?}", env.warnings);
    }

    #[test]
    fn a_file_that_others_may_change_or_that_holds_nothing_stops_the_start() {
        for mode in [0o620, 0o602, 0o666, 0o777] {
            let wrong = read(&file(&format!("wide-{mode:o}"), SECRET, mode)).unwrap_err();
            assert!(
                wrong.contains("may write it") && wrong.contains("chmod go-w") && !wrong.contains("hidden"),
                "{wrong}"
            );
        }
        assert!(read(&file("empty", "\n", 0o600)).unwrap_err().contains("it is empty"));
        let missing = read(Path::new("/does/not/exist")).unwrap_err();
        assert_eq!(missing.matches("SEAL_KEY").count(), 1, "one fault: {missing}");
    }

    #[test]
    fn a_value_beside_its_file_is_a_fault_and_neither_counts() {
        let path = file("both", SECRET, 0o600);
        let path = path.to_str().unwrap();
        let mut env = Env::of([("DATABASE_URL_FILE", path), ("DATABASE_URL", "postgres://u:hidden@localhost/d")]);
        assert_eq!(env.required("DATABASE_URL", "set it"), None);
        let text = env.finish().unwrap_err().to_string();
        assert!(
            text.starts_with("1 fault") && text.contains("DATABASE_URL_FILE: DATABASE_URL is set as well"),
            "{text}"
        );
        assert!(!text.contains("hidden"), "{text}");
        let mut env = Env::of([("DATABASE_URL_FILE", ""), ("DATABASE_URL", "postgres://localhost/d")]);
        assert_eq!(env.required("DATABASE_URL", "").as_deref(), Some("postgres://localhost/d"), "empty means not set");
        let mut env = Env::of([("JWT_ISSUER_FILE", path)]);
        assert_eq!(env.optional("JWT_ISSUER"), None, "only secrets stand in files");
    }
}
