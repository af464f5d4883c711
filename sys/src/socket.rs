//! Messages with file descriptors over a unix stream socket, as vhost-user sends them, without waiting.
//!
//! Invariant: every descriptor that arrives is owned at once, so that none leaks whatever the peer sends, and no call
//! waits, whatever the mode of the socket.
//!
//! A stream keeps no message boundaries, but the kernel never joins descriptors of two sends in one receive: those that
//! arrive were sent together with the last of the bytes that arrive, and come with the first byte of their send. A reader
//! that asks for a message's header only (12 bytes in vhost-user), and then for its payload, therefore gets each
//! message's descriptors with that message.
//!
//! Read first: unix(7) on SCM_RIGHTS, cmsg(3), recvmsg(2); vhost-user specification, "Message Specification".

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::call::{check, retry};

/// The most descriptors that one vhost-user message carries: SET_MEM_TABLE with one for each of 8 regions.
pub const MAX_FDS: usize = 8;
/// The most that the kernel attaches to one send (SCM_MAX_FD).
const KERNEL_MAX_FDS: usize = 253;
/// Room for those, in words, so that it is aligned like a `cmsghdr`.
const CONTROL_WORDS: usize = 144;
const FD_SIZE: usize = size_of::<RawFd>();

const _: () = {
    // SAFETY: CMSG_SPACE only computes.
    assert!(CONTROL_WORDS * 8 >= unsafe { libc::CMSG_SPACE((KERNEL_MAX_FDS * FD_SIZE) as u32) } as usize);
};

/// What one receive brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecvOutcome {
    /// How many bytes of the buffer were filled. 0: the peer has closed its end.
    pub bytes: usize,
    /// More descriptors came than [`MAX_FDS`] or than this process may have open. What was too much is closed.
    pub truncated: bool,
}

/// Receives up to `buf.len()` bytes, and appends descriptors that came with them to `fds`, which is filled up to
/// [`MAX_FDS`]. They are close-on-exec and otherwise as the peer left them.
///
/// # Errors
/// `WouldBlock` if nothing has arrived, `InvalidInput` if `buf` is empty, `ConnectionReset` if the peer ended with unread
/// bytes; else what recvmsg(2) reported.
pub fn recv_with_fds(socket: BorrowedFd<'_>, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<RecvOutcome> {
    if buf.is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "an empty buffer cannot tell an end from no data"));
    }
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut header = message(&mut part);
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to one part and a control buffer, both valid to write for their lengths.
    let bytes = retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) })?;
    let mut truncated = header.msg_flags & libc::MSG_CTRUNC != 0;
    // SAFETY: recvmsg(2) succeeded, so the control buffer holds well-formed messages of the length it has set.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&header) };
    // SAFETY: the pointer is null or points to a control message inside the buffer.
    while let Some(cmsg) = unsafe { next.as_ref() } {
        if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the data of this control message follows its header.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            let before = data.addr() - next.addr();
            // The type of the length differs between C libraries.
            #[allow(clippy::unnecessary_cast)]
            let count = (cmsg.cmsg_len as usize).saturating_sub(before) / FD_SIZE;
            for index in 0..count {
                // SAFETY: the message holds `count` descriptors, at any alignment, each installed for us by the kernel.
                let fd = unsafe { OwnedFd::from_raw_fd(data.add(index).read_unaligned()) };
                if fds.len() < MAX_FDS {
                    fds.push(fd);
                } else {
                    truncated = true;
                }
            }
        }
        // SAFETY: both pointers lie in the control buffer that the header describes.
        next = unsafe { libc::CMSG_NXTHDR(&header, cmsg) };
    }
    Ok(RecvOutcome { bytes: bytes.unsigned_abs(), truncated })
}

/// Sends bytes, with descriptors attached to the first of them, and tells how many bytes the socket took. The rest is
/// to be sent without the descriptors.
///
/// # Errors
/// `WouldBlock` if the socket is full (nothing was sent, no descriptor either), `InvalidInput` if `bytes` is empty or
/// there are more than [`MAX_FDS`] descriptors, `BrokenPipe` if the peer is gone; else what sendmsg(2) reported.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if bytes.is_empty() || fds.len() > MAX_FDS {
        let reason = format!("a message has at least 1 byte and at most {MAX_FDS} descriptors");
        return Err(io::Error::new(ErrorKind::InvalidInput, reason));
    }
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut header = message(&mut part);
    if !fds.is_empty() {
        let payload = size_of_val(fds) as u32;
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as _;
        // SAFETY: the control buffer is aligned like a `cmsghdr` and has room for it and for MAX_FDS descriptors, of
        // which there are at most that many.
        unsafe {
            let cmsg = libc::CMSG_FIRSTHDR(&header);
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(payload) as _;
            let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
            for (index, fd) in fds.iter().enumerate() {
                data.add(index).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header points to one part and, if any, a control buffer, both valid to read for their lengths.
    let sent = retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &header, flags) })?;
    Ok(sent.unsigned_abs())
}

/// Who is at the other end of a unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id when the connection was made; 0 if it lies in a PID namespace that we cannot see.
    pub pid: u32,
    /// Effective user id when the connection was made.
    pub uid: u32,
    /// Effective group id when the connection was made.
    pub gid: u32,
}

/// Asks the kernel who connected (SO_PEERCRED).
///
/// # Errors
/// What getsockopt(2) reported: not a unix socket.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
    let mut ucred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the value is valid to write for the length given.
    check(unsafe {
        let value = (&raw mut ucred).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, value, &mut len)
    })?;
    Ok(PeerCredentials { pid: ucred.pid.unsigned_abs(), uid: ucred.uid, gid: ucred.gid })
}

/// A message of one part, without address and control data.
fn message(part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zeros is a valid msghdr: null pointers with lengths of 0. (It has private padding on some targets.)
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = part;
    header.msg_iovlen = 1;
    header
}

#[cfg(test)]
mod tests;
