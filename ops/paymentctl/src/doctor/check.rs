//! One check and its result.

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Ok,
    /// Not checked: no variable names it.
    Skipped,
    /// It works, but a person should look at it.
    Warning,
    /// It does not work, or soon will not.
    Failed,
}

impl State {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Skipped => "skipped",
            State::Warning => "warning",
            State::Failed => "failed",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// The result.
    pub state: State,
    /// In words.
    pub said: String,
    /// What to do; empty if the check is ok.
    pub remedy: String,
}

impl Check {
    pub(super) fn ok(name: impl Into<String>, said: impl Into<String>) -> Check {
        Check { name: name.into(), state: State::Ok, said: said.into(), remedy: String::new() }
    }

    pub(super) fn skipped(name: &str, remedy: &str) -> Check {
        Check {
            name: name.to_owned(),
            state: State::Skipped,
            said: "not looked at".to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    pub(super) fn warning(name: impl Into<String>, said: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { name: name.into(), state: State::Warning, said: said.into(), remedy: remedy.into() }
    }

    pub(super) fn failed(name: impl Into<String>, said: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { name: name.into(), state: State::Failed, said: said.into(), remedy: remedy.into() }
    }

    pub(super) fn line(&self) -> String {
        let Check { name, state, said, remedy } = self;
        let remedy = if remedy.is_empty() { String::new() } else { format!("; {remedy}") };
        format!("{:<8} {name}: {said}{remedy}", state.as_str())
    }
}
