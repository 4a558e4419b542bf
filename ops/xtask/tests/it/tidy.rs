//! Holds by reading the source what the README promises by absence.

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// Every `.rs` file below a folder of the repository: its path from the root, and its lines without comments, up to the
/// unit tests at its end.
pub fn sources(folder: &str) -> Vec<(String, Vec<String>)> {
    let files = files(folder, "rs");
    files.into_iter().map(|(path, text)| (path, code(&text).into_iter().map(str::to_owned).collect())).collect()
}

/// Every file below a folder of the repository whose name ends like this: its path from the root, and its text.
pub fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().display().to_string(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no .{extension} below {folder}");
    found
}

/// The lines without comments, up to an inline module of tests. A `mod tests;` near the top ends nothing.
pub(crate) fn code(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let opens_module = |line: &&str| line.trim().starts_with("mod ") && line.trim().ends_with('{');
    let tests =
        (0..lines.len()).find(|n| lines[*n].trim() == "#[cfg(test)]" && lines.get(n + 1).is_some_and(opens_module));
    let end = tests.unwrap_or(lines.len());
    lines[..end].iter().copied().filter(|line| !line.trim_start().starts_with("//")).collect()
}

/// What the root may hold beside hidden files: a tool's leavings would be committed with the next change.
const ROOT: [&str; 14] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "api",
    "deny.toml",
    "docker-compose.yml",
    "migrations",
    "ops",
    "shared",
    "target",
    "worker",
];

#[test]
fn nothing_lies_about_at_the_root() {
    let names = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let strange: Vec<String> = names.filter(|name| !name.starts_with('.') && !ROOT.contains(&name.as_str())).collect();
    assert_eq!(strange, [] as [&str; 0]);
}

#[test]
fn reading_stops_at_inline_tests_and_not_at_a_module_of_tests() {
    let text = "use a;\n#[cfg(test)]\nmod tests;\n// said\nfn f() {}\n#[cfg(test)]\nmod tests {\n    use b;\n}\n";
    assert_eq!(code(text), ["use a;", "#[cfg(test)]", "mod tests;", "fn f() {}"]);
}

/// The lines of `folders`, except in paths that start with one of `except`, that hold one of `words`.
fn offences(folders: &[&str], except: &[&str], words: &[&str]) -> Vec<String> {
    let files = folders.iter().flat_map(|folder| sources(folder));
    let files = files.filter(|(path, _)| !except.iter().any(|start| path.starts_with(start)));
    files
        .flat_map(|(path, lines)| lines.into_iter().map(move |line| format!("{path}: {}", line.trim())))
        .filter(|line| words.iter().any(|word| line.split_once(": ").is_some_and(|(_, code)| code.contains(word))))
        .collect()
}

const SERVICE: &[&str] = &[
    "shared/domain/src",
    "shared/runtime/src",
    "shared/gateway/src",
    "shared/broker/src",
    "shared/store/src",
    "shared/export/src",
    "api/src",
    "worker/src",
    "ops/paymentctl/src",
];

/// The storeys from the ground up, and what each may stand on. The compiler holds what the manifests say; this holds the manifests.
const STOREYS: &[(&str, &[&str])] = &[
    ("shared/domain", &[]),
    ("shared/runtime", &["domain"]),
    ("shared/gateway", &["domain", "runtime"]),
    ("shared/broker", &["domain", "runtime"]),
    ("shared/store", &["domain", "runtime", "gateway"]),
    ("shared/export", &["domain", "runtime", "store"]),
];

/// The crates of ours that the program of a manifest is built from, without those of its tests.
fn crates_of_ours(manifest: &str) -> Vec<&str> {
    let needed = manifest.split_once("[dependencies]").map_or("", |(_, rest)| rest);
    let needed = needed.split("\n[").next().unwrap_or_default();
    needed.lines().filter_map(|line| line.strip_prefix("payment-")?.split(['.', ' ', '=']).next()).collect()
}

#[test]
fn storeys_stand_on_those_below_alone() {
    for (folder, below) in STOREYS {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let mut found = crates_of_ours(&manifest);
        found.retain(|name| !below.contains(name));
        assert_eq!(found, [""; 0], "{folder} stands on what is above it");
    }
    let planted =
        "[dependencies]\nbytes = \"1\"\npayment-store.workspace = true\n\n[dev-dependencies]\npayment-api = \"1\"\n";
    assert_eq!(crates_of_ours(planted), ["store"]);
}

#[test]
fn the_domain_does_no_io() {
    let words = ["tokio", "lapin", "reqwest", "std::fs", "std::net", "async "];
    assert_eq!(offences(&["shared/domain/src"], &[], &words), [""; 0]);
    // The column types, which belong beside the types; they query no database.
    assert_eq!(offences(&["shared/domain/src"], &["shared/domain/src/columns.rs"], &["sqlx::"]), [""; 0]);
}

