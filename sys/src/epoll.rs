//! [`Epoll`]: which of many descriptors have something, in time that does not grow with how many there are.
//!
//! Invariant: no call waits. A descriptor that is closed leaves the set by itself (epoll(7)), so tokens of closed ones come up at most in events
//! that were already fetched; whoever gives tokens tells old from new by them. Level-triggered: what was not read is told again.
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
    /// The tokens of descriptors that have something to read, an error, or an end.
    pub fn tokens(&self) -> impl Iterator<Item = u64> {
        self.events.iter().take(self.len).map(|event| event.u64)
    }
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
        assert_eq!(events.tokens().collect::<Vec<_>>(), [2]);
        drop(two);
        assert_eq!(epoll.look(&mut events).unwrap(), 0);
    }
}
