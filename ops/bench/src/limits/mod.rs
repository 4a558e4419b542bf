//! The limits of the service on this machine, measured beside it.

mod openssl;
mod pgbench;
mod route;

pub(crate) use openssl::signatures_per_second;
pub(crate) use pgbench::Pgbench;
pub(crate) use route::fsync_and_two_publishes;

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

/// Runs a tool until it ends without blocking other tasks; returns its output as text.
async fn run(mut command: Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output: Output =
        tokio::task::spawn_blocking(move || command.output()).await?.with_context(|| format!("running {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
