//! What a person sees while this tool works: lines on standard error, and a stop on request.
//!
//! Standard output is for what a program may want to read (`env`, `status`).

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

/// The interval between two checks of a wait.
const TICK: Duration = Duration::from_millis(50);
/// How often a long wait reports that it still waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts the clock and handles Ctrl-C, SIGTERM and SIGHUP: from here on they only set a flag, and every wait
/// checks it.
pub fn begin() -> Result<()> {
    BEGUN.get_or_init(Instant::now);
    ctrlc::set_handler(|| STOP.store(true, Ordering::SeqCst))?;
    Ok(())
}

/// One line of progress: how long the command has run, its subject, and what happened.
pub fn say(subject: &str, what: impl std::fmt::Display) {
    let elapsed = BEGUN.get_or_init(Instant::now).elapsed().as_secs_f32();
    eprintln!("{elapsed:6.1}s  {subject:<15} {what}");
}

/// Whether this tool was asked to stop.
pub fn is_stopping() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// Fails once this tool was asked to stop.
///
/// # Errors
/// [`Stopped`]: the command then ends, and what it started is stopped.
pub fn check_stop() -> Result<()> {
    if is_stopping() {
        bail!(Stopped);
    }
    Ok(())
}

/// The command was asked to stop: this is not a fault.
#[derive(Debug)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped on request")
    }
}

impl std::error::Error for Stopped {}

/// Waits until `check` returns true. Ends early with its error, at the limit, or when asked to stop.
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
