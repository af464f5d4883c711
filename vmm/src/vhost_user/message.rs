//! The wire format of vhost-user: headers, codes, replies, and what can be wrong with a message.
//!
//! Invariant: a header names a payload that may be read whole, and a reply has the flags and sizes that front ends insist on. All numbers
//! are in the machine's byte order. Both ends are here: the back end ([`super::session`]) and the front end ([`crate::front_end`]). Read first: vhost-user specification, "Message Specification"; then [`super::request`].

use std::os::fd::OwnedFd;

/// Bytes of a message header.
pub const HEADER_BYTES: usize = 12;
/// The longest payload that is read at all; the longest known one is 268 bytes (configuration space).
pub const MAX_PAYLOAD: u32 = 4096;
/// The most regions in one `SET_MEM_TABLE`, one descriptor each.
pub const MAX_TABLE: u32 = 8;
/// The largest configuration space a front end may ask for.
pub const CONFIG_BYTES: usize = 256;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Why bytes from a front end are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The header's version is not 1.
    #[error("message of protocol version {0}; this program speaks version 1")]
    Version(u32),
    /// A front end that was asked nothing sent a reply.
    #[error("a reply, though nothing was asked")]
    Reply,
    /// A back end that was asked something sent a request.
    #[error("{name} without the flag of a reply, where a reply was due", name = name(*.0))]
    NoReply(u32),
    /// A payload longer than any request has.
    #[error("{name} announces {size} bytes; at most {MAX_PAYLOAD} are read", name = name(*request))]
    Huge {
        /// Request code.
        request: u32,
        /// Bytes announced.
        size: u32,
    },
    /// A payload of another size than the request has.
    #[error("{name} with {size} bytes instead of {expected}", name = name(*request))]
    Size {
        /// Request code.
        request: u32,
        /// Bytes that came.
        size: usize,
        /// What the specification asks for.
        expected: &'static str,
    },
    /// Too few or too many file descriptors.
    #[error("{name} with {count} file descriptors instead of {expected}", name = name(*request))]
    Descriptors {
        /// Request code.
        request: u32,
        /// How many came.
        count: usize,
        /// How many belong to it.
        expected: usize,
    },
    /// More file descriptors than any message has.
    #[error("a message with more than {} file descriptors", sys::socket::MAX_FDS)]
    TooManyDescriptors,
    /// A memory table of no or too many regions.
    #[error("SET_MEM_TABLE with {0} regions; allowed are 1 to {MAX_TABLE}")]
    Regions(u32),
    /// A value that its field cannot have.
    #[error("{name}: {what} {value}; allowed is {allowed}", name = name(*request))]
    Value {
        /// Request code.
        request: u32,
        /// Which field.
        what: &'static str,
        /// What it holds.
        value: u64,
        /// What it may hold.
        allowed: &'static str,
    },
}

macro_rules! codes {
    ($($name:ident = $code:literal,)*) => {
        /// Request codes of front ends, as the specification names them.
        #[allow(missing_docs)]
        pub mod code {
            $(pub const $name: u32 = $code;)*
        }

        /// The name of a request code.
        pub fn name(code: u32) -> String {
            match code {
                $($code => stringify!($name).to_owned(),)*
                _ => format!("request {code}"),
            }
        }
    };
}

codes! {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SEND_RARP = 19,
    NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22,
    SET_VRING_ENDIAN = 23,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    CREATE_CRYPTO_SESSION = 26,
    CLOSE_CRYPTO_SESSION = 27,
    POSTCOPY_ADVISE = 28,
    POSTCOPY_LISTEN = 29,
    POSTCOPY_END = 30,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    GPU_SET_SOCKET = 33,
    RESET_DEVICE = 34,
    VRING_KICK = 35,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
    GET_STATUS = 40,
    GET_SHARED_OBJECT = 41,
    SET_DEVICE_STATE_FD = 42,
    CHECK_DEVICE_STATE = 43,
    GET_SHMEM_CONFIG = 44,
}

/// The 12 bytes before every payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Request code, see [`code`].
    pub request: u32,
    /// Whether the front end wants to know how it went (counts only once REPLY_ACK is agreed on).
    pub need_reply: bool,
    /// Bytes of the payload.
    pub size: u32,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// The version is not 1, it is a reply, or it announces more than [`MAX_PAYLOAD`] bytes.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, MessageError> {
        match Header::parse_any(bytes)? {
            (_, true) => Err(MessageError::Reply),
            (header, false) => Ok(header),
        }
    }

    /// Reads the header of a reply.
    ///
    /// # Errors
    /// The version is not 1, or it is no reply. How long it may be depends on what was asked: that is left to who asked.
    pub fn parse_reply(bytes: &[u8; HEADER_BYTES]) -> Result<Header, MessageError> {
        match Header::parse_any(bytes)? {
            (header, true) => Ok(header),
            (header, false) => Err(MessageError::NoReply(header.request)),
        }
    }

    /// Reads a header, and whether it is that of a reply.
    fn parse_any(bytes: &[u8; HEADER_BYTES]) -> Result<(Header, bool), MessageError> {
        let mut fields = Fields(bytes);
        let (request, flags, size) = (fields.u32(), fields.u32(), fields.u32());
        if flags & VERSION_MASK != VERSION {
            return Err(MessageError::Version(flags & VERSION_MASK));
        }
        let is_reply = flags & FLAG_REPLY != 0;
        if size > MAX_PAYLOAD && !is_reply {
            return Err(MessageError::Huge { request, size });
        }
        Ok((Header { request, need_reply: flags & FLAG_NEED_REPLY != 0, size }, is_reply))
    }

    /// The header of a request as it goes onto the wire.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let flags = if self.need_reply { VERSION | FLAG_NEED_REPLY } else { VERSION };
        let mut bytes = [0; HEADER_BYTES];
        let words = [self.request, flags, self.size].into_iter().flat_map(u32::to_ne_bytes);
        bytes.iter_mut().zip(words).for_each(|(to, byte)| *to = byte);
        bytes
    }
}

