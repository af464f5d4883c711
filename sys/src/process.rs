//! Other processes, and what this one may use.

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

/// Lets this process open as many descriptors as it may (the soft limit becomes the hard one), and says how many those are.
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) reports.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the value is valid to write.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the value is valid to read.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_cur)
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
    fn the_soft_limit_of_descriptors_becomes_the_hard_one() {
        let limit = super::raise_descriptor_limit().unwrap();
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        assert_eq!(numbers, [limit.to_string(), limit.to_string()]);
    }

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
