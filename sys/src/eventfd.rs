//! The doorbell of a virtqueue: an eventfd of our own, or a descriptor that a vhost-user front end sent as kick or call.
//!
//! Invariant: neither ringing nor draining waits, and nothing that a front end can send as a doorbell panics or kills us:
//! only eventfds, pipes and unix stream sockets are taken (what User-mode Linux calls a pipe and sends as call is a socket
//! pair), because writing to any other kind of file may wait for whoever serves it.
//!
//! `O_NONBLOCK` belongs to the open file, which the sender still shares and could change back. So a pipe is opened once
//! more, which makes an open file of our own, an eventfd is read with `RWF_NOWAIT`, which does not look at the flag, and
//! nor does what a socket is used with.
//! For the write to an eventfd Linux offers no such protection: a front end that clears the flag *and* fills the counter
//! to its limit makes [`EventFd::notify`] wait. A signal without `SA_RESTART` frees the thread: the wait is given up after
//! a few interruptions, with an error.
//!
//! Read first: eventfd(2), pipe(7); vhost-user specification, VHOST_USER_SET_VRING_KICK and _CALL.

use std::ffi::CString;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::Once;

use crate::call::{check, retry};

/// How often an interrupted write is tried again before it counts as stuck.
const ATTEMPTS: usize = 16;
/// Reads of [`CHUNK`] bytes that empty a pipe of the default size of 64 KiB, twice over.
const READS: usize = 32;
const CHUNK: usize = 4096;

/// A doorbell: rung by one side, drained by the other, readable to poll(2) and epoll(7) in between.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Event,
    Pipe,
    Socket,
}

