//! [`RecvBatch`]: up to [`BATCH`] datagrams by one system call, and the errors that came back for those sent.
//!
//! Invariant: every buffer has room for the longest datagram, so none is cut off. Read first: [`super`], recvmmsg(2), ip(7) on IP_RECVERR.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    ptr,
};

use super::{BATCH, CONTROL_WORDS, Control, Datagrams, Name};
use crate::call::retry;

/// The longest datagram with its headers, and what many of one size come in as together.
pub(super) const LONGEST: usize = 65_535;
/// From the start of one buffer to that of the next: no power of two, so that first bytes do not all fall into one set of a cache.
pub(super) const STRIDE: usize = 65_536 + 704;

/// A datagram that came in, or a run of them.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'b> {
    /// Its bytes; of a run, those of all.
    pub bytes: &'b [u8],
    /// Who sent it.
    pub from: SocketAddr,
    /// Bytes of each datagram but the last, where the bytes are those of many; zero when it is one.
    pub segment: u16,
    /// Its TOS or traffic class.
    pub tos: u8,
    /// Its TTL or hop limit; zero where the socket does not tell (UDP).
    pub ttl: u8,
}

/// Who found that a datagram could not go where it was to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// This host.
    Here,
    /// Whoever sent an ICMP or ICMPv6 error.
    Outside,
}

/// What came back for a datagram that was sent.
#[derive(Clone, Copy, Debug)]
pub struct SendError<'b> {
    /// Who found it.
    pub found: Found,
    /// The error as the kernel names it (errno).
    pub errno: i32,
    /// ICMP or ICMPv6 type, when it was found outside.
    pub kind: u8,
    /// ICMP or ICMPv6 code.
    pub code: u8,
    /// The MTU, of errors that tell one; else zero or what the header has there.
    pub info: u32,
    /// Where the datagram was to go. Found here, the port may be zero.
    pub to: Option<SocketAddr>,
    /// Who sent the ICMP error.
    pub offender: Option<IpAddr>,
    /// What was quoted of the datagram: of UDP behind its header, of ping sockets with the ICMP header.
    pub quoted: &'b [u8],
}

/// What recvmmsg(2) is told of a batch, and what it tells back.
pub(super) struct Messages {
    names: Box<[Name]>,
    controls: Box<[Control]>,
    parts: Box<[MaybeUninit<libc::iovec>]>,
    headers: Box<[MaybeUninit<libc::mmsghdr>]>,
    len: usize,
}

// SAFETY: headers and parts point into the boxes beside them, which move with them, and to where bytes go, which is looked at within one call of
// `receive` only.
unsafe impl Send for Messages {}

impl Default for Messages {
    fn default() -> Self {
        Messages {
            names: vec![Name::EMPTY; BATCH].into(),
            controls: vec![[0; CONTROL_WORDS]; BATCH].into(),
            parts: (0..BATCH).map(|_| MaybeUninit::uninit()).collect(),
            headers: (0..BATCH).map(|_| MaybeUninit::uninit()).collect(),
            len: 0,
        }
    }
}

/// What came with a datagram.
pub(super) struct Facts {
    pub(super) len: usize,
    pub(super) from: SocketAddr,
    pub(super) segment: u16,
    pub(super) tos: u8,
    pub(super) ttl: u8,
}

impl Messages {
    /// Datagrams in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Receives up to `most` datagrams, the one at an index to `place` of it and of no more than [`LONGEST`] bytes.
    ///
    /// # Safety
    /// Every place is writable for [`LONGEST`] bytes until this returns, and nothing else looks at it.
    pub(super) unsafe fn receive(
        &mut self,
        socket: &Datagrams,
        most: usize,
        place: impl Fn(usize) -> *mut u8,
    ) -> io::Result<usize> {
        self.len = 0;
        let most = most.min(BATCH);
        for index in 0..most {
            self.prepare(index, place(index));
        }
        // SAFETY: the first `most` headers are written, and what they point at lies in boxes of ours or where the caller vouches for. No time
        // limit is given.
        let count = retry(|| unsafe {
            let headers = self.headers.as_mut_ptr().cast();
            libc::recvmmsg(socket.as_raw_fd(), headers, most as libc::c_uint, libc::MSG_DONTWAIT as _, ptr::null_mut())
        })?;
        self.len = count.unsigned_abs() as usize;
        Ok(self.len)
    }

    /// Writes the header of the message at `index`.
    fn prepare(&mut self, index: usize, place: *mut u8) {
        let (Some(name), Some(control), Some(part), Some(header)) = (
            self.names.get_mut(index),
            self.controls.get_mut(index),
            self.parts.get_mut(index),
            self.headers.get_mut(index),
        ) else {
            return;
        };
        part.write(libc::iovec { iov_base: place.cast(), iov_len: LONGEST });
        // SAFETY: all zeros is a valid header: null pointers with lengths of 0.
        let mut made: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        made.msg_hdr.msg_name = name.ptr_mut().cast();
        made.msg_hdr.msg_namelen = size_of::<Name>() as libc::socklen_t;
        made.msg_hdr.msg_iov = part.as_mut_ptr();
        made.msg_hdr.msg_iovlen = 1 as _;
        made.msg_hdr.msg_control = control.as_mut_ptr().cast();
        made.msg_hdr.msg_controllen = size_of::<Control>() as _;
        header.write(made);
    }

