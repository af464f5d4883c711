//! Files in `state_dir`: JSON that is replaced in one step.
//!
//! Invariant: whoever is killed while writing leaves the old file or the new one; a file that cannot be read costs what it remembers,
//! and nothing else.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

/// What a file holds; nothing when there is none, or it is not ours, which is logged.
pub fn read<T: DeserializeOwned>(file: &Path) -> Option<T> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "what was before is not known");
            return None;
        }
    };
    let read = serde_json::from_str(&text);
    read.inspect_err(
        |error| tracing::warn!(file = %file.display(), %error, "what was before is not known; the file is not ours"),
    )
    .ok()
}

/// Replaces a file, and makes its directory where that is missing.
///
/// # Errors
/// What the system reports.
pub fn write<T: Serialize>(file: &Path, value: &T) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    let new = file.with_extension("new");
    let mut out = fs::File::create(&new)?;
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")?;
    out.sync_all()?;
    fs::rename(new, file)
}
