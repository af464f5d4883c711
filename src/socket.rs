//! Listening unix sockets with an owner and a mode, over whatever an earlier process left behind.
//!
//! Invariant: the socket appears under its name with its final owner and mode; a socket that somebody listens on, and a
//! file that is no socket, are never replaced. Read first: unix(7), "Pathname socket ownership and permissions".
//!
//! How it works: the socket is bound in a fresh directory that only we may enter, gets its group and mode there, and
//! is then renamed into place, which replaces a dead socket in one step. The directory is reached through
//! `/proc/self/fd`, so its name does not count towards the 107 bytes of a socket address.

use crate::config::{Host, SOCKET_PATH_MAX};
use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

/// Why a socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("{0}: another process listens on this socket; end it, or choose another path")]
    Alive(PathBuf),
    /// The path names something that is not a socket.
    #[error("{0}: this exists and is not a socket; move it away, or choose another path")]
    NotASocket(PathBuf),
    /// The path does not fit into a socket address.
    #[error("{0}: the path is longer than {SOCKET_PATH_MAX} bytes; choose a shorter one")]
    TooLong(PathBuf),
    /// The directory is missing or may not be written to.
    #[error("{path}: cannot {what}: {source}; {hint}")]
    System {
        /// The socket.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// What the system said.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
}

/// Who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Permission bits, 0 to 0o777.
    pub mode: u32,
    /// Group number; `None`: the daemon's own.
    pub gid: Option<u32>,
}

impl Access {
    /// What `[host]` says.
    pub fn of(host: &Host) -> Access {
        Access { mode: host.socket_mode.bits(), gid: host.socket_group.as_ref().map(|group| group.gid) }
    }
}

/// Listens at `path`, for whom `access` allows. The listener blocks; the file stays until it is removed.
///
/// # Errors
/// See [`BindError`]; what was at `path` is then still there.
pub fn listen(path: &Path, access: Access) -> Result<UnixListener, BindError> {
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(BindError::TooLong(path.to_owned()));
    }
    refuse_living(path)?;
    let system = |what, hint| move |source| BindError::System { path: path.to_owned(), what, source, hint };
    let room = Room::make(path)
        .map_err(system("make a socket in its directory", "the directory must exist and be writable"))?;
    let listener = UnixListener::bind(room.handle("s")).map_err(system("bind it", "the directory must be writable"))?;
    let bound = room.path.join("s");
    if access.gid.is_some() {
        let hint = "run as root or as a member of socket_group";
        chown(&bound, None, access.gid).map_err(system("give it to socket_group", hint))?;
    }
    let mode = Permissions::from_mode(access.mode);
    fs::set_permissions(&bound, mode).map_err(system("set its mode", "the directory must be on a Linux filesystem"))?;
    fs::rename(&bound, path).map_err(system("put it into place", "the directory must be writable"))?;
    Ok(listener)
}

/// An error if something is at `path` that must not be replaced.
fn refuse_living(path: &Path) -> Result<(), BindError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Ok(_) => Err(BindError::Alive(path.to_owned())),
        Err(source) => {
            let (what, hint) = ("see whether it is in use", "remove it if its owner is gone");
            Err(BindError::System { path: path.to_owned(), what, source, hint })
        }
    }
}

/// A directory beside the socket that only we may enter; gone when dropped.
struct Room {
    path: PathBuf,
    open: File,
}

impl Room {
    fn make(socket: &Path) -> io::Result<Room> {
        let mut name = OsString::from(".");
        name.push(socket.file_name().ok_or(ErrorKind::InvalidInput)?);
        name.push(".new");
        let path = socket.with_file_name(name);
        // What a daemon that was killed between two steps of `listen` left; never through somebody's symbolic link.
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            let _ = fs::remove_file(path.join("s"));
            let _ = fs::remove_dir(&path);
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        let open = File::open(&path).inspect_err(|_| drop(fs::remove_dir(&path)))?;
        Ok(Room { path, open })
    }

    fn handle(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.open.as_raw_fd()))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path.join("s"));
        let _ = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const OPEN: Access = Access { mode: 0o640, gid: None };

    #[test]
    fn mode_is_set_and_nothing_else_stays_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _listener = listen(&path, OPEN).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_living_socket_stays_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = listen(&path, OPEN).unwrap();
        assert!(matches!(listen(&path, OPEN), Err(BindError::Alive(_))));
        drop(listener);
        assert!(path.exists());
        let _listener = listen(&path, OPEN).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn leftovers_of_a_killed_daemon_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        fs::create_dir(dir.path().join(".a.sock.new")).unwrap();
        fs::write(dir.path().join(".a.sock.new/s"), "").unwrap();
        listen(&path, OPEN).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_and_missing_directories_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path, OPEN), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let error = listen(&dir.path().join("none/a.sock"), OPEN).unwrap_err();
        assert!(error.to_string().contains("the directory must exist"), "{error}");
    }

    #[test]
    fn the_longest_path_works() {
        let dir = tempfile::tempdir().unwrap();
        let room = SOCKET_PATH_MAX - dir.path().as_os_str().len() - 1;
        let path = dir.path().join("x".repeat(room));
        let _listener = listen(&path, OPEN).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&dir.path().join("x".repeat(room + 1)), OPEN), Err(BindError::TooLong(_))));
    }
}