    /// What came at `index`; nothing when there is none or it names no sender.
    pub(super) fn facts(&self, index: usize) -> Option<Facts> {
        let header = self.headers.get(..self.len)?.get(index)?;
        // SAFETY: `len` headers were written by `receive`.
        let header = unsafe { header.assume_init_ref() };
        let from = self.names.get(index)?.get()?;
        let mut facts = Facts { len: (header.msg_len as usize).min(LONGEST), from, segment: 0, tos: 0, ttl: 0 };
        each_control(&header.msg_hdr, |level, kind, value| match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => facts.segment = number(value) as u16,
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                facts.tos = number(value) as u8;
            }
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                facts.ttl = number(value) as u8;
            }
            _ => {}
        });
        Some(facts)
    }
}

/// Datagrams that came in from one socket. See the module's documentation.
pub struct RecvBatch {
    buffers: Box<[u8]>,
    messages: Messages,
}

impl Default for RecvBatch {
    fn default() -> Self {
        RecvBatch { buffers: vec![0; BATCH * STRIDE].into(), messages: Messages::default() }
    }
}

impl RecvBatch {
    /// Datagrams in it.
    pub fn len(&self) -> usize {
        self.messages.len
    }

    /// None in it.
    pub fn is_empty(&self) -> bool {
        self.messages.len == 0
    }

    /// Receives up to `most` datagrams (or runs of them) with one call, in place of those that were in it, and tells how many came.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has arrived; an error that came back for something sent earlier; else what recvmmsg(2) reports.
    pub fn receive(&mut self, socket: &Datagrams, most: usize) -> io::Result<usize> {
        let buffers = self.buffers.as_mut_ptr();
        // SAFETY: there are as many buffers as messages, each of them longer than asked for, and all are borrowed for this call. The pointer
        // arithmetic stays inside the box.
        unsafe { self.messages.receive(socket, most, |index| buffers.add(index * STRIDE)) }
    }

    /// The datagram at `index`; nothing when there is none or it names no sender.
    pub fn get(&self, index: usize) -> Option<Incoming<'_>> {
        let Facts { len, from, segment, tos, ttl } = self.messages.facts(index)?;
        let at = index * STRIDE;
        Some(Incoming { bytes: self.buffers.get(at..at + len)?, from, segment, tos, ttl })
    }

    /// The next error that came back, if there is one. What was received is gone.
    ///
    /// # Errors
    /// What recvmsg(2) reports.
    pub fn error(&mut self, socket: &Datagrams) -> io::Result<Option<SendError<'_>>> {
        self.messages.len = 0;
        self.messages.prepare(0, self.buffers.as_mut_ptr());
        let Some(header) = self.messages.headers.first_mut() else { return Ok(None) };
        // SAFETY: `prepare` has written the header.
        let header = unsafe { &mut header.assume_init_mut().msg_hdr };
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        // SAFETY: the header points into boxes of ours.
        let bytes = match retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut *header, flags) }) {
            Ok(bytes) => bytes.unsigned_abs(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let to = if header.msg_namelen > 0 { self.messages.names.first().and_then(Name::get) } else { None };
        let mut found = SendError {
            found: Found::Here,
            errno: 0,
            kind: 0,
            code: 0,
            info: 0,
            to,
            offender: None,
            quoted: self.buffers.get(..bytes.min(LONGEST)).unwrap_or_default(),
        };
        each_control(header, |level, kind, value| {
            if !matches!((level, kind), (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR))
            {
                return;
            }
            const ERROR: usize = size_of::<libc::sock_extended_err>();
            let Some(error) = value.get(..ERROR) else { return };
            // SAFETY: as many bytes as the structure has, any of which are one.
            let error = unsafe { error.as_ptr().cast::<libc::sock_extended_err>().read_unaligned() };
            found.errno = error.ee_errno as i32;
            found.kind = error.ee_type;
            found.code = error.ee_code;
            found.info = error.ee_info;
            if matches!(error.ee_origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6) {
                found.found = Found::Outside;
                let mut name = Name::EMPTY;
                let rest = value.get(ERROR..).unwrap_or_default();
                let n = rest.len().min(size_of::<Name>());
                // SAFETY: `n` bytes are there on both sides, and any bytes are a name.
                unsafe { ptr::copy_nonoverlapping(rest.as_ptr(), (&raw mut name).cast(), n) };
                found.offender = name.get().map(|name| name.ip());
            }
        });
        Ok(Some(found))
    }
}

/// The first bytes of a control message's value as a number: one byte or four, two of segments.
fn number(value: &[u8]) -> u32 {
    match *value {
        [one] => u32::from(one),
        [a, b] => u32::from(u16::from_ne_bytes([a, b])),
        [a, b, c, d, ..] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Shows every control message of a header that the kernel has filled.
fn each_control(header: &libc::msghdr, mut show: impl FnMut(libc::c_int, libc::c_int, &[u8])) {
    // SAFETY: the kernel has filled the control buffer with well-formed messages of the length it has set.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: the pointer is null or points to a control message inside the buffer.
    while let Some(cmsg) = unsafe { next.as_ref() } {
        // SAFETY: the data of this control message follows its header and is as long as it says.
        let value = unsafe {
            let data = libc::CMSG_DATA(next);
            let before = data.addr() - next.addr();
            #[allow(clippy::unnecessary_cast)]
            std::slice::from_raw_parts(data, (cmsg.cmsg_len as usize).saturating_sub(before))
        };
        show(cmsg.cmsg_level, cmsg.cmsg_type, value);
        // SAFETY: both pointers lie in the control buffer that the header describes.
        next = unsafe { libc::CMSG_NXTHDR(header, cmsg) };
    }
}
