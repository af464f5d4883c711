//! The run directory, and the lock that makes one daemon its only user.
//!
//! Invariant: while a [`RunDir`] lives, no other process has one for the same directory. The kernel lets go of the lock
//! when the process ends, however it ends, so a killed daemon leaves nothing that stops the next one. Read first:
//! flock(2).

use crate::config::Host;
use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    process,
};

/// Why the run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Another daemon holds the lock.
    #[error(
        "another trunkline{} runs on {}; end it, or give this one a run_dir of its own in [host]",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), .dir.display()
    )]
    Taken {
        /// The directory.
        dir: PathBuf,
        /// Process id that the lock file names.
        pid: Option<u32>,
    },
    /// The directory or the lock in it cannot be made.
    #[error("cannot use the run directory {}: {source}; make it writable for this user, or set run_dir in [host]", dir.display())]
    System {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The right to use a run directory.
#[derive(Debug)]
pub struct RunDir {
    _lock: File,
}

impl RunDir {
    /// Makes the directory if it is missing (mode 0755, so that the group of the sockets can reach them) and locks it.
    ///
    /// # Errors
    /// See [`RunDirError`]; nothing in the directory is then changed.
    pub fn claim(host: &Host) -> Result<RunDir, RunDirError> {
        let dir = &host.run_dir;
        let system = |source| RunDirError::System { dir: dir.clone(), source };
        DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(system)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut lock = options.open(host.lock_file()).map_err(system)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = Read::by_ref(&mut lock).take(16).read_to_string(&mut text);
                let pid = read.ok().and_then(|_| text.trim().parse().ok());
                return Err(RunDirError::Taken { dir: dir.clone(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(system(source)),
        }
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(system)?;
        writeln!(lock, "{}", process::id()).map_err(system)?;
        Ok(RunDir { _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Surroundings};

    #[test]
    fn one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let around = Surroundings { root: true, ..Surroundings::default() };
        let text = format!("host.run_dir = \"{}/a/b\"", dir.path().display());
        let host = config::parse(&text, "t.toml".as_ref(), &around).unwrap().host;
        let first = RunDir::claim(&host).unwrap();
        match RunDir::claim(&host) {
            Err(RunDirError::Taken { pid, .. }) => assert_eq!(pid, Some(process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        RunDir::claim(&host).unwrap();
    }
}
