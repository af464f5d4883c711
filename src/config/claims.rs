//! What must be unique in a file: names, sockets, TAPs, MAC addresses. And paths, which must be comparable for that.
//!
//! Invariant: of two claims of one kind and value, the second is a fault that points at both places.

use super::{SOCKET_PATH_MAX, error::Fault, reader::Entry};
use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

/// Who has claimed what.
#[derive(Debug, Default)]
pub(super) struct Claims {
    claimed: BTreeMap<(&'static str, String), Claim>,
}

#[derive(Debug)]
struct Claim {
    owner: String,
    /// Byte offset; none for what is not in the file.
    place: Option<usize>,
}

impl Claims {
    /// Claims a path for something that is not a port.
    pub(super) fn reserve(&mut self, kind: &'static str, path: PathBuf, owner: &str) {
        let claim = Claim { owner: owner.to_owned(), place: None };
        self.claimed.insert((kind, path.to_string_lossy().into_owned()), claim);
    }

    /// Claims `value`, which `entry` (or a default that follows from it) says, for `owner`.
    pub(super) fn claim(
        &mut self,
        kind: &'static str,
        value: impl ToString,
        owner: &str,
        entry: &Entry<'_>,
    ) -> Result<(), Fault> {
        let value = value.to_string();
        if let Some(other) = self.claimed.get(&(kind, value.clone())) {
            let fault = entry.fault(format!("the {kind} {value} is taken by {}", other.owner));
            let fault = fault.help(format!("each {kind} is allowed once"));
            return Err(match other.place {
                Some(offset) => fault.earlier(offset),
                None => fault,
            });
        }
        let claim = Claim { owner: owner.to_owned(), place: Some(entry.span.start) };
        self.claimed.insert((kind, value), claim);
        Ok(())
    }
}

/// The path without doubled, trailing and `.` parts, so that equal paths are equal values.
pub(super) fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

/// An absolute path without `..`, which names the same place for whoever reads it.
pub(super) fn absolute_path(entry: &Entry<'_>) -> Result<PathBuf, Fault> {
    let text = entry.text()?;
    let path = Path::new(text);
    let upward = path.components().any(|part| part == Component::ParentDir);
    if !path.is_absolute() || upward || text.chars().any(char::is_control) {
        let what = format!("`{text}` is not allowed; write an absolute path without `..` and control characters");
        return Err(entry.fault(what));
    }
    Ok(plain(path))
}

/// An absolute path that a unix socket can have.
pub(super) fn socket_path(entry: &Entry<'_>) -> Result<PathBuf, Fault> {
    let path = absolute_path(entry)?;
    if path.file_name().is_none() {
        return Err(entry.fault("this is a directory; name the socket in it"));
    }
    short_enough(&path).map_err(|what| entry.fault(what))?;
    Ok(path)
}

/// Does the path fit into the address of a unix socket? Says how long it is if not.
pub(super) fn short_enough(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().len();
    if length <= SOCKET_PATH_MAX {
        return Ok(());
    }
    let path = path.display();
    Err(format!("the socket path {path} is {length} bytes long; allowed are {SOCKET_PATH_MAX}"))
}
