//! [`SendBatch`]: up to [`BATCH`] datagrams out of one socket with one system call.
//!
//! Invariant: the addresses in headers and parts are used within the call of `send` that wrote them. Read first: [`super`], sendmmsg(2).

use std::{io, mem::MaybeUninit, net::SocketAddr, os::fd::AsRawFd, ptr};

use super::{BATCH, CONTROL_WORDS, Control, Datagrams, Name};
use crate::{arena::Arena, call::retry, guest::Lent};

/// Bytes at the start of a datagram that are copied, at most.
pub const FRONT: usize = 160;
/// Lent pieces in a batch, at most. The kernel takes as many in one message.
const PARTS: usize = 1024;

/// How one datagram, or a run of them of one size, is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// Where to.
    pub to: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Bytes of each datagram but the last, where the bytes are those of many; zero when it is one.
    pub segment: u16,
}

struct Message {
    name: Name,
    front: [u8; FRONT],
    front_len: usize,
    parts: (usize, usize),
    control: Control,
    control_len: usize,
}

const NO_MESSAGE: Message = Message {
    name: Name::EMPTY,
    front: [0; FRONT],
    front_len: 0,
    parts: (0, 0),
    control: [0; CONTROL_WORDS],
    control_len: 0,
};

/// Bytes of a datagram behind its first.
#[derive(Clone, Copy)]
enum Part {
    Lent(Lent),
    /// Of the batch's own: where, and how many.
    Own(usize, usize),
}

/// Datagrams on their way out of one socket. See the module's documentation.
pub struct SendBatch {
    messages: Box<[Message]>,
    len: usize,
    parts_of: Vec<Part>,
    /// First bytes of datagrams that were joined to others.
    own: Box<[u8]>,
    own_len: usize,
    headers: Box<[MaybeUninit<libc::mmsghdr>]>,
    parts: Box<[MaybeUninit<libc::iovec>]>,
}

// SAFETY: headers and parts are written and read within one call of `send`; between calls nothing looks at the addresses in them.
unsafe impl Send for SendBatch {}

impl Default for SendBatch {
    fn default() -> Self {
        // As many first bytes as there can be pieces behind them, each datagram having one at least.
        SendBatch::with_room(PARTS / 2 * FRONT)
    }
}

impl SendBatch {
    /// A batch with so many bytes of its own: for first bytes of datagrams that are joined to others, and for what [`SendBatch::room`] is asked for.
    pub fn with_room(own: usize) -> SendBatch {
        SendBatch {
            messages: (0..BATCH).map(|_| NO_MESSAGE).collect(),
            len: 0,
            parts_of: Vec::with_capacity(PARTS),
            own: vec![0; own].into(),
            own_len: 0,
            headers: (0..BATCH).map(|_| MaybeUninit::uninit()).collect(),
            parts: (0..PARTS + BATCH).map(|_| MaybeUninit::uninit()).collect(),
        }
    }

