//! [`Epoll`]: which of many descriptors have something, in time that does not grow with how many there are.
//!
//! Invariant: no call waits. A descriptor that is closed leaves the set by itself (epoll(7)), so tokens of closed ones come up at most in events
//! that were already fetched; whoever gives tokens tells old from new by them. Level-triggered, what was not read is told again; edge-triggered, each
//! change is told once.
//! The epoll descriptor itself becomes readable when a member is, so that it can be slept on.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use crate::call::{check, retry};

/// Events fetched at a time, at most.
pub const EVENTS: usize = 64;

/// See the module's documentation.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

/// What one look found.
pub struct Events {
    events: [libc::epoll_event; EVENTS],
    len: usize,
}

impl Default for Events {
    fn default() -> Self {
        Events { events: [libc::epoll_event { events: 0, u64: 0 }; EVENTS], len: 0 }
    }
}

impl Events {
    /// The tokens of descriptors that have something, and what has changed.
    pub fn changes(&self) -> impl Iterator<Item = (u64, Change)> {
        self.events.iter().take(self.len).map(|event| {
            let (flags, token) = (event.events as libc::c_int, event.u64);
            let change = Change {
                readable: flags & (libc::EPOLLIN | libc::EPOLLRDHUP) != 0,
                ended: flags & libc::EPOLLRDHUP != 0,
                writable: flags & libc::EPOLLOUT != 0,
                failed: flags & (libc::EPOLLERR | libc::EPOLLHUP) != 0,
                urgent: flags & libc::EPOLLPRI != 0,
            };
            (token, change)
        })
    }
}

/// What has changed of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// It can be read, to its end perhaps.
    pub readable: bool,
    /// Nothing will come after what waits already.
    pub ended: bool,
    /// It can be written, or is connected.
    pub writable: bool,
    /// It failed, or both directions have ended.
    pub failed: bool,
    /// There is urgent data, at which reads of TCP stop short.
    pub urgent: bool,
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// What epoll_create1(2) reports.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: epoll_create1(2) has no preconditions.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the call has just made this descriptor for us.
        Ok(Epoll { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Takes `of` in, to be told when it is readable.
    ///
    /// # Errors
    /// What epoll_ctl(2) reports.
    pub fn add(&self, of: &impl AsRawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: the event is valid to read; the kernel checks both descriptors.
        check(unsafe { libc::epoll_ctl(self.as_raw_fd(), libc::EPOLL_CTL_ADD, of.as_raw_fd(), &mut event) }).map(drop)
    }

    /// Takes `of` in, to be told of every change, once (edge-triggered): that it can be read, written, or has ended.
    ///
    /// # Errors
    /// What epoll_ctl(2) reports.
    pub fn add_for_changes(&self, of: &impl AsRawFd, token: u64) -> io::Result<()> {
        let flags = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLET;
        let mut event = libc::epoll_event { events: flags as u32, u64: token };
        // SAFETY: the event is valid to read; the kernel checks both descriptors.
        check(unsafe { libc::epoll_ctl(self.as_raw_fd(), libc::EPOLL_CTL_ADD, of.as_raw_fd(), &mut event) }).map(drop)
    }

    /// Fetches what has something now.
    ///
    /// # Errors
    /// What epoll_wait(2) reports.
    pub fn look(&self, events: &mut Events) -> io::Result<usize> {
        events.len = 0;
        let list = events.events.as_mut_ptr();
        // SAFETY: the list has room for as many events as said.
        let n = retry(|| unsafe { libc::epoll_wait(self.as_raw_fd(), list, EVENTS as libc::c_int, 0) })?;
        events.len = n.unsigned_abs() as usize;
        Ok(events.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_readable_descriptors_come_up_until_they_are_closed() {
        let (epoll, mut events) = (Epoll::new().unwrap(), Events::default());
        let (one, two) = (crate::eventfd::EventFd::new().unwrap(), crate::eventfd::EventFd::new().unwrap());
        epoll.add(&one, 1).unwrap();
        epoll.add(&two, 2).unwrap();
        assert_eq!(epoll.look(&mut events).unwrap(), 0);
        two.notify().unwrap();
        epoll.look(&mut events).unwrap();
        assert_eq!(events.changes().map(|(token, _)| token).collect::<Vec<_>>(), [2]);
        drop(two);
        assert_eq!(epoll.look(&mut events).unwrap(), 0);
    }

    #[test]
    fn changes_are_told_once() {
        use std::{io::Write, os::unix::net::UnixStream};
        let (epoll, mut events) = (Epoll::new().unwrap(), Events::default());
        let (one, mut two) = UnixStream::pair().unwrap();
        epoll.add_for_changes(&one, 7).unwrap();
        let mut change = || {
            epoll.look(&mut events).unwrap();
            events.changes().next()
        };
        let writable = Change { readable: false, ended: false, writable: true, failed: false, urgent: false };
        assert_eq!((change(), change()), (Some((7, writable)), None));
        two.write_all(b"x").unwrap();
        assert_eq!((change(), change()), (Some((7, Change { readable: true, ..writable })), None));
        drop(two);
        assert!(change().is_some_and(|(_, change)| change.failed));
    }
}
