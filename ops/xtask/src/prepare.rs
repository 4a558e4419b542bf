//! Writes and checks the data in `.sqlx`, from which checked queries compile without a database.
//!
//! The compiler writes it while it checks each query against a database with the migrations. Only the files with
//! queries are compiled again: their timestamps are changed and then restored, so that nothing else is rebuilt later.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

use crate::{
    cargo::{Workspace, cargo, must},
    rundir::checkout,
    servers::Set,
    ui::say,
};

/// The database with only the migrations.
const SCRATCH: &str = "scratch";

/// Writes `.sqlx` again.
pub fn write(set: &Set) -> Result<()> {
    migrate_scratch(set)?;
    let fresh = generate(set)?;
    let folder = checkout().join(".sqlx");
    let differences = differences(&committed(&folder)?, &fresh);
    if differences.is_empty() {
        say(".sqlx", format_args!("up to date, {} queries", fresh.len()));
        return Ok(());
    }
    differences.iter().for_each(|difference| say(".sqlx", difference));
    fs::create_dir_all(&folder)?;
    for name in committed(&folder)?.keys().filter(|name| !fresh.contains_key(*name)) {
        fs::remove_file(folder.join(name))?;
    }
    for (name, text) in &fresh {
        fs::write(folder.join(name), text)?;
    }
    say(".sqlx", format_args!("written, {} queries: commit it", fresh.len()));
    Ok(())
}

/// Compares `.sqlx` with what the migrated database reports now.
///
/// # Errors
/// When the data of a query is missing, outdated or left over; each is named.
pub fn check(set: &Set) -> Result<()> {
    migrate_scratch(set)?;
    let fresh = generate(set)?;
    let differences = differences(&committed(&checkout().join(".sqlx"))?, &fresh);
    if !differences.is_empty() {
        bail!(".sqlx is not up to date: run `cargo xtask prepare` and commit it\n  {}", differences.join("\n  "));
    }
    say(".sqlx", format_args!("up to date, {} queries", fresh.len()));
    Ok(())
}

/// Applies the migrations with `psql`: the service's own command may not compile before this is done.
fn migrate_scratch(set: &Set) -> Result<()> {
    set.create_database(SCRATCH)?;
    let mut files = children(&checkout().join("migrations"))?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    for file in &files {
        let begins = fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?;
        set.sql_file(SCRATCH, file, !begins.starts_with("-- no-transaction"))?;
    }
    say("migrations", format_args!("{} applied to an empty database", files.len()));
    Ok(())
}

/// The data that the compiler writes about each query.
fn generate(set: &Set) -> Result<BTreeMap<String, String>> {
    let sources = Sources::find()?;
    if sources.files.is_empty() {
        return Ok(BTreeMap::new());
    }
    let folder = set.dir.join("sqlx");
    crate::files::remove_dir(&folder)?;
    fs::create_dir(&folder)?;
    let mut check = cargo(&["check", "--quiet", "--locked", "--all-targets"]);
    for package in &sources.packages {
        check.args(["-p", package]);
    }
    connect(&mut check, set, &folder)?;
    {
        let _touched = Touched::now(&sources.files)?;
        must("a query does not fit the migrations", &mut check)?;
    }
    committed(&folder)
}

fn connect(check: &mut Command, set: &Set, folder: &Path) -> Result<()> {
    let url = set.database_url(SCRATCH)?;
    check.env("SQLX_OFFLINE", "false").env("SQLX_OFFLINE_DIR", folder).env("DATABASE_URL", url);
    Ok(())
}

/// The files of one folder of query data by name; none if there is no such folder.
fn committed(folder: &Path) -> Result<BTreeMap<String, String>> {
    if !folder.is_dir() {
        return Ok(BTreeMap::new());
    }
    let mut found = BTreeMap::new();
    for file in children(folder)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("query-") {
            found.insert(name, fs::read_to_string(&file)?);
        }
    }
    Ok(found)
}

