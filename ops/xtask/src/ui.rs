//! What a person sees while this tool works: lines on standard error, and a stop when asked.
//!
//! Standard output belongs to what a program may want to read (`env`, `status`).

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

static STOP: AtomicBool = AtomicBool::new(false);
static BEGUN: OnceLock<Instant> = OnceLock::new();

/// How often a wait looks again.
const TICK: Duration = Duration::from_millis(50);
/// How often a long wait says that it is still there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts the clock and takes over Ctrl-C, SIGTERM and SIGHUP: from here on they only ask for a stop,
/// and whoever waits notices.
pub fn begin() -> Result<()> {
    BEGUN.get_or_init(Instant::now);
    ctrlc::set_handler(|| STOP.store(true, Ordering::SeqCst))?;
    Ok(())
}

/// One line of progress: how long the command has run, what it is about, what happened.
pub fn say(subject: &str, what: impl std::fmt::Display) {
    let elapsed = BEGUN.get_or_init(Instant::now).elapsed().as_secs_f32();
    eprintln!("{elapsed:6.1}s  {subject:<15} {what}");
}

/// Whether somebody asked this tool to stop.
pub fn is_stopping() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// An error once somebody asked this tool to stop.
///
/// # Errors
/// The command ends with what it has started being stopped.
pub fn check_stop() -> Result<()> {
    if is_stopping() {
        bail!(Stopped);
    }
    Ok(())
}

/// The command was asked to stop: not a fault of anything.
#[derive(Debug)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped on request")
    }
}

impl std::error::Error for Stopped {}

/// Waits until `check` says yes. Ends early with its error, at the limit, or when asked to stop.
pub fn wait_until(subject: &str, limit: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    let mut said = begun;
    while !check()? {
        check_stop()?;
        if begun.elapsed() > limit {
            bail!("{subject} was not ready after {} s", limit.as_secs());
        }
        if said.elapsed() > PATIENCE {
            said = Instant::now();
            say(subject, format_args!("still starting ({} s)", begun.elapsed().as_secs()));
        }
        sleep(TICK);
    }
    Ok(())
}