impl EventFd {
    /// A new eventfd, not rung.
    ///
    /// # Errors
    /// What eventfd(2) reported: too many open files.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: eventfd(2) has no preconditions.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: eventfd(2) has just made this descriptor for us.
        Ok(EventFd { fd: unsafe { OwnedFd::from_raw_fd(fd) }, kind: Kind::Event })
    }

    /// Takes a descriptor that another process sent.
    ///
    /// # Errors
    /// `InvalidInput` if it is not an eventfd, a pipe or a unix stream socket; else what the kernel reported.
    pub fn adopt(fd: OwnedFd) -> io::Result<EventFd> {
        match kind_of(&fd)? {
            Kind::Event => {
                let flags = open_flags(&fd)?;
                // SAFETY: the descriptor is open and F_SETFL takes an integer.
                check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
                Ok(EventFd { fd, kind: Kind::Event })
            }
            Kind::Pipe => {
                let mode = open_flags(&fd)? & libc::O_ACCMODE;
                let path = link(&fd)?;
                // SAFETY: the path is a valid C string.
                let own = retry(|| unsafe { libc::open(path.as_ptr(), mode | libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
                ignore_broken_pipes();
                // SAFETY: open(2) has just made this descriptor for us.
                Ok(EventFd { fd: unsafe { OwnedFd::from_raw_fd(own) }, kind: Kind::Pipe })
            }
            Kind::Socket => Ok(EventFd { fd, kind: Kind::Socket }),
        }
    }

    /// Rings. A doorbell that is rung so often that it is full stays rung.
    ///
    /// # Errors
    /// `BrokenPipe` if nobody can hear it any more, `TimedOut` if the write had to be interrupted again and again; else
    /// what write(2) reported.
    pub fn notify(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        let fd = self.fd.as_raw_fd();
        for _ in 0..ATTEMPTS {
            let written = if self.kind == Kind::Socket {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: the buffer is valid to read for its length.
                unsafe { libc::send(fd, one.as_ptr().cast(), one.len(), flags) }
            } else {
                // SAFETY: the buffer is valid to read for its length.
                unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) }
            };
            match check(written) {
                Ok(_) => return Ok(()),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
        let reason = "writing to a doorbell was interrupted again and again: its owner made it block";
        Err(io::Error::new(ErrorKind::TimedOut, reason))
    }

    /// Takes all rings at once. Whether there were any.
    ///
    /// # Errors
    /// `UnexpectedEof` if it is a pipe or socket that nobody can ring any more; else what read(2) reported.
    pub fn drain(&self) -> io::Result<bool> {
        let reads = match self.kind {
            Kind::Event => 1,
            Kind::Pipe | Kind::Socket => READS,
        };
        let mut rung = false;
        for _ in 0..reads {
            match self.read() {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the other end of a doorbell is closed")),
                Ok(_) => rung = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(rung)
    }

    /// Reads once without waiting, whatever the state of `O_NONBLOCK`, and tells how many bytes there were.
    fn read(&self) -> io::Result<usize> {
        let mut chunk = [MaybeUninit::<u8>::uninit(); CHUNK];
        let fd = self.fd.as_raw_fd();
        if self.kind == Kind::Socket {
            // SAFETY: the buffer is valid to write for its length.
            let bytes = retry(|| unsafe { libc::recv(fd, chunk.as_mut_ptr().cast(), CHUNK, libc::MSG_DONTWAIT) })?;
            return Ok(bytes.unsigned_abs());
        }
        let part = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: CHUNK };
        // SAFETY: the one part is valid to write for its length; the kernel writes nothing else.
        let bytes = match retry(|| unsafe { libc::preadv2(fd, &part, 1, -1, libc::RWF_NOWAIT) }) {
            // Before Linux 5.8 eventfds did not know RWF_NOWAIT.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                // SAFETY: as above.
                retry(|| unsafe { libc::read(fd, chunk.as_mut_ptr().cast(), CHUNK) })?
            }
            result => result?,
        };
        Ok(bytes.unsigned_abs())
    }

    /// Another descriptor of the same doorbell.
    ///
    /// # Errors
    /// What fcntl(2) reported: too many open files.
    pub fn try_clone(&self) -> io::Result<EventFd> {
        Ok(EventFd { fd: self.fd.try_clone()?, kind: self.kind })
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn kind_of(fd: &OwnedFd) -> io::Result<Kind> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the descriptor is open and `stat` is valid to write.
    check(unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: fstat(2) succeeded and has filled it.
    let file_type = unsafe { stat.assume_init() }.st_mode & libc::S_IFMT;
    if file_type == libc::S_IFIFO {
        return Ok(Kind::Pipe);
    }
    if file_type == libc::S_IFSOCK
        && option(fd, libc::SO_DOMAIN)? == libc::AF_UNIX
        && option(fd, libc::SO_TYPE)? == libc::SOCK_STREAM
    {
        return Ok(Kind::Socket);
    }
    // An eventfd has no file type. What it is stands in its link, which for a file with a name begins with a slash.
    let mut target = [0u8; 64];
    let path = link(fd)?;
    // SAFETY: the path is a valid C string and the buffer is valid to write for its length.
    let len = unsafe { libc::readlink(path.as_ptr(), target.as_mut_ptr().cast(), target.len()) };
    let len = check(len)?.unsigned_abs();
    match target.get(..len) {
        Some(b"anon_inode:[eventfd]") if file_type == 0 => Ok(Kind::Event),
        _ => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "a doorbell must be an eventfd, a pipe or a unix stream socket",
        )),
    }
}

/// The path under which this process finds its own descriptor.
fn link(fd: &OwnedFd) -> io::Result<CString> {
    Ok(CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?)
}

/// What a socket is (SO_DOMAIN, SO_TYPE).
fn option(fd: &OwnedFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is valid to write for the length given.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &mut len) })?;
    Ok(value)
}

fn open_flags(fd: &OwnedFd) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })
}

