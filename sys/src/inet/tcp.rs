//! TCP connections whose bytes go between the kernel's buffers and lent memory: [`Stream`], [`Listener`].
//!
//! Invariant: no call waits. What is peeked stays in the kernel's buffer until it is discarded, so the caller keeps no copy of it.
//!
//! Where the kernel remembers how far was peeked (SO_PEEK_OFF for TCP, Linux 6.9), each peek brings what follows the last; elsewhere
//! the bytes before are read over again. Read first: tcp(7), recv(2) on MSG_PEEK and MSG_TRUNC, socket(7) on SO_PEEK_OFF.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use super::name::Name;
use crate::{
    arena::{Arena, MAX_PIECES},
    call::{check, retry},
    guest::Lent,
};

const NOTHING: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// `asm-generic/socket.h` and the words of `linux/sock_diag.h`: of them the fourth is the size of the send buffer, the sixth what lies in it.
const SO_MEMINFO: libc::c_int = 55;
const MEMINFO_WORDS: usize = 9;

/// A message of these parts alone.
fn message(parts: &mut [libc::iovec], count: usize) -> libc::msghdr {
    // SAFETY: all zeros is a valid msghdr: null pointers with lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = count as _;
    message
}

/// What was peeked before is read over in parts as long as this, at least, so that there are enough of them.
const OVER: usize = 65_536;

/// One end of a connection. Options are set when they begin to matter: many connections end before.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    place: Place,
    sent: Sent,
}

/// Who remembers how far was peeked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nobody had to yet: every peek was at what waits first.
    First,
    Kernel,
    /// The caller only: the kernel does not for TCP.
    Caller,
}

/// What was sent so far, as far as it matters to whether the kernel may hold data back (Nagle's algorithm).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// What is sent first waits for nothing.
    Nothing,
    Once,
    /// The kernel was told to hold nothing back.
    AtOnce,
}

/// How much more can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that fit the kernel's buffer, with a reserve for the kernel's own.
    pub bytes: usize,
    /// The same without the reserve.
    free: usize,
    /// So little that the socket does not count as writable.
    pub scarce: bool,
}

impl Room {
    /// None at all.
    pub const NONE: Room = Room { bytes: 0, free: 0, scarce: false };

    /// Of a buffer of `size` bytes with `queued` in it.
    fn of(size: usize, queued: usize) -> Room {
        let free = size.saturating_sub(queued);
        Room { bytes: (size / 4 * 3).saturating_sub(queued), free, scarce: free < queued / 2 }
    }

    /// Bytes that whoever sends segments of `segment` bytes may be told of: a whole one, with what is in reserve, unless room is scarce. Of
    /// more room than that nobody would tell, for the socket is writable already.
    pub fn of_segments(&self, segment: usize) -> usize {
        if self.scarce { self.bytes } else { self.bytes.max(segment.min(self.free)) }
    }
}

/// A port that connections come in at.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

#[cfg(any(test, feature = "testing"))]
thread_local! {
    static FORGETS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs something whose streams are as on a kernel that does not remember how far was peeked.
#[cfg(any(test, feature = "testing"))]
pub fn without_places<T>(run: impl FnOnce() -> T) -> T {
    FORGETS.set(true);
    let ran = run();
    FORGETS.set(false);
    ran
}

fn socket(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: socket(2) has no preconditions.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: socket(2) has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is valid to read for the length given.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) }).map(drop)
}

fn get(fd: &OwnedFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is valid to write for the length given.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &mut len) })?;
    Ok(value)
}

fn set_peek_off(fd: &OwnedFd, offset: usize) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, libc::c_int::try_from(offset).unwrap_or(libc::c_int::MAX))
}

