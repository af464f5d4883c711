//! The table of checks: printed line by line while they run, or as JSON when they are over.

use std::{
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use serde::Serialize;

use super::DemoError;

/// One row.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// It held. A check that was skipped did not.
    pub ok: bool,
    /// It could not be run here.
    pub skipped: bool,
    /// What there is to tell: figures, or why not.
    pub detail: String,
}

/// How a check went.
pub(super) enum Outcome {
    Held(String),
    Failed(String),
    Skipped(String),
}

impl From<Result<String, String>> for Outcome {
    fn from(result: Result<String, String>) -> Self {
        result.map_or_else(Outcome::Failed, Outcome::Held)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    checks: &'a [Check],
    ok: bool,
    seconds: f64,
}

/// The rows so far.
pub(super) struct Table {
    json: bool,
    checks: Vec<Check>,
}

/// Columns of the names.
const WIDTH: usize = 62;

impl Table {
    pub(super) fn new(json: bool) -> Self {
        Table { json, checks: Vec::new() }
    }

    /// A line for people.
    pub(super) fn say(&self, text: &str) -> Result<(), DemoError> {
        if self.json {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(DemoError::Output)
    }

    /// Says what is checked, checks it, and says how it went.
    pub(super) fn check<R: Into<Outcome>>(&mut self, name: &str, run: impl FnOnce() -> R) -> Result<(), DemoError> {
        if !self.json {
            // What is going on is seen before it is over.
            let mut out = io::stdout().lock();
            write!(out, "  {name:<WIDTH$} ").and_then(|()| out.flush()).map_err(DemoError::Output)?;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| run().into()));
        let outcome = outcome.unwrap_or_else(|_| Outcome::Failed("it panicked, see above".to_owned()));
        let (ok, skipped, detail) = match outcome {
            Outcome::Held(detail) => (true, false, detail),
            Outcome::Failed(detail) => (false, false, detail),
            Outcome::Skipped(detail) => (false, true, detail),
        };
        let word = if ok {
            "ok     "
        } else if skipped {
            "skipped"
        } else {
            "FAILED "
        };
        self.checks.push(Check { name: name.to_owned(), ok, skipped, detail: detail.clone() });
        self.say(&format!("{word} {detail}"))
    }

    /// The end: true when all held. A check that was skipped is no failure, and is counted aloud.
    pub(super) fn end(&self, took: Duration) -> Result<bool, DemoError> {
        let count = |wanted: fn(&Check) -> bool| self.checks.iter().filter(|check| wanted(check)).count();
        let (held, skipped) = (count(|check| check.ok), count(|check| check.skipped));
        let failed = self.checks.len() - held - skipped;
        let ok = failed == 0 && held > 0;
        if self.json {
            let report = Report { checks: &self.checks, ok, seconds: took.as_secs_f64() };
            let text = serde_json::to_string(&report).map_err(|error| DemoError::Output(error.into()))?;
            let mut out = io::stdout().lock();
            writeln!(out, "{text}").and_then(|()| out.flush()).map_err(DemoError::Output)?;
        }
        self.say(&format!("\n  {held} held, {failed} failed, {skipped} skipped, in {:.1} s", took.as_secs_f64()))?;
        Ok(ok)
    }
}
