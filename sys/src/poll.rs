//! [`Sleep`]: waiting until one of some descriptors becomes readable.
//!
//! Invariant: a descriptor that is closed or broken ends the wait instead of being waited for.
//!
//! `ppoll` and not epoll: the set is built anew for every sleep from what ports say at that moment, so no registration can outlive the
//! descriptor it was made for; a worker sleeps only when there is nothing to do.

use std::{io, os::fd::RawFd, time::Duration};

/// The descriptors of a wait, kept to be used again.
#[derive(Default)]
pub struct Sleep {
    polled: Vec<libc::pollfd>,
}

impl Sleep {
    /// Waits until one of `readable` is readable or broken, a signal arrives, or `limit` has passed.
    pub fn wait(&mut self, readable: impl Iterator<Item = RawFd>, limit: Option<Duration>) -> io::Result<()> {
        self.polled.clear();
        self.polled.extend(readable.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }));
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(limit.subsec_nanos() as i32),
        });
        let timeout = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the array has as many entries as said and lives past the call, as does the time limit; no signal mask is given.
        let n = unsafe {
            libc::ppoll(self.polled.as_mut_ptr(), self.polled.len() as libc::nfds_t, timeout, std::ptr::null())
        };
        match n {
            0.. => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_notified_event_ends_the_wait_and_time_does() {
        let event = crate::eventfd::EventFd::new().unwrap();
        let mut sleep = Sleep::default();
        event.notify().unwrap();
        sleep.wait([event.as_raw_fd()].into_iter(), None).unwrap();
        event.drain().unwrap();
        sleep.wait([event.as_raw_fd()].into_iter(), Some(Duration::from_millis(1))).unwrap();
    }
}