/// Settling takes what gateways have signed; tables take what settling has decided.
#[test]
fn tables_do_not_know_the_gateways() {
    let rooms = &["shared/store/src/tables", "shared/store/src/upkeep", "shared/store/src/cache"];
    assert_eq!(offences(rooms, &[], &["gateway::", "crate::settle"]), [""; 0]);
    let rooms = &["shared/store/src/tables", "shared/store/src/upkeep"];
    assert_eq!(offences(rooms, &[], &["crate::cache"]), [""; 0]);
}

#[test]
fn sql_stays_in_the_database_module() {
    assert_eq!(
        offences(
            SERVICE,
            &["shared/store/src/tables/", "shared/store/src/upkeep/", "shared/store/src/connect.rs"],
            &["sqlx::query", "query!(", "query_as", "query_scalar"]
        ),
        [""; 0]
    );
}

#[test]
fn database_functions_neither_begin_nor_commit() {
    assert_eq!(offences(&["shared/store/src"], &[], &[".begin()", ".commit()", ".rollback()"]), [""; 0]);
}

#[test]
fn amqp_stays_in_its_module_and_only_the_consumer_acknowledges() {
    let rooms = &["shared/broker/src/", "worker/src/consumer/mod.rs"];
    assert_eq!(offences(SERVICE, rooms, &["use lapin", " lapin::", "(lapin::", "<lapin::", "&lapin::"]), [""; 0]);
    assert_eq!(offences(SERVICE, &["worker/src/consumer/mod.rs"], &[".ack(", ".nack(", ".reject("]), [""; 0]);
}

/// The client library's own close has no time limit: it hangs while the broker blocks the connection.
#[test]
fn connections_to_the_broker_are_closed_within_a_bound() {
    assert_eq!(offences(SERVICE, &["shared/broker/src/"], &["connection.close(", ".close(200"]), [""; 0]);
}

/// What decides reads the database: only one route shows an order as a copy has it.
#[test]
fn copies_are_for_showing() {
    assert_eq!(
        offences(SERVICE, &["shared/store/src/cache/redis.rs"], &["use ::redis", " ::redis::", "(::redis::"]),
        [""; 0]
    );
    let rooms = &["api/src/routes/orders/mod.rs"];
    assert_eq!(offences(&["api/src", "worker/src"], rooms, &["cache.orders.get("]), [""; 0]);
}

#[test]
fn a_providers_words_stop_at_its_adapter() {
    let words = ["out_trade_no", "out_request_no", "out_refund_no", "notify_id", "mchid", "total_fee", "biz_content"];
    assert_eq!(offences(SERVICE, &["shared/gateway/src/"], &words), [""; 0]);
}

#[test]
fn money_is_never_a_float() {
    let rooms = &[
        "shared/domain/src",
        "shared/gateway/src/alipay",
        "shared/gateway/src/wechat",
        "shared/store/src/tables",
        "shared/store/src/upkeep",
    ];
    assert_eq!(offences(rooms, &[], &["f64", "f32"]), [""; 0]);
}

#[test]
fn only_problem_picks_the_status_of_an_error() {
    let rooms = &["api/src/answer/problem.rs", "api/src/routes/callbacks.rs"];
    let words = ["StatusCode::INTERNAL_SERVER_ERROR", "StatusCode::CONFLICT", "StatusCode::UNPROCESSABLE_ENTITY"];
    assert_eq!(offences(&["api/src"], rooms, &words), [""; 0]);
}

/// Else the drill of clock steps would step some of what reads the time, and not the rest.
#[test]
fn only_the_clock_reads_the_time_of_day() {
    let words = ["SystemTime::now(", "OffsetDateTime::now_", "UtcDateTime::now(", "Uuid::now_v7(", "Timestamp::now("];
    // The name of a folder is no time.
    let except = ["shared/runtime/src/clock.rs", "shared/gateway/src/accounts/tests.rs"];
    assert_eq!(offences(SERVICE, &except, &words), [""; 0]);
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let folders = ["shared", "api", "worker", "ops"];
    let long: Vec<String> = folders
        .iter()
        .flat_map(|folder| sources(folder))
        .filter_map(|(path, _)| {
            let lines = fs::read_to_string(root().join(&path)).unwrap().lines().count();
            (lines > 500).then(|| format!("{path}: {lines}"))
        })
        .collect();
    assert_eq!(long, [""; 0]);
}