/// A region of guest memory as a front end describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// The front end's virtual address.
    pub user: u64,
    /// Where the region begins in the file behind it.
    pub offset: u64,
}

impl RegionSpec {
    /// The region as it lies in messages.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let words = [self.guest, self.size, self.user, self.offset].into_iter().flat_map(u64::to_ne_bytes);
        bytes.iter_mut().zip(words).for_each(|(to, byte)| *to = byte);
        bytes
    }
}

/// Where a front end put the parts of a ring: its own virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddress {
    /// Descriptor area.
    pub descriptors: u64,
    /// Device area (used ring).
    pub used: u64,
    /// Driver area (available ring).
    pub avail: u64,
}

/// The layout of a buffer for inflight tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightSpec {
    /// Bytes of the buffer.
    pub size: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// How many virtqueues it covers.
    pub queues: u16,
    /// Entries of each virtqueue.
    pub entries: u16,
}

/// A reply as it goes onto the wire, with its descriptor if it has one.
#[derive(Debug)]
pub struct Reply {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// A descriptor to attach.
    pub fd: Option<OwnedFd>,
}

impl Reply {
    /// The reply to `request` with this payload.
    pub fn new(request: u32, payload: &[u8]) -> Reply {
        let words = [request, VERSION | FLAG_REPLY, payload.len() as u32];
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes()).chain(payload.iter().copied()).collect();
        Reply { bytes, fd: None }
    }

    /// The reply to `request` that is one number.
    pub fn word(request: u32, value: u64) -> Reply {
        Reply::new(request, &value.to_ne_bytes())
    }

    /// The reply to `request` that is a ring's index and a number (a vring state description).
    pub fn state(request: u32, ring: u16, value: u32) -> Reply {
        let index = u32::from(ring).to_ne_bytes();
        Reply::new(request, &[index, value.to_ne_bytes()].concat())
    }

    /// The reply to `SET_LOG_BASE`. The specification asks for no payload and front ends read any; some insist on their own words.
    pub fn log(size: u64, offset: u64) -> Reply {
        Reply::new(code::SET_LOG_BASE, &[size.to_ne_bytes(), offset.to_ne_bytes()].concat())
    }

    /// The reply to `GET_CONFIG`; no bytes mean that the question was wrong.
    pub fn config(offset: u32, flags: u32, bytes: &[u8]) -> Reply {
        let words = [offset, bytes.len() as u32, flags];
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Reply::new(code::GET_CONFIG, &[&words, bytes].concat())
    }

    /// The reply to `GET_INFLIGHT_FD`, in the 24 bytes that the C structure has with its padding.
    pub fn inflight(spec: InflightSpec, fd: OwnedFd) -> Reply {
        let mut payload = [spec.size.to_ne_bytes(), spec.offset.to_ne_bytes()].concat();
        payload.extend([spec.queues.to_ne_bytes(), spec.entries.to_ne_bytes(), [0; 2], [0; 2]].concat());
        Reply { fd: Some(fd), ..Reply::new(code::GET_INFLIGHT_FD, &payload) }
    }
}

/// Fields read one after the other; past the end they are zero, but lengths were checked before.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((bytes, rest)) => {
                self.0 = rest;
                *bytes
            }
            None => [0; N],
        }
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    pub(super) fn region(&mut self) -> RegionSpec {
        RegionSpec { guest: self.u64(), size: self.u64(), user: self.u64(), offset: self.u64() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_both_directions_are_told_apart() {
        let header = Header { request: code::SET_FEATURES, need_reply: true, size: 8 };
        assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
        assert_eq!(Header::parse_reply(&header.to_bytes()), Err(MessageError::NoReply(code::SET_FEATURES)));
        let reply = Reply::word(code::GET_FEATURES, 0).bytes;
        let bytes: &[u8; HEADER_BYTES] = reply.first_chunk().unwrap();
        let expected = Header { request: code::GET_FEATURES, need_reply: false, size: 8 };
        assert_eq!((Header::parse_reply(bytes), Header::parse(bytes)), (Ok(expected), Err(MessageError::Reply)));
    }
}
