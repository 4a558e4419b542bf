//! Reads a process's configuration from its environment and collects every fault.
//!
//! A bad value does not stop the reading, so a start reports all faults at once. Each fault states the variable, what
//! is wrong with it and what to do; values of secrets are never repeated.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use secrecy::SecretString;

mod files;
mod misspelt;
mod network;
mod secrets;

pub use files::read_secret_file;
pub use network::{PublicUrl, is_loopback};
pub use secrets::{decoded, weakness};

/// One fault that stops the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The variable, file or object that the fault is about.
    pub subject: String,
    /// What is wrong.
    pub wrong: String,
    /// What to do.
    pub remedy: String,
}

impl Fault {
    /// A fault of `subject`.
    pub fn new(subject: impl Into<String>, wrong: impl Into<String>, remedy: impl Into<String>) -> Fault {
        Fault { subject: subject.into(), wrong: wrong.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.subject, self.wrong, self.remedy)
    }
}

/// All faults that stop the start; one line each when displayed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigFaults(pub Vec<Fault>);

impl ConfigFaults {
    /// Adds a fault.
    pub fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// Returns the value, or adds the faults.
    pub fn take<T>(&mut self, result: Result<T, impl Into<ConfigFaults>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(faults) => {
                self.0.extend(faults.into().0);
                None
            }
        }
    }

    /// # Errors
    /// Itself, unless it is empty.
    pub fn finish(self) -> Result<(), ConfigFaults> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl std::error::Error for ConfigFaults {}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0.len();
        write!(f, "{number} {} the start:", if number == 1 { "fault stops" } else { "faults stop" })?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl From<Fault> for ConfigFaults {
    fn from(fault: Fault) -> ConfigFaults {
        ConfigFaults(vec![fault])
    }
}

/// The environment of a process, and the faults found in it so far.
///
/// Every reader returns `None` (or the default) for a value that is missing or bad, and records the fault. An empty
/// value counts as missing.
pub struct Env {
    variables: HashMap<String, Result<String, Unusable>>,
    faults: ConfigFaults,
    /// Warnings that are not faults; they are logged once the log exists.
    warnings: Vec<String>,
}

/// Logs the warnings exactly once, whether the start succeeds or not.
impl Drop for Env {
    fn drop(&mut self) {
        self.warnings.iter().for_each(|warning| network::warned(warning));
    }
}

/// The reason that a variable which is set has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unusable {
    NotUtf8,
    /// Its fault has already been recorded.
    Noted,
}