/// Whether the parameters that follow a function's name hold a tuple of two names or more. A colon follows a pattern and
/// no type. `Path((a, b))` takes a type of a library apart, so it is none.
fn holds_tuple(signature: &str) -> bool {
    let bytes = signature.as_bytes();
    let (mut angles, mut open) = (0, Vec::new());
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'<' if open.is_empty() => angles += 1,
            b'>' if open.is_empty() && bytes[at - 1] != b'-' => angles -= 1,
            b'(' if angles == 0 => open.push(at),
            b')' if angles == 0 => {
                let Some(from) = open.pop() else { return false };
                if open.is_empty() {
                    return false;
                }
                let is_pattern = open.len() == 1 && bytes.get(at + 1) == Some(&b':');
                if is_pattern && !bytes[from - 1].is_ascii_alphanumeric() && signature[from..at].contains(',') {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// The functions in some code that have such a parameter.
fn with_tuples(code: &str) -> Vec<&str> {
    let functions = code.split("fn ").skip(1).filter_map(|rest| {
        let (name, signature) = rest.split_at(rest.find(|c: char| !c.is_alphanumeric() && c != '_')?);
        (signature.starts_with(['(', '<']) && holds_tuple(signature)).then_some(name)
    });
    functions.collect()
}

/// Clippy counts a tuple as one parameter, and its caller sees no names. A struct has a name, and so have its fields.
#[test]
fn no_parameter_is_a_tuple() {
    let planted = "fn one((a, b): (A, B)) {}\npub async fn two<F: Fn(A) -> B>(\n    &self,\n    (mut a, b): &C,\n) {}\n\
        fn three(a: A, &(b, _): &(A, B)) {}\nfn four<'a>(\n    (a, (b, c)): D<'a>,\n    e: impl Fn(A, B) -> C,\n) {}\n\
        fn fine(a: (A, B), f: impl Fn(A, B), Path((b, c)): Path<(B, C)>, D { d, e }: D, (): ()) { g((a, b)) }";
    assert_eq!(with_tuples(planted), ["one", "two", "three", "four"]);
    let files = ["shared", "worker"].iter().flat_map(|folder| sources(folder));
    let mut found = Vec::new();
    for (path, lines) in files.filter(|(path, _)| path.contains("/src/")) {
        found.extend(with_tuples(&lines.join("\n")).into_iter().map(|name| format!("{path}: {name}")));
    }
    assert_eq!(found, [""; 0]);
}

/// Whether a line of code waits longer than a poll may.
fn sleeps_long(line: &str) -> bool {
    // Without what stands in quotes.
    let code: String = line.split('"').step_by(2).collect();
    let Some((_, wait)) = code.split_once("sleep(") else { return false };
    let milliseconds = wait
        .split("from_millis(")
        .skip(1)
        .filter_map(|rest| rest.split_once(')')?.0.replace('_', "").parse::<u64>().ok());
    ["from_secs", "from_mins"].iter().any(|unit| wait.contains(unit)) || milliseconds.max() > Some(100)
}

/// The part of a file that is test code: all of it, or the unit tests at its end.
fn test_code<'a>(path: &str, text: &'a str) -> &'a str {
    let is_test = ["ops/e2e/", "ops/testkit/"].iter().any(|start| path.starts_with(start));
    if is_test || path.contains("/tests/") || path.ends_with("tests.rs") {
        return text;
    }
    text.split_once("#[cfg(test)]\nmod tests {").map_or("", |(_, tests)| tests)
}

/// The lines of test code that wait longer than a poll may, and do not say why.
fn long_sleeps(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = test_code(path, text).lines().map(str::trim).collect();
    let has_reason = |n: usize| n > 0 && lines[n - 1].starts_with("// Real time:");
    let long = (0..lines.len()).filter(|n| sleeps_long(lines[*n]) && !has_reason(*n));
    long.map(|n| format!("{path}: {}", lines[n])).collect()
}

/// A test that sleeps for a moment fails on a slow machine and wastes time on a fast one. So a test polls for what shows
/// that something has happened, or waits for something that comes after what must not happen.
#[test]
fn no_test_sleeps_longer_than_a_poll_without_a_reason() {
    let planted = [
        "sleep(Duration::from_millis(100)).await;",
        "sleep(Duration::from_millis(101)).await;",
        "// Real time: an outage.",
        "sleep(STEP + Duration::from_secs(1)).await;",
        "sleep(Duration::from_secs(1)).await;",
    ];
    let (of, planted) = (|n: usize| format!("a/tests/b.rs: {}", planted[n]), planted.join("\n"));
    assert_eq!(long_sleeps("a/tests/b.rs", &planted), [of(1), of(4)]);
    assert_eq!(long_sleeps("a/src/b.rs", &planted), [""; 0]);
    assert_eq!(long_sleeps("a/src/b.rs", &format!("#[cfg(test)]\nmod tests {{\n{planted}\n}}")).len(), 2);
    let all = ["shared", "api", "worker", "ops"].iter().flat_map(|folder| files(folder, "rs"));
    let found: Vec<String> = all.flat_map(|(path, text)| long_sleeps(&path, &text)).collect();
    assert_eq!(found, [""; 0]);
}

/// The words that `ops/words.md` gives up: those in backticks in the third column of its table, and in its last line.
fn words_given_up(page: &str) -> Vec<String> {
    let terms = page.split("## Log fields").next().unwrap_or_default();
    let rows = terms.lines().filter(|line| line.starts_with("| "));
    let third = rows.filter_map(|line| line.trim_end_matches('|').rsplit('|').next());
    let last = page.lines().rev().find(|line| !line.is_empty());
    let quoted = third.chain(last).flat_map(|text| text.split('`').skip(1).step_by(2));
    quoted.filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())).map(str::to_owned).collect()
}

