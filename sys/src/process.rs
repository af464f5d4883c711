//! Other processes.

use std::io;

use crate::call::check;

/// Asks a process to end (SIGTERM).
///
/// # Errors
/// `InvalidInput` for a number that names no single process, else what kill(2) reports.
pub fn terminate(pid: u32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 1).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: no memory is involved; a positive number names one process.
    check(unsafe { libc::kill(pid, libc::SIGTERM) }).map(drop)
}

/// From now on this process passes over the signals that end a service or a terminal's programs: SIGTERM, SIGINT, SIGHUP, SIGQUIT.
pub fn outlive_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: no handler of ours is involved; the signals are valid, so the call cannot fail.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, os::unix::process::ExitStatusExt, process::Command};

    #[test]
    fn a_child_ends_and_a_group_is_refused() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        super::terminate(child.id()).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
        for wrong in [0, 1, u32::MAX] {
            assert_eq!(super::terminate(wrong).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
