//! What is wrong with a configuration file, and how it is told.
//!
//! Invariant: whatever bytes the file holds, a message can be rendered: it names file, line, column and key, shows the
//! line with a caret under the place, and nothing of the file reaches the terminal as a control character.

use serde::Serialize;
use std::{fmt, io, ops::Range, path::PathBuf};

/// Most characters of a line that are shown.
const LINE_SHOWN: usize = 160;
/// Most characters of a message or a key.
const TEXT_SHOWN: usize = 400;

/// Why a configuration was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file was named, and none is at the places that are looked at.
    #[error("no configuration file: looked for {}; name one, for example `trunkline up FILE`", list(.0))]
    Nowhere(Vec<PathBuf>),
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}; {hint}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The file can be read and is wrong.
    #[error("{0}")]
    Wrong(Box<Wrong>),
}

/// One thing that is wrong in a file, with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// The file as it was named.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Full name of the key, for example `guests.web.ports[1].vlan`; empty when the text is not TOML at all.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What is allowed, or what to do.
    pub help: Option<String>,
    /// The line, control characters replaced; of a long line the part around the place.
    pub source_line: String,
    /// Characters of `source_line` before the caret.
    pub indent: usize,
    /// Characters that the caret covers, at least 1.
    pub width: usize,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file.display(), self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let (pad, caret) = (" ".repeat(self.indent), "^".repeat(self.width));
        writeln!(f, "{}", self.message)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", self.source_line)?;
        write!(f, "{margin} | {pad}{caret}")?;
        match &self.help {
            Some(help) => write!(f, "\n{margin} = {help}"),
            None => Ok(()),
        }
    }
}

/// A fault at a byte range of the text, before it is told to anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Bytes of the text that are wrong.
    pub(super) span: Range<usize>,
    /// Full name of the key.
    pub(super) key: String,
    /// What is wrong.
    pub(super) what: String,
    /// What is allowed.
    pub(super) help: Option<String>,
    /// Byte offset of an earlier place that this one collides with.
    pub(super) earlier: Option<usize>,
}

impl Fault {
    /// A fault of `key` at `span`.
    pub(super) fn new(span: Range<usize>, key: impl Into<String>, what: impl Into<String>) -> Fault {
        Fault { span, key: key.into(), what: what.into(), help: None, earlier: None }
    }

    /// Says what is allowed, or what to do.
    pub(super) fn help(mut self, help: impl Into<String>) -> Fault {
        self.help = Some(help.into());
        self
    }

    /// Points at the earlier place which this one collides with.
    pub(super) fn earlier(mut self, offset: usize) -> Fault {
        self.earlier = Some(offset);
        self
    }

    /// Finds line and column in `text`, and makes the message.
    pub(super) fn tell(self, file: PathBuf, text: &str) -> ConfigError {
        let place = Place::of(text, self.span.start);
        let before = place.column - 1;
        let skipped = if before > LINE_SHOWN / 2 { before - LINE_SHOWN / 4 } else { 0 };
        let shown: String = place.content.chars().skip(skipped).take(LINE_SHOWN).collect();
        let indent = before - skipped;
        let covered = text.get(place.start..self.span.end).map_or(0, |covered| covered.chars().count());
        let room = shown.chars().count().saturating_sub(indent);
        let width = covered.saturating_sub(before).min(room).max(1);
        let mut message = cut(&self.what);
        if let Some(earlier) = self.earlier {
            message.push_str(&format!(" (first in line {})", Place::of(text, earlier).line));
        }
        ConfigError::Wrong(Box::new(Wrong {
            file,
            line: place.line,
            column: place.column,
            key: printable(&cut(&self.key)),
            message: printable(&message),
            help: self.help.as_deref().map(|help| printable(&cut(help))),
            source_line: printable(&shown),
            indent,
            width,
        }))
    }
}

/// Where a byte offset is.
struct Place<'a> {
    line: usize,
    column: usize,
    start: usize,
    content: &'a str,
}

impl<'a> Place<'a> {
    fn of(text: &'a str, offset: usize) -> Place<'a> {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let (before, after) = text.split_at(offset);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = after.find('\n').map_or(text.len(), |newline| offset + newline);
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        let column = before.get(start..).map_or(0, |line| line.chars().count()) + 1;
        let content = text.get(start..end).unwrap_or_default().trim_end_matches('\r');
        Place { line, column, start, content }
    }
}

/// The beginning of a text, for what a file holds may be long.
fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_SHOWN) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The text with each control character replaced by one blank or one replacement character, so that columns hold.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" and ")
}