/// The words of a text in lower case, without what stands in backticks.
fn words_of(text: &str) -> Vec<String> {
    let plain: String = text.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    plain.split(|letter: char| !letter.is_alphanumeric() && letter != '_').map(str::to_lowercase).collect()
}

/// The lines of a Rust file that are comments.
fn comments(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_start).filter(|line| line.starts_with("//")).collect()
}

#[test]
fn comments_and_documents_use_the_words_of_the_project() {
    let given_up = words_given_up(&fs::read_to_string(root().join("ops/words.md")).unwrap());
    assert!(given_up.len() > 10 && given_up.contains(&"whoever".to_owned()), "{given_up:?}");
    let wrong = |path: &str, line: &str| -> Vec<String> {
        words_of(line)
            .into_iter()
            .filter(|word| given_up.iter().any(|one| word.strip_suffix('s').unwrap_or(word) == one || word == one))
            .map(|word| format!("{path}: {word}: {line}"))
            .collect()
    };
    assert_eq!(wrong("planted", "// Whoever asks is told `nobody` of two roads").len(), 3);
    let folders = ["shared", "api", "worker", "ops"];
    let mut found = Vec::new();
    for (path, text) in folders.iter().flat_map(|folder| files(folder, "rs")) {
        found.extend(comments(&text).into_iter().flat_map(|line| wrong(&path, line)));
    }
    for (path, text) in ["shared", "api", "ops", "migrations"].iter().flat_map(|folder| files(folder, "md")) {
        // The page itself names them.
        let lines = if path == "ops/words.md" { Vec::new() } else { outside_of_code_blocks(&text) };
        found.extend(lines.into_iter().flat_map(|line| wrong(&path, line)));
    }
    for page in ["README.md", "SECURITY.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        found.extend(outside_of_code_blocks(&text).into_iter().flat_map(|line| wrong(page, line)));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn outside_of_code_blocks(text: &str) -> Vec<&str> {
    let mut is_code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            lines.push(line);
        }
    }
    lines
}

/// How a variable of the environment is read; its name in quotes follows.
const READS: &[&str] = &[
    "env.optional(",
    "env.optional_secret(",
    "env.required(",
    "env.secret(",
    "env.address(",
    "env.optional_address(",
    "env.file(",
    "env.parse(",
    "env.parse_or(",
    "env.switch(",
    "(env, ",
    "env = ",
    "env::var(",
    "env::var_os(",
    "testkit::env(",
    "crate::env(",
];

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

fn variables(line: &str) -> Vec<String> {
    let after = READS.iter().flat_map(|read| line.split(&format!("{read}\"")).skip(1).collect::<Vec<_>>());
    let names = after.filter_map(|rest| rest.split_once('"').map(|(name, _)| name));
    names.filter(|name| is_variable(name)).map(str::to_owned).collect()
}

#[test]
fn the_example_names_every_variable_and_each_once() {
    let example = fs::read_to_string(root().join(".env.example")).unwrap();
    let settings = example.lines().filter_map(|line| line.strip_prefix("# ").unwrap_or(line).split_once('='));
    let mut named: Vec<&str> = settings.map(|(name, _)| name).filter(|name| is_variable(name)).collect();
    named.sort_unstable();
    let twice: Vec<&[&str]> = named.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");

    let lines = ["shared", "api", "worker", "ops"].iter().flat_map(|folder| sources(folder));
    let mut read: Vec<String> = lines.flat_map(|(_, lines)| lines).flat_map(|line| variables(&line)).collect();
    read.sort_unstable();
    read.dedup();
    assert!(read.len() > 25, "{read:?}");
    // Everybody's, and Cargo's own.
    read.retain(|name| !["PATH", "CARGO"].contains(&name.as_str()) && !named.contains(&name.as_str()));
    assert_eq!(read, [""; 0]);
}
