//! Reads typed values out of a TOML tree and keeps the place of each.
//!
//! Invariant: a [`Section`] exists only if every key of its table is known, so a misspelt key is told before the
//! value it was meant for is missed. Each fault carries the byte range and the full name of its key. Read first:
//! TOML 1.0, sections "Keys" and "Table".

use super::error::Fault;
use std::{fmt::Display, ops::Range, str::FromStr};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A value with its full key and place.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    /// Full name, for example `networks.lan.mtu` or `guests.web.ports[0].mac`.
    pub(super) key: String,
    /// Bytes of the value.
    pub(super) span: Range<usize>,
    /// Bytes of the key; for an element of an array those of the value.
    pub(super) key_span: Range<usize>,
    value: &'a DeValue<'a>,
}

/// A table, all of whose keys are known.
#[derive(Debug, Clone)]
pub(super) struct Section<'a> {
    /// Full name; empty for the file itself.
    path: String,
    /// Where a missing key is pointed out.
    span: Range<usize>,
    known: &'static [&'static str],
    table: &'a DeTable<'a>,
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The candidate that looks most like `text`, by the measure of Jaro and Winkler, which favours a common beginning.
pub(super) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let alike = |candidate: &&str| strsim::jaro_winkler(text, candidate);
    candidates.into_iter().max_by(|a, b| alike(a).total_cmp(&alike(b)))
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn root(table: &'a Spanned<DeTable<'a>>, known: &'static [&'static str]) -> Result<Self, Fault> {
        Section::checked(String::new(), 0..0, known, table.get_ref())
    }

    fn checked(
        path: String,
        span: Range<usize>,
        known: &'static [&'static str],
        table: &'a DeTable<'a>,
    ) -> Result<Self, Fault> {
        let unknown = table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        if let Some(key) = unknown.min_by_key(|key| key.span().start) {
            let name = key.get_ref().as_ref();
            let near = nearest(name, known.iter().copied()).unwrap_or_default();
            let section = if path.is_empty() { "at the top of the file".to_owned() } else { format!("in {path}") };
            let what = format!("unknown key `{name}`; the nearest known key is `{near}`");
            let fault = Fault::new(key.span(), join(&path, name), what);
            return Err(fault.help(format!("known {section}: {}", known.join(", "))));
        }
        Ok(Section { path, span, known, table })
    }

    /// The value of `key`, if the file gives one.
    pub(super) fn get(&self, key: &'static str) -> Option<Entry<'a>> {
        debug_assert!(self.known.contains(&key), "{key} is asked for but not known");
        let (name, value) = self.table.get_key_value(key)?;
        Some(Entry { key: join(&self.path, key), span: value.span(), key_span: name.span(), value: value.get_ref() })
    }

    /// The value of `key`, which must be there.
    pub(super) fn need(&self, key: &'static str, allowed: &str) -> Result<Entry<'a>, Fault> {
        self.get(key).ok_or_else(|| self.fault(format!("the key `{key}` is missing")).help(allowed))
    }

    /// The value of `key` as `read` makes it, if the file gives one.
    pub(super) fn map<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Entry<'a>) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        self.get(key).as_ref().map(read).transpose()
    }

    /// A fault of the section as a whole.
    pub(super) fn fault(&self, what: impl Into<String>) -> Fault {
        Fault::new(self.span.clone(), self.path.clone(), what)
    }
}

impl<'a> Entry<'a> {
    /// A fault of this value.
    pub(super) fn fault(&self, what: impl Into<String>) -> Fault {
        Fault::new(self.span.clone(), self.key.clone(), what)
    }

    /// A fault of this key, whatever its value.
    pub(super) fn key_fault(&self, what: impl Into<String>) -> Fault {
        Fault::new(self.key_span.clone(), self.key.clone(), what)
    }

