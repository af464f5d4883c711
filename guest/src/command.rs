//! [`Command`]: one line of the console, taken apart.
//!
//! Invariant: a command borrows the line and never fails to parse; its arguments are checked when they are asked for.

use alloc::{format, string::String};
use core::{fmt::Display, str::FromStr};

use crate::platform::Mac;

/// Why a command cannot be carried out, for people.
pub type CommandError = String;

/// A verb, its words and its `key=value` pairs.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    line: &'a str,
}

impl<'a> Command<'a> {
    /// The command in `line`.
    pub fn new(line: &'a str) -> Self {
        Command { line }
    }

    /// Its first word; empty when there is none.
    pub fn verb(&self) -> &'a str {
        self.line.split_whitespace().next().unwrap_or("")
    }

    /// The `n`th word after the verb that is not a pair, counted from 0.
    pub fn word(&self, n: usize) -> Option<&'a str> {
        self.line.split_whitespace().skip(1).filter(|word| !word.contains('=')).nth(n)
    }

    /// The text of `key=text`.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        let pairs = self.line.split_whitespace().filter_map(|word| word.split_once('='));
        pairs.filter(|(name, _)| *name == key).map(|(_, text)| text).next()
    }

    /// The first word after the verb, parsed.
    ///
    /// # Errors
    /// It is missing or not a `T`; `what` says what is wanted.
    pub fn target<T: FromStr>(&self, what: &str) -> Result<T, CommandError> {
        let word = self.word(0).ok_or_else(|| format!("{}: {what} is missing", self.verb()))?;
        word.parse().map_err(|_| format!("{word} is not {what}"))
    }

    /// The number of `key=number`, or `default`.
    ///
    /// # Errors
    /// The text is not such a number.
    pub fn number<T: FromStr<Err: Display>>(&self, key: &str, default: T) -> Result<T, CommandError> {
        match self.text(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|error| format!("{key}={text}: {error}")),
        }
    }

    /// The address of `key=02:00:00:00:00:01`.
    ///
    /// # Errors
    /// The text is not an address.
    pub fn mac(&self, key: &str) -> Result<Option<Mac>, CommandError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let wrong = || format!("{key}={text}: a MAC address has six bytes, for example 02:00:00:00:00:01");
        let mut mac = Mac::default();
        let mut parts = text.split(':');
        for byte in &mut mac {
            *byte = parts.next().and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(wrong)?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Some(mac)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_pairs_are_told_apart() {
        let command = Command::new(" ping  10.0.0.1 count=3 to=02:00:00:00:00:0a via ");
        assert_eq!((command.verb(), command.word(0), command.word(1)), ("ping", Some("10.0.0.1"), Some("via")));
        assert_eq!((command.number("count", 1u32), command.number("ms", 7u32)), (Ok(3), Ok(7)));
        assert_eq!(command.mac("to"), Ok(Some([2, 0, 0, 0, 0, 10])));
        assert_eq!(Command::new("").verb(), "");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let command = Command::new("source to=02:00:00:00:00 count=many rate=");
        assert!(command.mac("to").unwrap_err().contains("to=02:00:00:00:00: a MAC address"));
        assert!(command.number("count", 1u32).unwrap_err().starts_with("count=many: "));
        assert!(command.number("rate", 1u32).is_err());
        assert_eq!(command.target::<u32>("a number").unwrap_err(), "source: a number is missing");
        assert!(Command::new("x to=02:00:00:00:00:00:00").mac("to").is_err());
    }
}
