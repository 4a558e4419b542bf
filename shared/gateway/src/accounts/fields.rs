//! Reads TOML tables field by field, so that one fault does not hide the next.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use domain::PaymentMethod;
use runtime::file_mode;
use toml::{Table, Value};
use tracing::warn;
use zeroize::Zeroizing;

use crate::accounts::AccountFault;
use crate::accounts::reload::Print;

/// The state that all sections of a file share.
pub(super) struct Context {
    dir: PathBuf,
    /// The reason that no production account can work here, if there is one.
    no_production: Option<String>,
    /// Whether at least one account is not a simulator's.
    real: Cell<bool>,
    faults: RefCell<Vec<AccountFault>>,
    files: RefCell<Vec<Print>>,
}

impl Context {
    /// Paths in the file are relative to `dir`.
    pub(super) fn new(dir: &Path, no_production: Option<String>) -> Context {
        let (real, faults, files) = (Cell::default(), RefCell::default(), RefCell::default());
        Context { dir: dir.to_owned(), no_production, real, faults, files }
    }

    /// Whether at least one account is not a simulator's. A simulator's keys protect nothing, so we do not check their
    /// files.
    pub(super) fn is_real(&self) -> bool {
        self.real.get()
    }

    /// The faults, and the files that were read or should have been read.
    pub(super) fn into_parts(self) -> (Vec<AccountFault>, Vec<Print>) {
        (self.faults.into_inner(), self.files.into_inner())
    }
}

/// A table of the file. Reading a field removes it; [`Section::finish`] reports the fields that are left.
pub(super) struct Section<'c> {
    context: &'c Context,
    account: String,
    /// Path from the account's table, with a trailing dot, or empty.
    path: String,
    table: Table,
}

impl<'c> Section<'c> {
    pub(super) fn root(context: &'c Context, file: &Path, table: Table) -> Section<'c> {
        Section { context, account: file.display().to_string(), path: String::new(), table }
    }

    /// The accounts of one gateway. Each section names its account in its faults.
    pub(super) fn accounts(&mut self, method: PaymentMethod) -> Vec<Section<'c>> {
        let mut sections = self.sections(method.as_str());
        for (at, section) in sections.iter_mut().enumerate() {
            section.account = match section.table.get("account") {
                Some(Value::String(name)) => format!("{method} {name:?}"),
                _ => format!("{method} no. {}", at + 1),
            };
            section.path = String::new();
        }
        sections
    }

    pub(super) fn fault(&self, field: &str, problem: &str) {
        let field = format!("{}{field}", self.path).trim_end_matches('.').to_owned();
        let fault = AccountFault { account: self.account.clone(), field, problem: problem.to_owned() };
        self.context.faults.borrow_mut().push(fault);
    }

    pub(super) fn missing(&self, field: &str) {
        self.fault(field, "is missing; give it as text in quotes");
    }

    pub(super) fn optional_text(&mut self, field: &str) -> Option<String> {
        match self.table.remove(field)? {
            Value::String(text) if !text.is_empty() => Some(text),
            _ => {
                self.fault(field, "must be text in quotes, not empty");
                None
            }
        }
    }

    pub(super) fn text(&mut self, field: &str) -> Option<String> {
        if !self.has(field) {
            self.missing(field);
        }
        self.optional_text(field)
    }

    /// A text in a required form; `form` describes it.
    pub(super) fn parsed<T>(&mut self, field: &str, form: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        if !self.has(field) {
            self.fault(field, &format!("is missing; it must be {form}"));
        }
        let text = self.optional_text(field)?;
        let value = parse(&text);
        if value.is_none() {
            self.fault(field, &format!("must be {form}"));
        }
        value
    }

    pub(super) fn texts(&mut self, field: &str) -> Option<Vec<String>> {
        const FORM: &str = "must be a list of at least one text, such as [\"app\"]";
        let Some(Value::Array(values)) = self.table.remove(field) else {
            self.fault(field, FORM);
            return None;
        };
        let texts: Option<Vec<String>> = values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
        if texts.as_ref().is_none_or(Vec::is_empty) {
            self.fault(field, FORM);
        }
        texts
    }

    pub(super) fn flag(&mut self, field: &str, default: bool) -> bool {
        match self.table.remove(field) {
            None => default,
            Some(Value::Boolean(flag)) => flag,
            Some(_) => {
                self.fault(field, "must be true or false");
                default
            }
        }
    }