impl Env {
    /// The environment of this process.
    pub fn process() -> Env {
        let known = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().map_err(|_| Unusable::NotUtf8)))
        };
        let mut env = Env::with(std::env::vars_os().filter_map(known).collect());
        let nearly = |name: &String| {
            let meant = misspelt::meant(name)?;
            Some(format!("{name} is set, and no program of this service reads it: is {meant} meant?"))
        };
        env.warnings.extend(env.variables.keys().filter_map(nearly));
        env
    }

    /// An environment that a test provides.
    pub fn of<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Env {
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), Ok(value.to_owned())));
        Env::with(variables.collect())
    }

    fn with(variables: HashMap<String, Result<String, Unusable>>) -> Env {
        Env { variables, faults: ConfigFaults::default(), warnings: Vec::new() }.with_files()
    }

    /// The value of a variable that may be absent.
    pub fn optional(&mut self, name: &'static str) -> Option<String> {
        match self.variables.get(name)? {
            Ok(value) if value.is_empty() => None,
            Ok(value) => Some(value.clone()),
            Err(Unusable::NotUtf8) => {
                self.fault(name, "it is not UTF-8", "write it in UTF-8");
                None
            }
            Err(Unusable::Noted) => None,
        }
    }

    /// The value of a variable that must be set; `hint` states what to set it to.
    pub fn required(&mut self, name: &'static str, hint: &str) -> Option<String> {
        let before = self.faults.0.len();
        let value = self.optional(name);
        let is_noted = self.variables.get(name) == Some(&Err(Unusable::Noted));
        if value.is_none() && !is_noted && self.faults.0.len() == before {
            self.fault(name, "it is not set", hint);
        }
        value
    }

    /// A required value of another type than text.
    pub fn parse<T: FromStr>(&mut self, name: &'static str, hint: &str) -> Option<T> {
        let text = self.required(name, hint)?;
        self.parse_text(name, &text, hint)
    }

    /// A value of another type than text, with a default for an absent one.
    pub fn parse_or<T: FromStr>(&mut self, name: &'static str, default: T, hint: &str) -> Option<T> {
        match self.optional(name) {
            None => Some(default),
            Some(text) => self.parse_text(name, &text, hint),
        }
    }

    /// A switch: `on` or `1`, `off` or `0`. Another value is recorded as one fault, and counts as off.
    pub fn switch(&mut self, name: &'static str, default: bool) -> bool {
        match self.optional(name).as_deref() {
            None => default,
            Some("1" | "on") => true,
            Some("0" | "off") => false,
            Some(_) => {
                if !self.faults.0.iter().any(|fault| fault.subject == name) {
                    self.fault(name, "it is neither on nor off", "set it to on or off, or leave it out");
                }
                false
            }
        }
    }

    /// A required secret of at least `shortest` bytes, see [`weakness`]. Its value appears in no fault.
    pub fn secret(&mut self, name: &'static str, shortest: usize, hint: &str) -> Option<SecretString> {
        let secret = self.required(name, hint)?;
        self.sound(name, weakness(&secret, shortest), secret, hint)
    }

    /// A secret that may be absent. If it is set, it must meet the same requirements as a required one.
    pub fn optional_secret(&mut self, name: &'static str, shortest: usize, hint: &str) -> Option<SecretString> {
        let secret = self.optional(name)?;
        self.sound(name, weakness(&secret, shortest), secret, hint)
    }

    /// A required address that may hold a password. Its value appears in no fault.
    pub fn address(&mut self, name: &'static str, hint: &str) -> Option<SecretString> {
        let address = self.required(name, hint)?;
        self.sound(name, secrets::placeholder(&address), address, hint)
    }

    /// Like [`Env::address`], for an address that may be absent.
    pub fn optional_address(&mut self, name: &'static str, hint: &str) -> Option<SecretString> {
        let address = self.optional(name)?;
        self.sound(name, secrets::placeholder(&address), address, hint)
    }

    /// The required path of a file that can be read.
    pub fn file(&mut self, name: &'static str, hint: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.required(name, hint)?);
        let readable = std::fs::File::open(&path).and_then(|file| file.metadata()).map(|meta| meta.is_file());
        match readable {
            Ok(true) => Some(path),
            Ok(false) => {
                self.fault(name, format!("{} is not a file", path.display()), hint);
                None
            }
            Err(error) => {
                self.fault(name, format!("{} cannot be read ({error})", path.display()), hint);
                None
            }
        }
    }

    /// Records a fault that the caller found.
    pub fn fault(&mut self, subject: impl Into<String>, wrong: impl Into<String>, remedy: impl Into<String>) {
        self.faults.push(Fault::new(subject, wrong, remedy));
    }

    /// The faults so far, for a start that continues with its checks.
    pub fn into_faults(mut self) -> ConfigFaults {
        std::mem::take(&mut self.faults)
    }

    /// # Errors
    /// Every fault that was found.
    pub fn finish(self) -> Result<(), ConfigFaults> {
        self.into_faults().finish()
    }

    fn parse_text<T: FromStr>(&mut self, name: &'static str, text: &str, hint: &str) -> Option<T> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.fault(name, format!("{text:?} does not fit"), hint);
        }
        parsed
    }

    fn sound(&mut self, name: &'static str, wrong: Option<String>, secret: String, hint: &str) -> Option<SecretString> {
        match wrong {
            None => Some(SecretString::from(secret)),
            Some(wrong) => {
                self.fault(name, wrong, hint);
                None
            }
        }
    }
}
