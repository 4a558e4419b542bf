//! Holds by reading the migrations what `migrations/README.md` asks of them.

use crate::tidy::files;

/// From here on a migration that takes something away says so in its name (`ops/decisions/0013`).
const SAYS_THAT_IT_CONTRACTS: i64 = 13;

/// Whether a statement takes away what an older release may use, or asks of it what it does not give.
fn contracts(statement: &str) -> bool {
    let words = statement.split_whitespace().collect::<Vec<_>>().join(" ");
    let has = |what: &str| words.contains(what);
    let takes = ["drop column", " rename ", "set not null", "drop default", " set data type ", " set schema "];
    let table = words.starts_with("alter table ") && takes.iter().any(|take| has(take));
    // A longer varchar takes nothing away, and a shorter one PostgreSQL refuses while a row needs more.
    let other_types = words.replace(" type varchar(", " ");
    let retyped = words.starts_with("alter table ") && has(" alter column ") && other_types.contains(" type ");
    let demands = words.starts_with("alter table ")
        && words
            .split(',')
            .any(|part| part.contains("add column ") && part.contains(" not null") && !part.contains(" default "));
    words.starts_with("drop table ") || words.starts_with("truncate ") || table || retyped || demands
}

/// What is wrong with the name of a migration, for releases that do not know it and read nothing else of it.
fn faults_of_name(path: &str, text: &str) -> Vec<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let (version, rest) = name.split_once('_').unwrap_or((name, ""));
    let version: i64 = version.parse().expect("a migration begins with its number");
    let from = rest.strip_prefix("contract_from_").and_then(|rest| rest.split('_').next()?.parse::<i64>().ok());
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("--"));
    let statements = lines.collect::<Vec<_>>().join(" ");
    let takes = statements.to_lowercase().split(';').any(|statement| contracts(statement.trim()));
    match from {
        None if rest.starts_with("contract") => vec!["does not say for whom: `NNNN_contract_from_MMMM_what.sql`"],
        None if takes && version >= SAYS_THAT_IT_CONTRACTS => vec!["takes something away and does not say so"],
        Some(from) if !(1..=version).contains(&from) => vec!["is for builds that know a migration that is not there"],
        _ => Vec::new(),
    }
}

/// Trap: a release that still runs, or is started again while another rolls out, finds gone what it reads.
#[test]
fn a_migration_that_takes_something_away_says_from_which_one_on_a_build_can_do_without() {
    for expands in [
        "alter table a add column b text;",
        "alter table a add column b text not null default '';",
        "alter table a add column c int, add constraint b check (c is not null) not valid;",
        "-- drop table a;\ncreate table b (type text not null);",
        "alter table a alter column b type varchar(64), alter column c type varchar(96);",
    ] {
        assert_eq!(faults_of_name("migrations/0013_more.sql", expands), [""; 0], "{expands}");
    }
    for takes in [
        "create table b (c int);\nDROP TABLE a;",
        "alter table a drop column b;",
        "alter table a rename column b to c;",
        "alter table a rename to b;",
        "alter table a\n  alter column b set not null;",
        "alter table a alter column b type bigint;",
        "alter table a alter column b type varchar(64), alter column c type bigint;",
        "alter table a add column b text not null;",
    ] {
        assert_eq!(faults_of_name("migrations/0013_less.sql", takes).len(), 1, "{takes}");
        assert_eq!(faults_of_name("migrations/0013_contract_from_0012_less.sql", takes), [""; 0], "{takes}");
    }
    for wrong in ["0014_contract_less.sql", "0014_contract_from_0015_x.sql", "0014_contract_from_less.sql"] {
        assert_eq!(faults_of_name(wrong, "").len(), 1, "{wrong}");
    }
    for (path, text) in files("migrations", "sql") {
        assert_eq!(faults_of_name(&path, &text), [""; 0], "{path}");
    }
}

/// What is wrong with a migration that builds or drops an index beside the writers.
fn faults_of_migration(text: &str) -> Vec<&'static str> {
    let statements: String =
        text.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join(" ");
    let words = statements.to_lowercase();
    let mut faults = Vec::new();
    if words.split_whitespace().any(|word| word == "concurrently") {
        if !text.starts_with("-- no-transaction") {
            faults.push("runs in a transaction, which such an index refuses: begin with `-- no-transaction`");
        }
        if words.split_whitespace().collect::<Vec<_>>().windows(3).any(|three| three == ["if", "not", "exists"]) {
            faults.push("`if not exists` calls the invalid index of a broken run a success");
        }
        if statements.split(';').filter(|statement| !statement.trim().is_empty()).count() > 1 {
            faults.push("is not alone: half of it stays when the other half fails");
        }
    }
    faults
}

/// Trap: such an index deadlocks with a second runner, is left invalid, and then found to exist.
#[test]
fn an_index_beside_the_writers_has_a_migration_of_its_own() {
    let good = "-- no-transaction\n-- Built concurrently, if not exists is no help.\n\ncreate index concurrently a on b (c);\n";
    assert_eq!(faults_of_migration(good), [""; 0]);
    assert_eq!(faults_of_migration("-- Not concurrently.\ncreate index if not exists a on b (c);"), [""; 0]);
    let bad = "create table b (c int);\nCREATE INDEX CONCURRENTLY\n  IF NOT EXISTS a ON b (c);";
    assert_eq!(faults_of_migration(bad).len(), 3);
    for (path, text) in files("migrations", "sql") {
        assert_eq!(faults_of_migration(&text), [""; 0], "{path}");
    }
}