    pub(super) fn optional_section(&mut self, field: &str) -> Option<Section<'c>> {
        match self.table.remove(field)? {
            Value::Table(table) => Some(self.child(field, table)),
            _ => {
                self.fault(field, "must be a table");
                None
            }
        }
    }

    /// The tables of `[[field]]`; empty if there is no such field.
    pub(super) fn sections(&mut self, field: &str) -> Vec<Section<'c>> {
        let values = match self.table.remove(field) {
            None => return Vec::new(),
            Some(Value::Array(values)) => values,
            Some(other) => vec![other],
        };
        let mut sections = Vec::with_capacity(values.len());
        for (at, value) in values.into_iter().enumerate() {
            match value {
                Value::Table(table) => sections.push(self.child(&format!("{field}[{at}]"), table)),
                _ => self.fault(field, "must be tables, written [[…]]"),
            }
        }
        sections
    }

    fn child(&self, field: &str, table: Table) -> Section<'c> {
        let path = format!("{}{field}.", self.path);
        Section { context: self.context, account: self.account.clone(), path, table }
    }

    /// Whether the field exists and has not been read yet.
    pub(super) fn has(&self, field: &str) -> bool {
        self.table.contains_key(field)
    }

    /// Whether key material of this name (a file or a variable) exists and has not been read yet.
    pub(super) fn has_secret(&self, field: &str) -> bool {
        ["file", "env"].iter().any(|by| self.has(&format!("{field}_{by}")))
    }

    /// The last part of this section's path.
    pub(super) fn name(&self) -> &str {
        let path = self.path.trim_end_matches('.');
        path.rsplit('.').next().unwrap_or(path)
    }

    /// The environment that this table is, or is inside: the first part of the path.
    pub(super) fn environment(&self) -> &str {
        self.path.split('.').next().unwrap_or_default()
    }

    /// Whether this is a simulator's table.
    pub(super) fn is_simulator(&self) -> bool {
        self.environment() == "simulator"
    }

    /// Records the environment, and reports a fault for a production account where none can work.
    pub(super) fn judge_environment(&self) {
        self.context.real.set(self.context.real.get() || !self.is_simulator());
        let reason = self.context.no_production.as_ref().filter(|_| self.environment() == "production");
        reason.iter().for_each(|reason| self.fault("", reason));
    }

    /// Key material from `{field}_file` or `{field}_env`, wiped when dropped, and the name of the field that named it.
    pub(super) fn secret(&mut self, field: &str) -> Option<(String, Zeroizing<String>)> {
        self.secret_of(&format!("{field}_file"), &format!("{field}_env"))
    }

    pub(super) fn secret_of(&mut self, file: &str, env: &str) -> Option<(String, Zeroizing<String>)> {
        let both = self.has(file) && self.has(env);
        let (by_file, by_env) = (self.optional_text(file), self.optional_text(env));
        if both {
            self.fault(file, &format!("and {env} are both given; keep one"));
            return None;
        }
        match (by_file, by_env) {
            (Some(path), _) => self.read_file(file, &path),
            (None, Some(name)) => self.read_env(env, &name),
            (None, None) => {
                self.fault(file, &format!("is missing; name a file there, or an environment variable in {env}"));
                None
            }
        }
    }

    fn read_file(&self, field: &str, path: &str) -> Option<(String, Zeroizing<String>)> {
        let path = self.context.dir.join(path);
        // Record the file before reading it, so that a change during the read is noticed.
        self.context.files.borrow_mut().push(Print::of(&path));
        let fault = |problem: String| {
            self.fault(field, &format!("names {}, which {problem}", path.display()));
            None
        };
        if !self.is_simulator() {
            if let Err(problem) = file_mode::check(&path) {
                return fault(format!("is not safe: {problem}"));
            }
            let is_secret = field.contains("private_key") || field.contains("apiv3_key");
            if let Some(warning) = file_mode::open_to_all(&path).filter(|_| is_secret) {
                warn!("{}: {field}: {warning}", self.account);
            }
        }
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) => return fault(format!("cannot be read ({error}); put the key there")),
        };
        match as_text(&bytes) {
            Some(text) => Some((field.to_owned(), text)),
            None => fault("is saved in another encoding than UTF-8, such as UTF-16; save it as plain text".to_owned()),
        }
    }

    fn read_env(&self, field: &str, name: &str) -> Option<(String, Zeroizing<String>)> {
        match std::env::var(name) {
            Ok(text) => Some((field.to_owned(), Zeroizing::new(text))),
            Err(_) => {
                self.fault(field, &format!("names the environment variable {name}, which is not set to text; set it"));
                None
            }
        }
    }

    /// Reports every field that no code has read: a spelling mistake must not be silently ignored.
    pub(super) fn finish(self) {
        for name in self.table.keys() {
            self.fault(name, "is not a known field; remove it or correct its spelling");
        }
    }
}

/// The text of a key file, without the byte order mark that some editors write. UTF-16 is rejected. In a PEM file,
/// bytes outside the BEGIN and END marks need not be UTF-8.
fn as_text(bytes: &[u8]) -> Option<Zeroizing<String>> {
    if bytes.contains(&0) {
        return None;
    }
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(Zeroizing::new(text.to_owned())),
        Err(_) => {
            let text = Zeroizing::new(String::from_utf8_lossy(bytes).into_owned());
            text.contains("-----BEGIN ").then_some(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::as_text;

    #[test]
    fn a_key_file_is_text_in_one_encoding() {
        let pem = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n";
        for (bytes, text) in [
            (pem.as_bytes().to_vec(), Some(pem.to_owned())),
            ([b"\xEF\xBB\xBF", pem.as_bytes()].concat(), Some(pem.to_owned())),
            ([b"\xB5\xE3\n", pem.as_bytes()].concat(), Some(format!("\u{FFFD}\u{FFFD}\n{pem}"))),
            ([&b"\xFF\xFE"[..], &pem.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()].concat(), None),
            ([&b"\xFE\xFF"[..], &pem.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>()].concat(), None),
            (pem.encode_utf16().flat_map(u16::to_le_bytes).collect(), None),
            (b"\xB5\xE3\xD2\xBB".to_vec(), None),
        ] {
            assert_eq!(as_text(&bytes).as_deref().cloned(), text, "{bytes:x?}");
        }
    }
}
