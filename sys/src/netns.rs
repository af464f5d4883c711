//! Work inside a named network namespace, as `ip netns` makes them.
//!
//! Invariant: the calling thread never changes its namespace. The work runs on a thread of its own that enters the
//! namespace and ends; sockets and TAPs made there stay in that namespace wherever their descriptors go.
//!
//! Read first: setns(2), ip-netns(8).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::call::check;

/// Where `ip netns` keeps its names.
const DIRECTORY: &str = "/run/netns";

/// Runs `work` on a short-lived thread inside the network namespace `name` and returns what it returned. A panic of
/// `work` goes on in the caller.
///
/// # Errors
/// `InvalidInput` if the name cannot be one, `NotFound` if there is no such namespace, `PermissionDenied` without
/// CAP_SYS_ADMIN; else what the kernel reported.
pub fn in_netns<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = open(name)?;
    let enter = move || {
        // SAFETY: the descriptor is open; the call changes this new thread's network namespace only.
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
        drop(namespace);
        Ok(work())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the whole process into a network namespace of its own, empty but for a loopback device; without CAP_SYS_ADMIN into a
/// user namespace of its own as well, in which it may do everything to that network. Called before there is a second thread.
///
/// # Errors
/// What unshare(2) reports, `InvalidInput` when there is a second thread already; or that the user could not be mapped.
pub fn leave() -> io::Result<()> {
    // SAFETY: no preconditions; the calls change what the process may see and do, not its memory.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: as above.
    if check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).is_ok() {
        return loopback_up();
    }
    // SAFETY: as above.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) })?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    loopback_up()
}

/// Sets the loopback device of this thread's network namespace up.
fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros is a valid ifreq: integers, characters and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name.iter_mut().zip(b"lo").for_each(|(to, from)| *to = *from as libc::c_char);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) }).map(drop)
}

fn open(name: &str) -> io::Result<File> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        let reason = format!("{name:?} is not the name of a network namespace");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    File::open(Path::new(DIRECTORY).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Namespace;

    fn current() -> std::path::PathBuf {
        std::fs::read_link("/proc/thread-self/ns/net").unwrap()
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let Some(namespace) = Namespace::new("work_runs_inside_and_the_caller_stays_outside") else { return };
        let before = current();
        let mut seen = None;
        let answer = in_netns(&namespace.name, || {
            seen = Some(current());
            42
        });
        assert_eq!((answer.unwrap(), current()), (42, before.clone()));
        assert!(seen.is_some_and(|inside| inside != before));
    }

    #[test]
    fn a_name_that_is_not_there_is_not_found_and_a_path_is_refused() {
        let kind = |name| in_netns(name, || ()).unwrap_err().kind();
        assert_eq!(kind("trunkline-no-such-namespace"), io::ErrorKind::NotFound);
        for name in ["", ".", "..", "a/b", "/proc/self/ns/net"] {
            assert_eq!(kind(name), io::ErrorKind::InvalidInput, "{name}");
        }
    }

    #[test]
    fn a_panic_inside_reaches_the_caller() {
        let Some(namespace) = Namespace::new("a_panic_inside_reaches_the_caller") else { return };
        let caught = std::panic::catch_unwind(|| in_netns(&namespace.name, || std::panic::resume_unwind(Box::new(7))));
        assert_eq!(caught.map(|_: io::Result<()>| ()).unwrap_err().downcast_ref::<i32>(), Some(&7));
    }
}