    /// Datagrams in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// None in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.len = 0;
        self.own_len = 0;
        self.parts_of.clear();
    }

    /// Makes the datagram pushed last longer by those bytes: the next of a run, whose [`Outgoing::segment`] that one has. False when there is
    /// no room, or nothing to make longer.
    #[must_use]
    pub fn join(&mut self, front: &[u8], pieces: impl Iterator<Item = Lent>) -> bool {
        let Some(place) = self.room(front.len()) else { return false };
        place.copy_from_slice(front);
        self.join_room(front.len(), pieces)
    }

    /// The next `len` bytes of its own, to be filled for [`SendBatch::push_room`] or [`SendBatch::join_room`]; nothing when they are used up.
    pub fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.own.get_mut(self.own_len..)?.get_mut(..len)
    }

    /// [`SendBatch::join`] of the first `len` bytes of what [`SendBatch::room`] gave, and the pieces.
    #[must_use]
    pub fn join_room(&mut self, len: usize, pieces: impl Iterator<Item = Lent>) -> bool {
        let Some(last) = self.len.checked_sub(1) else { return false };
        let (before, at) = (self.parts_of.len(), self.own_len);
        if at + len > self.own.len() {
            return false;
        }
        let Some(message) = self.messages.get_mut(last) else { return false };
        // Bytes of our own that lie behind each other are one part.
        let joined = message.parts.0 < before;
        let mut longer = false;
        match self.parts_of.last_mut().filter(|_| joined) {
            Some(Part::Own(start, own)) if *start + *own == at => {
                *own += len;
                longer = true;
            }
            _ if before == PARTS => return false,
            _ => self.parts_of.push(Part::Own(at, len)),
        }
        for piece in pieces {
            if self.parts_of.len() == PARTS {
                // As it was.
                self.parts_of.truncate(before);
                if let Some(Part::Own(_, own)) = self.parts_of.last_mut().filter(|_| longer) {
                    *own -= len;
                }
                return false;
            }
            self.parts_of.push(Part::Lent(piece));
        }
        self.own_len = at + len;
        message.parts.1 = self.parts_of.len();
        true
    }

    /// Adds a datagram of the first `len` bytes of what [`SendBatch::room`] gave, for `socket`; false when there is no room.
    #[must_use]
    pub fn push_room(&mut self, socket: &Datagrams, how: Outgoing, len: usize) -> bool {
        let fits = self.own_len + len <= self.own.len() && self.parts_of.len() < PARTS;
        fits && self.push(socket, how, &[], std::iter::empty()) && self.join_room(len, std::iter::empty())
    }

    /// Adds a datagram of `front` and then the pieces, for `socket`; false when there is no room, or `front` is longer than [`FRONT`].
    #[must_use]
    pub fn push(
        &mut self,
        socket: &Datagrams,
        how: Outgoing,
        front: &[u8],
        pieces: impl Iterator<Item = Lent>,
    ) -> bool {
        let Some(message) = self.messages.get_mut(self.len) else { return false };
        let Some(place) = message.front.get_mut(..front.len()) else { return false };
        place.copy_from_slice(front);
        message.front_len = front.len();
        let first = self.parts_of.len();
        for piece in pieces {
            if self.parts_of.len() == PARTS {
                self.parts_of.truncate(first);
                return false;
            }
            self.parts_of.push(Part::Lent(piece));
        }
        message.parts = (first, self.parts_of.len());
        message.name = Name::new(how.to);
        let mut control = ControlWriter { control: &mut message.control, len: 0 };
        let (level, ttl, tos) = match socket.kind.is_v6() {
            true => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS),
            false => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS),
        };
        if how.ttl != socket.ttl {
            control.put(level, ttl, &i32::from(how.ttl).to_ne_bytes());
        }
        if how.tos != socket.tos {
            control.put(level, tos, &i32::from(how.tos).to_ne_bytes());
        }
        if how.segment != 0 {
            control.put(libc::SOL_UDP, libc::UDP_SEGMENT, &how.segment.to_ne_bytes());
        }
        message.control_len = control.len;
        self.len += 1;
        true
    }

    /// Sends those from `from` on with one call, and tells how many the socket took; fewer than there were if one of them fails, of which the
    /// next call from there on tells the reason.
    ///
    /// # Errors
    /// What befell the first: `WouldBlock` when the socket is full, EMSGSIZE (see [`Datagrams::df`]), an error that came back earlier, or what
    /// sendmsg(2) reports. `InvalidInput` when what was lent is not held by `arena` any more.
    pub fn send(&mut self, socket: &Datagrams, arena: &Arena, from: usize) -> io::Result<usize> {
        if !self
            .parts_of
            .iter()
            .all(|part| matches!(part, Part::Lent(piece) if arena.holds(piece)) || matches!(part, Part::Own(..)))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut used = 0;
        let mut count: libc::c_uint = 0;
        for (message, header) in self.messages.iter_mut().take(self.len).skip(from).zip(self.headers.iter_mut()) {
            let first = used;
            let (start, end) = message.parts;
            let front = libc::iovec { iov_base: message.front.as_mut_ptr().cast(), iov_len: message.front_len };
            let own = &mut self.own;
            let behind = self.parts_of.get(start..end).unwrap_or_default().iter().map(|part| match part {
                Part::Lent(piece) => libc::iovec { iov_base: piece.ptr.as_ptr().cast(), iov_len: piece.len as usize },
                Part::Own(at, len) => {
                    let bytes = own.get_mut(*at..*at + *len).unwrap_or_default();
                    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
                }
            });
            for part in std::iter::once(front).chain(behind) {
                // There are as many places as datagrams and pieces can be.
                let Some(place) = self.parts.get_mut(used) else { return Err(io::ErrorKind::InvalidInput.into()) };
                place.write(part);
                used += 1;
            }
            // SAFETY: all zeros is a valid header: null pointers with lengths of 0.
            let mut made: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
            made.msg_hdr.msg_name = message.name.ptr_mut().cast();
            made.msg_hdr.msg_namelen = message.name.len();
            // SAFETY: `first <= used`, which is within the parts.
            made.msg_hdr.msg_iov = unsafe { self.parts.as_mut_ptr().add(first) }.cast();
            made.msg_hdr.msg_iovlen = (used - first) as _;
            if message.control_len > 0 {
                made.msg_hdr.msg_control = message.control.as_mut_ptr().cast();
                made.msg_hdr.msg_controllen = message.control_len as _;
            }
            header.write(made);
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the first `count` headers are written, and what they point at is ours for the call: names, fronts, control messages and parts
        // in boxes, and lent bytes, which `arena` holds. The kernel copes with those changing meanwhile.
        let sent = retry(|| unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr().cast(), count, flags as _)
        })?;
        Ok(sent.unsigned_abs() as usize)
    }
}

/// Writes control messages one after the other.
struct ControlWriter<'c> {
    control: &'c mut Control,
    len: usize,
}

impl ControlWriter<'_> {
    fn put(&mut self, level: libc::c_int, kind: libc::c_int, value: &[u8]) {
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space, len) = unsafe { (libc::CMSG_SPACE(value.len() as u32), libc::CMSG_LEN(value.len() as u32)) };
        if self.len + space as usize > size_of::<Control>() {
            return;
        }
        // SAFETY: the message with its value lies inside the buffer, which is aligned for it, as all messages are multiples of its alignment.
        unsafe {
            let at = self.control.as_mut_ptr().cast::<u8>().add(self.len);
            let header = at.cast::<libc::cmsghdr>();
            (*header).cmsg_len = len as _;
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            ptr::copy_nonoverlapping(value.as_ptr(), libc::CMSG_DATA(header), value.len());
        }
        self.len += space as usize;
    }
}