/// Makes a write to a pipe without a reader an error instead of the death of the process. Rust programs start like that;
/// a program that asked for the default action otherwise gets it changed, an action of its own stays.
fn ignore_broken_pipes() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: a null new action only asks, and `action` is valid to write and filled when the call succeeds.
        let default = unsafe {
            libc::sigaction(libc::SIGPIPE, null_mut(), action.as_mut_ptr()) == 0
                && action.assume_init().sa_sigaction == libc::SIG_DFL
        };
        if default {
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        }
    });
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, pipe};

    use super::*;
    use crate::testing::eventually;

    fn set_blocking(fd: RawFd) {
        // SAFETY: the descriptor is open and F_SETFL takes an integer.
        check(unsafe { libc::fcntl(fd, libc::F_SETFL, 0) }).unwrap();
    }

    #[test]
    fn rings_are_taken_all_at_once() {
        let bell = EventFd::new().unwrap();
        assert!(!bell.drain().unwrap());
        bell.notify().unwrap();
        bell.try_clone().unwrap().notify().unwrap();
        assert!(bell.drain().unwrap() && !bell.drain().unwrap());
    }

    #[test]
    fn a_full_eventfd_stays_rung() {
        let bell = EventFd::new().unwrap();
        let full = (u64::MAX - 1).to_ne_bytes();
        // SAFETY: the buffer is valid to read for its length.
        check(unsafe { libc::write(bell.as_raw_fd(), full.as_ptr().cast(), 8) }).unwrap();
        bell.notify().unwrap();
        assert!(bell.drain().unwrap());
    }

    #[test]
    fn a_blocking_eventfd_of_somebody_else_does_not_hold_us_up() {
        // SAFETY: eventfd(2) has no preconditions, and the new descriptor has no other owner.
        let foreign = unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, 0)).unwrap()) };
        let bell = EventFd::adopt(foreign.try_clone().unwrap()).unwrap();
        assert!(!bell.drain().unwrap());
        set_blocking(foreign.as_raw_fd());
        assert!(!bell.drain().unwrap());
        bell.notify().unwrap();
        assert!(bell.drain().unwrap());
    }

    #[test]
    fn a_pipe_rings_too_and_never_blocks() {
        let (mut reader, writer) = pipe().unwrap();
        let bell = EventFd::adopt(OwnedFd::from(writer.try_clone().unwrap())).unwrap();
        set_blocking(writer.as_raw_fd());
        for _ in 0..20_000 {
            bell.notify().unwrap();
        }
        let mut eight = [0; 8];
        reader.read_exact(&mut eight).unwrap();
        assert_eq!(u64::from_ne_bytes(eight), 1);
        let ear = EventFd::adopt(OwnedFd::from(reader)).unwrap();
        assert!(ear.drain().unwrap() && !ear.drain().unwrap());
        drop((bell, writer));
        eventually("the end of the pipe", || ear.drain().is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof));
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_an_error_and_no_signal() {
        let (reader, writer) = pipe().unwrap();
        let bell = EventFd::adopt(OwnedFd::from(writer)).unwrap();
        drop(reader);
        eventually("the broken pipe", || bell.notify().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe));
        assert!(bell.drain().is_err());
    }

    #[test]
    fn a_socket_pair_rings_too_and_never_blocks() {
        let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let bell = EventFd::adopt(OwnedFd::from(writer)).unwrap();
        for _ in 0..20_000 {
            bell.notify().unwrap();
        }
        let mut eight = [0; 8];
        reader.read_exact(&mut eight).unwrap();
        assert_eq!(u64::from_ne_bytes(eight), 1);
        let ear = EventFd::adopt(OwnedFd::from(reader)).unwrap();
        while ear.drain().unwrap() {}
        bell.notify().unwrap();
        assert!(ear.drain().unwrap() && !ear.drain().unwrap());
        drop(bell);
        assert_eq!(ear.drain().unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(ear.notify().unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn other_kinds_of_files_are_refused() {
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let network = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let memory = crate::memory::memfd("anon_inode:[eventfd]", 4096).unwrap();
        // SAFETY: epoll_create1(2) has no preconditions, and the new descriptor has no other owner.
        let epoll = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC)).unwrap()) };
        let null = OwnedFd::from(File::open("/dev/null").unwrap());
        for fd in [OwnedFd::from(socket), OwnedFd::from(network), memory, epoll, null] {
            assert_eq!(EventFd::adopt(fd).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