    fn mistyped(&self, wanted: &str) -> Fault {
        let article = if matches!(self.value, DeValue::Integer(_) | DeValue::Array(_)) { "an" } else { "a" };
        self.fault(format!("this is {article} {}; {wanted} is needed", self.value.type_str()))
    }

    /// The text of a string.
    pub(super) fn text(&self) -> Result<&'a str, Fault> {
        match self.value {
            DeValue::String(text) => Ok(text.as_ref()),
            _ => Err(self.mistyped("a string")),
        }
    }

    /// A string that `T` can read.
    pub(super) fn parse<T: FromStr<Err: Display>>(&self) -> Result<T, Fault> {
        self.parse_with(str::parse)
    }

    /// A string that `read` can read.
    pub(super) fn parse_with<T, E: Display>(&self, read: impl FnOnce(&str) -> Result<T, E>) -> Result<T, Fault> {
        read(self.text()?).map_err(|error| self.fault(error.to_string()))
    }

    /// An integer from `low` to `high`, both included.
    pub(super) fn integer<T: TryFrom<i128> + Copy + Into<i128>>(&self, low: T, high: T) -> Result<T, Fault> {
        let DeValue::Integer(integer) = self.value else {
            return Err(self.mistyped(&format!("an integer from {} to {}", low.into(), high.into())));
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|number| (low.into()..=high.into()).contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
            self.fault(format!("{integer} is out of range; allowed are {} to {}", low.into(), high.into()))
        })
    }

    /// true or false.
    pub(super) fn boolean(&self) -> Result<bool, Fault> {
        match self.value {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(self.mistyped("true or false")),
        }
    }

    /// Is the value the boolean false?
    pub(super) fn is_false(&self) -> bool {
        matches!(self.value, DeValue::Boolean(false))
    }

    /// Is the value a table?
    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    /// One of the strings of `choices`, as the value beside it.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Result<T, Fault> {
        let names = || choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let DeValue::String(text) = self.value else {
            return Err(self.mistyped(&format!("one of {}", names())));
        };
        choices.iter().find(|(name, _)| name == text).map(|(_, value)| *value).ok_or_else(|| {
            let near = nearest(text, choices.iter().map(|(name, _)| *name)).unwrap_or_default();
            let what = format!("\"{text}\" is not allowed; the nearest is \"{near}\"");
            self.fault(what).help(format!("allowed: {}", names()))
        })
    }

    /// The elements of an array.
    pub(super) fn list(&self) -> Result<Vec<Entry<'a>>, Fault> {
        let DeValue::Array(array) = self.value else { return Err(self.mistyped("an array")) };
        let entry = |(at, value): (usize, &'a Spanned<DeValue<'a>>)| Entry {
            key: format!("{}[{at}]", self.key),
            span: value.span(),
            key_span: value.span(),
            value: value.get_ref(),
        };
        Ok(array.iter().enumerate().map(entry).collect())
    }

    /// A table with the keys `known`.
    pub(super) fn section(&self, known: &'static [&'static str]) -> Result<Section<'a>, Fault> {
        let DeValue::Table(table) = self.value else { return Err(self.mistyped("a table")) };
        Section::checked(self.key.clone(), self.key_span.clone(), known, table)
    }

    /// The entries of a table whose keys are names chosen by the user, in the order of the file.
    pub(super) fn named(&self) -> Result<Vec<(&'a str, Entry<'a>)>, Fault> {
        let DeValue::Table(table) = self.value else { return Err(self.mistyped("a table")) };
        let mut entries: Vec<(&'a str, Entry<'a>)> = Vec::with_capacity(table.len());
        for (name, value) in table {
            let text: &'a str = name.get_ref().as_ref();
            let (span, key_span) = (value.span(), name.span());
            entries.push((text, Entry { key: join(&self.key, text), span, key_span, value: value.get_ref() }));
        }
        entries.sort_by_key(|(_, entry)| entry.key_span.start);
        Ok(entries)
    }
}