fn differences(committed: &BTreeMap<String, String>, fresh: &BTreeMap<String, String>) -> Vec<String> {
    let missing = fresh.iter().filter(|(name, _)| !committed.contains_key(*name)).map(|file| ("missing", file));
    let left_over = committed.iter().filter(|(name, _)| !fresh.contains_key(*name)).map(|file| ("left over", file));
    let changed = fresh
        .iter()
        .filter(|(name, text)| committed.get(*name).is_some_and(|old| !is_same(old, text)))
        .map(|file| ("outdated", file));
    let named = missing.chain(left_over).chain(changed);
    named.map(|(what, (name, text))| format!("{what}: {name} ({})", begin_of_query(text))).collect()
}

/// Whether the data is the same, whatever its layout.
fn is_same(old: &str, new: &str) -> bool {
    let parse = |text| serde_json::from_str::<serde_json::Value>(text).ok();
    old == new || (parse(old).is_some() && parse(old) == parse(new))
}

fn begin_of_query(text: &str) -> String {
    let data: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let words: Vec<&str> = data["query"].as_str().unwrap_or("unreadable").split_whitespace().collect();
    words.join(" ").chars().take(90).collect()
}

/// The packages and files that contain checked queries.
#[derive(Debug, Default)]
struct Sources {
    packages: Vec<String>,
    files: Vec<PathBuf>,
}

impl Sources {
    fn find() -> Result<Sources> {
        let mut sources = Sources::default();
        for package in Workspace::read()?.packages {
            let before = sources.files.len();
            // This crate only mentions queries in its own code.
            if package.name != env!("CARGO_PKG_NAME") {
                collect(package.dir(), &mut sources.files)?;
            }
            if sources.files.len() > before {
                sources.packages.push(package.name);
            }
        }
        Ok(sources)
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in children(folder)? {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") && has_query(&fs::read_to_string(&path)?)
        {
            files.push(path);
        }
    }
    Ok(())
}

fn has_query(source: &str) -> bool {
    ["query", "query_as", "query_scalar", "query_file", "query_file_as", "query_file_scalar"]
        .iter()
        .any(|name| source.contains(&format!("{name}!(")))
}

fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Files that look changed while this value exists.
#[derive(Debug)]
struct Touched {
    before: Vec<(PathBuf, SystemTime)>,
}

impl Touched {
    fn now(files: &[PathBuf]) -> Result<Touched> {
        let mut touched = Touched { before: Vec::new() };
        for file in files {
            touched.before.push((file.clone(), fs::metadata(file)?.modified()?));
            date(file, SystemTime::now())?;
        }
        Ok(touched)
    }
}

impl Drop for Touched {
    fn drop(&mut self) {
        for (file, time) in &self.before {
            // At worst the file is compiled once more.
            drop(date(file, *time));
        }
    }
}

fn date(file: &Path, time: SystemTime) -> std::io::Result<()> {
    fs::File::options().write(true).open(file)?.set_modified(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, query)| ((*name).to_owned(), format!(r#"{{"query": "{query}"}}"#))).collect()
    }

    #[test]
    fn each_difference_is_named_and_layout_is_none() {
        let committed =
            data(&[("query-1.json", "select 1"), ("query-2.json", "select\\n 2"), ("query-3.json", "select 3")]);
        let mut fresh = data(&[("query-2.json", "select 22"), ("query-4.json", "select 4")]);
        fresh.insert("query-3.json".into(), "{\n\"query\":\"select 3\"}\n".into());
        assert_eq!(
            differences(&committed, &fresh),
            [
                "missing: query-4.json (select 4)",
                "left over: query-1.json (select 1)",
                "outdated: query-2.json (select 22)"
            ]
        );
        assert!(differences(&committed, &committed).is_empty());
    }

    #[test]
    fn a_touched_file_gets_its_date_back() {
        let file = std::env::temp_dir().join(format!("xtask-touched-{}", std::process::id()));
        fs::write(&file, "").unwrap();
        let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        date(&file, old).unwrap();
        {
            let _touched = Touched::now(std::slice::from_ref(&file)).unwrap();
            assert_ne!(fs::metadata(&file).unwrap().modified().unwrap(), old);
        }
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), old);
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn only_checked_queries_count() {
        assert!(has_query(&format!("sqlx::{}!(\"select 1\")", "query_as")));
        assert!(!has_query("sqlx::query(\"select 1\")"));
    }
}