impl Stream {
    /// Begins to connect to `to`. That it is connected, or why not, is told by the socket's becoming writable and [`Stream::take_error`].
    ///
    /// # Errors
    /// What socket(2) and connect(2) report at once: no route, no descriptors, no ports.
    pub fn connect(to: SocketAddr) -> io::Result<Stream> {
        let fd = socket(to.is_ipv6())?;
        let name = Name::new(to);
        let stream = Stream::of(fd);
        // SAFETY: the address is valid to read for its length.
        match check(unsafe { libc::connect(stream.fd.as_raw_fd(), name.ptr(), name.len()) }) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(stream),
        }
    }

    fn of(fd: OwnedFd) -> Stream {
        // Urgent data stays in its place: taken out of it, it would make a hole that peeks and discards count differently.
        let _ = set(&fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1);
        #[cfg(any(test, feature = "testing"))]
        let place = if FORGETS.get() { Place::Caller } else { Place::First };
        #[cfg(not(any(test, feature = "testing")))]
        let place = Place::First;
        Stream { fd, place, sent: Sent::Nothing }
    }

    /// Takes the error that the next call would have failed with.
    ///
    /// # Errors
    /// What getsockopt(2) reports.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        let value = get(&self.fd, libc::SOL_SOCKET, libc::SO_ERROR)?;
        Ok((value != 0).then(|| io::Error::from_raw_os_error(value)))
    }

    /// Our own address of the connection.
    ///
    /// # Errors
    /// What getsockname(2) reports.
    pub fn local(&self) -> io::Result<SocketAddr> {
        local(&self.fd)
    }

    /// Sends `front` and then the lent pieces; how many bytes the kernel took.
    ///
    /// # Errors
    /// `WouldBlock` when its buffer is full, `InvalidInput` for stale pieces or too many; else what sendmsg(2) reports.
    pub fn send(&mut self, arena: &Arena, front: &[u8], pieces: impl Iterator<Item = Lent>) -> io::Result<usize> {
        let mut parts = [NOTHING; MAX_PIECES + 1];
        let mut count = 0;
        let mut put = |base: *const u8, len: usize| {
            let part = parts.get_mut(count).ok_or(ErrorKind::InvalidInput)?;
            *part = libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len };
            count += 1;
            Ok::<(), io::Error>(())
        };
        if !front.is_empty() {
            put(front.as_ptr(), front.len())?;
        }
        for piece in pieces {
            if !arena.holds(&piece) {
                return Err(ErrorKind::InvalidInput.into());
            }
            put(piece.ptr.as_ptr(), piece.len())?;
        }
        self.sent = match self.sent {
            Sent::Nothing => Sent::Once,
            Sent::Once => {
                let _ = set(&self.fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
                Sent::AtOnce
            }
            Sent::AtOnce => Sent::AtOnce,
        };
        let message = message(&mut parts, count);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the first `count` parts name readable memory: a borrow that lives past the call, and lent bytes that the arena holds. The
        // kernel copes with their changing meanwhile.
        let n = retry(|| unsafe { libc::sendmsg(self.fd.as_raw_fd(), &message, flags) })?;
        Ok(n.unsigned_abs())
    }

    /// Peeks at what waits behind the first `offset` bytes: first into `front`, what does not fit there into up to `more` pooled bytes. The
    /// bytes in all and the pooled part of them; zero bytes: the peer has ended its direction. Where the last peek of as many bytes did not end at
    /// `offset`, [`Stream::rewind`] comes before.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing more yet, `OutOfMemory` when the pool cannot take `more`, or what is read over again;
    /// `InvalidInput` when that is more than 16 MB; else what recvmsg(2) reports.
    pub fn peek(
        &mut self,
        arena: &mut Arena,
        offset: usize,
        front: &mut [u8],
        more: usize,
    ) -> io::Result<(usize, Lent)> {
        if self.place == Place::First && offset > 0 {
            // Refused by kernels that do not know it for TCP.
            let kept = set_peek_off(&self.fd, offset).is_ok();
            self.place = if kept { Place::Kernel } else { Place::Caller };
        }
        let skip = if self.place == Place::Caller { offset } else { 0 };
        let over = if skip > 0 { OVER.max(more) } else { 0 };
        let pooled = arena.reserve(more.max(over)).ok_or(ErrorKind::OutOfMemory)?;
        let mut parts = [NOTHING; MAX_PIECES + 1];
        let mut count = 0;
        let mut put = |base: *mut u8, len: usize| {
            let part = parts.get_mut(count).ok_or(ErrorKind::InvalidInput)?;
            *part = libc::iovec { iov_base: base.cast(), iov_len: len };
            count += 1;
            Ok::<(), io::Error>(())
        };
        // What was peeked before is read once more to where the new bytes are going to lie.
        let mut left = skip;
        while left > 0 {
            let len = left.min(over);
            put(pooled.ptr.as_ptr(), len)?;
            left -= len;
        }
        put(front.as_mut_ptr(), front.len())?;
        put(pooled.ptr.as_ptr(), more)?;
        let mut message = message(&mut parts, count);
        let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
        // SAFETY: the first `count` parts name writable memory: an exclusive borrow that lives past the call, and pool bytes that nobody has.
        let n = retry(|| unsafe { libc::recvmsg(self.fd.as_raw_fd(), &mut message, flags) })?.unsigned_abs();
        if n == 0 && skip > 0 {
            return Ok((0, Lent { len: 0, ..pooled }));
        }
        let new = n.checked_sub(skip).filter(|new| *new > 0 || n == 0);
        let new = match new {
            Some(new) => new,
            // Nothing behind what was peeked before: it may have ended, which only a reader of all of it is told.
            None => return self.at_the_end(skip).map(|()| (0, Lent { len: 0, ..pooled })),
        };
        let rest = new.saturating_sub(front.len());
        arena.keep(rest);
        Ok((new, Lent { len: rest as u32, ..pooled }))
    }

    /// Whether the peer has ended its direction and all that came before waits already.
    fn at_the_end(&self, waiting: usize) -> io::Result<()> {
        let mut polled = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: one entry, valid to write.
        check(unsafe { libc::poll(&mut polled, 1, 0) })?;
        let mut queued: libc::c_int = 0;
        // SAFETY: the value is valid to write.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::FIONREAD, &mut queued) })?;
        let ended = polled.revents & libc::POLLRDHUP != 0 && queued.unsigned_abs() as usize <= waiting;
        if ended { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    /// Whether each peek reads over again what was peeked before, so that its cost grows with that.
    pub fn reads_again(&self) -> bool {
        self.place == Place::Caller
    }

    /// The next peek begins `offset` bytes after what was discarded last.
    ///
    /// # Errors
    /// What setsockopt(2) reports.
    pub fn rewind(&self, offset: usize) -> io::Result<()> {
        if self.place == Place::Kernel { set_peek_off(&self.fd, offset) } else { Ok(()) }
    }

    /// Discards the first `count` bytes that wait, or those before urgent data; how many there were.
    ///
    /// # Errors
    /// What recv(2) reports.
    pub fn discard(&self, count: usize) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: with MSG_TRUNC, TCP discards up to `count` bytes and writes to no memory.
        let n = retry(|| unsafe { libc::recv(self.fd.as_raw_fd(), std::ptr::null_mut(), count, flags) })?;
        Ok(n.unsigned_abs())
    }

    /// How much can be sent without overfilling the kernel's buffer (SO_MEMINFO, since Linux 4.12; none where that fails).
    pub fn room(&self) -> Room {
        let mut info = [0u32; MEMINFO_WORDS];
        let mut len = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the words are valid to write for the length given.
        let asked = check(unsafe {
            let value = info.as_mut_ptr().cast();
            libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, value, &mut len)
        });
        let [_, _, _, size, _, queued, ..] = info;
        let (size, queued) = if asked.is_ok() { (size as usize, queued as usize) } else { (0, 0) };
        Room::of(size, queued)
    }

    /// Has the socket's becoming writable told as a change, which the kernel does only for who has found it full; whether it is writable now.
    pub fn tell_of_room(&self) -> bool {
        let mut polled = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one entry, valid to write.
        let n = check(unsafe { libc::poll(&mut polled, 1, 0) });
        matches!(n, Ok(1))
    }

    /// Ends our direction: the peer reads to the end of what was sent.
    ///
    /// # Errors
    /// What shutdown(2) reports.
    pub fn end(&self) -> io::Result<()> {
        // SAFETY: no memory is involved.
        check(unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
    }

    /// Closes it so that the peer is told that the connection was reset.
    pub fn reset(self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let len = size_of::<libc::linger>() as libc::socklen_t;
        // SAFETY: the value is valid to read for the length given.
        let _ = check(unsafe {
            let value = (&raw const linger).cast();
            libc::setsockopt(self.fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, len)
        });
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Listener {
    /// Listens at `at`, where a socket that was closed lately is no obstacle.
    ///
    /// # Errors
    /// `AddrInUse`, `PermissionDenied` for low ports; else what the kernel reports.
    pub fn open(at: SocketAddr) -> io::Result<Listener> {
        let fd = socket(at.is_ipv6())?;
        if at.is_ipv6() {
            set(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        }
        set(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        let name = Name::new(at);
        // SAFETY: the address is valid to read for its length.
        check(unsafe { libc::bind(fd.as_raw_fd(), name.ptr(), name.len()) })?;
        // SAFETY: no memory is involved.
        check(unsafe { libc::listen(fd.as_raw_fd(), 1024) })?;
        Ok(Listener { fd })
    }

    /// A connection that has come in, and who from.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; else what accept4(2) reports.
    pub fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let mut name = Name::EMPTY;
        let mut len = size_of::<Name>() as libc::socklen_t;
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: the name is valid to write for the length given.
        let fd = retry(|| unsafe { libc::accept4(self.fd.as_raw_fd(), name.ptr_mut(), &mut len, flags) })?;
        // SAFETY: accept4(2) has just made this descriptor for us.
        let stream = Stream::of(unsafe { OwnedFd::from_raw_fd(fd) });
        let from = name.get().ok_or(ErrorKind::InvalidData)?;
        Ok((stream, from))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What getsockname(2) reports.
    pub fn local(&self) -> io::Result<SocketAddr> {
        local(&self.fd)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn local(fd: &OwnedFd) -> io::Result<SocketAddr> {
    let mut name = Name::EMPTY;
    let mut len = size_of::<Name>() as libc::socklen_t;
    // SAFETY: the name is valid to write for the length given.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), name.ptr_mut(), &mut len) })?;
    name.get().ok_or_else(|| ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests;
