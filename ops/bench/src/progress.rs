//! Shows the progress: a bar on a terminal, otherwise one line for each step.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// The progress of the whole run.
pub(crate) struct Progress {
    bar: ProgressBar,
    shown: bool,
}

impl Progress {
    pub(crate) fn new(steps: u64) -> Progress {
        let shown = std::io::stderr().is_terminal();
        let bar = if shown { ProgressBar::new(steps) } else { ProgressBar::hidden() };
        let template = "{elapsed_precise} {wide_bar:.green} {pos}/{len} {msg}";
        // The template is constant and valid; the default would also work.
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        Progress { bar, shown }
    }

    /// Begins a part of the current step.
    pub(crate) fn say(&self, message: &str) {
        self.bar.set_message(message.to_owned());
        if !self.shown {
            eprintln!("bench: {message}");
        }
    }

    /// Ends a step and shows its result.
    pub(crate) fn done(&self, message: &str) {
        self.bar.inc(1);
        if self.shown {
            self.bar.println(format!("  {message}"));
        } else {
            eprintln!("bench:   {message}");
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
