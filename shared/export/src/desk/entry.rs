//! One export, as its desk knows it.

use std::sync::Arc;

use runtime::beijing;
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use super::{STAYS, detail};
use crate::error::ExportError;
use crate::make::Made;
use crate::sheet::Sealed;
use crate::sums::Sums;
use crate::task::{Format, Kind};
use crate::write::Progress;

/// See the module.
pub(super) struct Entry {
    maker: String,
    kind: Kind,
    format: Format,
    filters: Value,
    at: OffsetDateTime,
    progress: Arc<Progress>,
    /// When it ended, and how.
    ended: Option<(OffsetDateTime, Ended)>,
}

/// How an export ended.
#[derive(Debug, Clone)]
pub(super) enum Ended {
    Made(Made),
    Failed { code: &'static str, message: String },
}

impl Ended {
    pub(super) fn of(ended: Result<Made, ExportError>) -> Ended {
        match ended {
            Ok(made) => Ended::Made(made),
            Err(error) => Ended::Failed { code: error.code(), message: error.to_string() },
        }
    }
}

/// What its maker may know of an export.
#[derive(Debug, Clone)]
pub struct Known {
    /// What the rows are.
    pub kind: Kind,
    /// The format.
    pub format: Format,
    /// The filters, as its maker gave them.
    pub filters: Value,
    /// When it was requested.
    pub at: OffsetDateTime,
    /// How many rows it will have; `None`: they are not counted yet.
    pub total: Option<i64>,
    /// How many rows are written.
    pub written: i64,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
    /// When it is forgotten and its file is deleted. `None`: it runs.
    pub expires_at: Option<OffsetDateTime>,
    /// How it is.
    pub state: State,
}

/// How an export is.
#[derive(Debug, Clone)]
pub enum State {
    /// It runs.
    Running,
    /// Its file can be fetched.
    Done {
        /// The file.
        sealed: Sealed,
        /// The sums of its rows.
        sums: Sums,
    },
    /// It has failed and has no file.
    Failed {
        /// A code for programs.
        code: &'static str,
        /// The reason in words.
        message: String,
    },
}

impl Known {
    /// The name for the caller's disk: what it is, when it was made in Beijing, and the end of its id.
    pub(super) fn file_name(&self, id: &str) -> String {
        let form = format_description!("[year][month][day]-[hour][minute][second]");
        let at = self.at.to_offset(beijing::OFFSET).format(form).unwrap_or_default();
        format!("{}-{at}-{}.{}", self.kind, &id[id.len().saturating_sub(6)..], self.format)
    }
}

impl Entry {
    pub(super) fn begun(maker: String, kind: Kind, format: Format, filters: Value, at: OffsetDateTime) -> Entry {
        Entry { maker, kind, format, filters, at, progress: Arc::default(), ended: None }
    }

    pub(super) fn maker(&self) -> &str {
        &self.maker
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    pub(super) fn at(&self) -> OffsetDateTime {
        self.at
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    pub(super) fn runs(&self) -> bool {
        self.ended.is_none()
    }

    pub(super) fn is_over(&self, now: OffsetDateTime) -> bool {
        self.ended.as_ref().is_some_and(|(at, _)| now >= *at + STAYS)
    }

    /// Whether the caller may know of it.
    pub(super) fn is_for(&self, maker: &str, now: OffsetDateTime) -> bool {
        self.maker == maker && !self.is_over(now)
    }

    pub(super) fn end(&mut self, ended: Ended, now: OffsetDateTime) {
        self.ended = Some((now, ended));
    }

    /// What the audit log says of it.
    pub(super) fn detail(&self, made: &Made) -> Value {
        detail(self.kind, self.format, &self.filters, made)
    }

    pub(super) fn known(&self) -> Known {
        let ended_at = self.ended.as_ref().map(|(at, _)| *at);
        let state = match &self.ended {
            None => State::Running,
            Some((_, Ended::Made(made))) => State::Done { sealed: made.sealed.clone(), sums: made.sums.clone() },
            Some((_, Ended::Failed { code, message })) => State::Failed { code, message: message.clone() },
        };
        Known {
            kind: self.kind,
            format: self.format,
            filters: self.filters.clone(),
            at: self.at,
            total: self.progress.total(),
            written: self.progress.written(),
            ended_at,
            expires_at: ended_at.map(|at| at + STAYS),
            state,
        }
    }
}
