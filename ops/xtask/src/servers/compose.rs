//! The servers from `docker-compose.yml`, if a Docker engine is the only way to run them.
//!
//! Ports, passwords and users are the same as for the native servers. Each folder has its own project name, which
//! keeps two folders apart, and only that project is ever stopped.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    files::write_private,
    rundir,
    ui::{say, wait_until},
};

use super::{
    Kind,
    logins::{DEPLOY, OWNER, REDIS_USER},
    postgres, rabbitmq,
    record::Record,
};

/// Whether a Docker engine answers and Compose is installed.
pub fn is_possible() -> bool {
    let answers = |args: &[&str]| {
        let mut docker = Command::new("docker");
        docker.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        docker.status().is_ok_and(|status| status.success())
    };
    answers(&["compose", "version"]) && answers(&["info"])
}

/// Starts servers and waits until they are ready.
pub fn start(dir: &Path, kinds: &[Kind]) -> Result<()> {
    // All three, whichever are requested: the file needs a value for each of its variables.
    let mut records = Vec::new();
    for kind in Kind::ALL {
        let record = Record::load(dir, kind).map_or_else(|| Record::new(kind), Ok)?;
        record.save(dir)?;
        records.push(record);
    }
    write_variables(dir, &records)?;
    say("servers", "starting in Docker (the first time, the images are fetched)");
    let names: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    let args: Vec<&str> = ["up", "--detach", "--wait"].into_iter().chain(names.iter().map(String::as_str)).collect();
    compose(dir, &args)?;
    for record in records.iter_mut().filter(|record| kinds.contains(&record.kind)) {
        let name = record.kind.to_string();
        if record.kind == Kind::Rabbitmq {
            wait_until(&name, Duration::from_secs(60), || Ok(rabbitmq::create_users(record).is_ok()))?;
        }
        if record.kind == Kind::Postgres {
            sql(dir, "postgres", postgres::create_roles(record)?.as_bytes(), true)?;
        }
        record.is_set_up = true;
        record.save(dir)?;
        say(&name, format_args!("ready on 127.0.0.1:{}", record.port("main")?));
    }
    Ok(())
}

/// Runs `stop`, `kill`, `pause` or `unpause` on one server.
pub fn control(dir: &Path, verb: &str, kind: Kind) -> Result<()> {
    compose(dir, &[verb, &kind.to_string()])
}

/// Stops one server and deletes its data.
pub fn wipe(dir: &Path, kind: Kind) -> Result<()> {
    compose(dir, &["rm", "--force", "--stop", "--volumes", &kind.to_string()])?;
    let volume = format!("{}_{kind}", project(dir));
    let removed = Command::new("docker").args(["volume", "rm", "--force", &volume]).stdout(Stdio::null()).status()?;
    ensure!(removed.success(), "docker could not remove the volume {volume}");
    Ok(())
}

/// Stops all servers, and removes their volumes unless the data is kept.
pub fn down(dir: &Path, keeps_data: bool) -> Result<()> {
    if !dir.join("compose.env").exists() {
        return Ok(());
    }
    compose(dir, if keeps_data { &["down"] } else { &["down", "--volumes"] })
}

/// Whether the container of a server runs.
pub fn is_running(dir: &Path, kind: Kind) -> bool {
    let listed = command(dir).args(["ps", "--status", "running", "--quiet", &kind.to_string()]).output();
    listed.is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
}

/// Runs an SQL script with the `psql` in the container.
pub fn sql(dir: &Path, database: &str, script: &[u8], in_transaction: bool) -> Result<String> {
    use std::io::Write;
    let mut psql = command(dir);
    psql.args(["exec", "-T", "postgres", "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    psql.args(["-U", OWNER, "-d", database]);
    if in_transaction {
        psql.arg("-1");
    }
    let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("psql takes no input")?.write_all(script)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn write_variables(dir: &Path, records: &[Record]) -> Result<()> {
    let mut text = String::new();
    let mut add = |name: &str, value: String| text.push_str(&format!("{name}={value}\n"));
    for record in records {
        let port = record.port("main")?.to_string();
        match record.kind {
            Kind::Postgres => {
                add("POSTGRES_PORT", port);
                add("POSTGRES_PASSWORD", record.secret(OWNER)?.into());
            }
            Kind::Rabbitmq => {
                add("RABBITMQ_PORT", port);
                add("RABBITMQ_MANAGEMENT_PORT", record.port("management")?.to_string());
                add("RABBITMQ_DEPLOY_PASSWORD", record.secret(DEPLOY)?.into());
            }
            Kind::Redis => {
                add("REDIS_PORT", port);
                add("REDIS_PASSWORD", record.secret(REDIS_USER)?.into());
            }
            // Compose never runs the servers of a cluster.
            _ => {}
        }
    }
    write_private(&dir.join("compose.env"), &text)
}

fn compose(dir: &Path, args: &[&str]) -> Result<()> {
    let status = command(dir).args(args).stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let status = status.context("could not run docker")?;
    ensure!(status.success(), "docker compose {} failed: see its messages above", args.join(" "));
    Ok(())
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new("docker");
    command
        .args(["compose", "--project-name", &project(dir), "--file"])
        .arg(rundir::checkout().join("docker-compose.yml"))
        .arg("--env-file")
        .arg(dir.join("compose.env"));
    command
}

fn project(dir: &Path) -> String {
    format!("payment-{}", rundir::path_hash(dir))
}
