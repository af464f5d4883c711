//! Bytes and descriptors across a socket pair, the well-behaved and the hostile way.

use std::fs::File;
use std::io::{PipeWriter, Read, pipe};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::testing::eventually;

/// Sends one byte with any number of descriptors: what [`send_with_fds`] refuses to do.
fn send_many(socket: &UnixStream, fds: &[RawFd]) {
    let mut control = [0u64; CONTROL_WORDS];
    let byte = [1u8];
    let mut part = libc::iovec { iov_base: byte.as_ptr().cast_mut().cast(), iov_len: 1 };
    let mut header = message(&mut part);
    header.msg_control = control.as_mut_ptr().cast();
    assert!(fds.len() <= KERNEL_MAX_FDS);
    // SAFETY: the control buffer has room for a header and KERNEL_MAX_FDS descriptors and is aligned.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(size_of_val(fds) as u32) as _;
        let cmsg = libc::CMSG_FIRSTHDR(&header);
        (*cmsg).cmsg_level = libc::SOL_SOCKET;
        (*cmsg).cmsg_type = libc::SCM_RIGHTS;
        (*cmsg).cmsg_len = libc::CMSG_LEN(size_of_val(fds) as u32) as _;
        fds.as_ptr().copy_to_nonoverlapping(libc::CMSG_DATA(cmsg).cast(), fds.len());
        assert_eq!(check(libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL)).unwrap(), 1);
    }
}

/// A pipe whose reader sees the end of file only when all copies of the writer are closed.
fn tracer() -> (File, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    (File::from(OwnedFd::from(reader)), writer)
}

#[test]
fn bytes_and_descriptors_arrive_together() {
    let (left, right) = UnixStream::pair().unwrap();
    let (mut reader, writer) = tracer();
    let memory = crate::memory::memfd("socket", 4096).unwrap();
    assert_eq!(send_with_fds(left.as_fd(), b"hello", &[writer.as_fd(), memory.as_fd()]).unwrap(), 5);
    assert_eq!(send_with_fds(left.as_fd(), b" you", &[]).unwrap(), 4);
    drop(writer);
    let (mut buf, mut fds) = ([0; 3], Vec::new());
    let outcome = recv_with_fds(right.as_fd(), &mut buf, &mut fds).unwrap();
    assert_eq!((outcome, &buf, fds.len()), (RecvOutcome { bytes: 3, truncated: false }, b"hel", 2));
    for fd in &fds {
        // SAFETY: the descriptor is open.
        let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
    let mut rest = [0; 16];
    let outcome = recv_with_fds(right.as_fd(), &mut rest, &mut fds).unwrap();
    assert_eq!((&rest[..outcome.bytes], fds.len()), (&b"lo you"[..], 2));
    drop(fds);
    assert_eq!(reader.read(&mut rest).unwrap(), 0);
}

#[test]
fn descriptors_of_two_sends_are_not_joined() {
    let (left, right) = UnixStream::pair().unwrap();
    let (_reader, writer) = tracer();
    for text in [b"abcd", b"efgh"] {
        send_with_fds(left.as_fd(), text, &[writer.as_fd()]).unwrap();
    }
    let (mut buf, mut fds) = ([0; 16], Vec::new());
    assert_eq!(recv_with_fds(right.as_fd(), &mut buf, &mut fds).unwrap().bytes, 4);
    assert_eq!(fds.len(), 1);
    assert_eq!(recv_with_fds(right.as_fd(), &mut buf, &mut fds).unwrap().bytes, 4);
    assert_eq!(fds.len(), 2);
}

#[test]
fn too_many_descriptors_are_closed_and_told() {
    for count in [MAX_FDS + 1, KERNEL_MAX_FDS] {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut reader, writer) = tracer();
        send_many(&left, &vec![writer.as_raw_fd(); count]);
        drop(writer);
        let (mut buf, mut fds) = ([0; 16], Vec::new());
        let outcome = recv_with_fds(right.as_fd(), &mut buf, &mut fds).unwrap();
        assert_eq!((outcome, fds.len()), (RecvOutcome { bytes: 1, truncated: true }, MAX_FDS));
        drop(fds);
        assert_eq!(reader.read(&mut buf).unwrap(), 0, "a descriptor leaked");
    }
}

#[test]
fn nothing_waits_and_nothing_signals() {
    let (left, right) = UnixStream::pair().unwrap();
    let (mut buf, mut fds) = ([0; 4096], Vec::new());
    let receive = |buf: &mut [u8], fds: &mut Vec<OwnedFd>| recv_with_fds(right.as_fd(), buf, fds);
    assert_eq!(receive(&mut buf, &mut fds).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(receive(&mut [], &mut fds).unwrap_err().kind(), ErrorKind::InvalidInput);
    let full = loop {
        if let Err(error) = send_with_fds(left.as_fd(), &buf, &[]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    drop(left);
    eventually("the end", || receive(&mut buf, &mut fds).is_ok_and(|outcome| outcome.bytes == 0));
    assert_eq!(send_with_fds(right.as_fd(), b"x", &[]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(send_with_fds(right.as_fd(), b"", &[]).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(send_with_fds(right.as_fd(), b"x", &[right.as_fd(); 9]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn the_peer_of_a_pair_is_this_process() {
    let (left, _right) = UnixStream::pair().unwrap();
    let peer = peer_credentials(left.as_fd()).unwrap();
    // SAFETY: geteuid(2) and getegid(2) cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    assert_eq!(peer, PeerCredentials { pid: std::process::id(), uid, gid });
    assert!(peer_credentials(crate::memory::memfd("peer", 1).unwrap().as_fd()).is_err());
}
