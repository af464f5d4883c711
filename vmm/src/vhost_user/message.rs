//! The wire format of vhost-user: headers, requests with their payloads and descriptors, replies.
//!
//! Invariant: a [`Request`] has the size, the number of file descriptors and the field ranges that its kind asks for, so nothing behind
//! this edge checks lengths again; what does not is a [`MessageError`] with a name. All numbers are in the machine's byte order.
//! Read first: vhost-user specification, "Message Specification" and "Front-end message types".

use std::os::fd::OwnedFd;

use wire::Mac;

use crate::features::Features;

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
const NO_DESCRIPTOR: u64 = 1 << 8;
const REGION_BYTES: usize = 32;

/// Why bytes from a front end are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The header's version is not 1.
    #[error("message of protocol version {0}; this program speaks version 1")]
    Version(u32),
    /// A front end that was asked nothing sent a reply.
    #[error("a reply, though nothing was asked")]
    Reply,
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
        let mut fields = Fields(bytes);
        let (request, flags, size) = (fields.u32(), fields.u32(), fields.u32());
        if flags & VERSION_MASK != VERSION {
            return Err(MessageError::Version(flags & VERSION_MASK));
        }
        if flags & FLAG_REPLY != 0 {
            return Err(MessageError::Reply);
        }
        if size > MAX_PAYLOAD {
            return Err(MessageError::Huge { request, size });
        }
        Ok(Header { request, need_reply: flags & FLAG_NEED_REPLY != 0, size })
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

/// What a front end asks for.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Request {
    GetFeatures,
    SetFeatures(Features),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(RegionSpec, OwnedFd)>),
    /// The dirty log: its file, the bytes of it, and where it begins there.
    SetLogBase {
        fd: OwnedFd,
        size: u64,
        offset: u64,
    },
    SetLogFd,
    SetVringNum {
        ring: u16,
        entries: u16,
    },
    SetVringAddr {
        ring: u16,
        address: RingAddress,
    },
    SetVringBase {
        ring: u16,
        base: u32,
    },
    GetVringBase {
        ring: u16,
    },
    /// Without a descriptor the ring is to be polled.
    SetVringKick {
        ring: u16,
        fd: Option<OwnedFd>,
    },
    /// Without a descriptor the driver polls.
    SetVringCall {
        ring: u16,
        fd: Option<OwnedFd>,
    },
    SetVringErr {
        ring: u16,
        fd: Option<OwnedFd>,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable {
        ring: u16,
        enable: bool,
    },
    SendRarp(Mac),
    NetSetMtu(u64),
    /// The descriptor is closed: this back end asks its front end nothing.
    SetBackendReqFd,
    GetConfig {
        offset: u32,
        size: u32,
        flags: u32,
    },
    SetConfig {
        offset: u32,
        flags: u32,
        bytes: Vec<u8>,
    },
    GetInflightFd(InflightSpec),
    SetInflightFd(InflightSpec, OwnedFd),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionSpec, OwnedFd),
    RemMemReg(RegionSpec),
    SetStatus(u8),
    GetStatus,
    /// A request that this back end does not know or did not offer.
    Unsupported(u32),
}

impl Request {
    /// Reads a payload and takes the descriptors that came with it; those that a request has no use for are closed.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn parse(request: u32, payload: &[u8], mut fds: Vec<OwnedFd>) -> Result<Request, MessageError> {
        let count = fds.len();
        let size = |expected: &'static str| MessageError::Size { request, size: payload.len(), expected };
        let sized = |bytes: usize, expected: &'static str| {
            if payload.len() == bytes { Ok(Fields(payload)) } else { Err(size(expected)) }
        };
        let empty = || sized(0, "0");
        let descriptors = |expected| MessageError::Descriptors { request, count, expected };
        let none = || if count == 0 { Ok(()) } else { Err(descriptors(0)) };
        let mut one = || match (count, fds.pop()) {
            (1, Some(fd)) => Ok(fd),
            _ => Err(descriptors(1)),
        };
        let word = || sized(8, "8").map(|mut fields| fields.u64());
        let state = || {
            let mut fields = sized(8, "8")?;
            Ok((index(request, u64::from(fields.u32()))?, fields.u32()))
        };
        let parsed = match request {
            code::GET_FEATURES => empty().map(|_| Request::GetFeatures)?,
            code::SET_FEATURES => Request::SetFeatures(Features(word()?)),
            code::SET_OWNER => empty().map(|_| Request::SetOwner)?,
            code::RESET_OWNER => empty().map(|_| Request::ResetOwner)?,
            code::SET_MEM_TABLE => return memory_table(payload, fds),
            code::SET_LOG_BASE => {
                let mut fields = sized(16, "16")?;
                return Ok(Request::SetLogBase { size: fields.u64(), offset: fields.u64(), fd: one()? });
            }
            code::SET_LOG_FD => {
                empty()?;
                return one().map(|_| Request::SetLogFd);
            }
            code::SET_VRING_NUM => {
                let (ring, entries) = state()?;
                let entries = ranged(request, "entries", entries, 1..=32768, "1 to 32768")?;
                Request::SetVringNum { ring, entries }
            }
            code::SET_VRING_ADDR => {
                let mut fields = sized(40, "40")?;
                let ring = index(request, u64::from(fields.u32()))?;
                let _flags = fields.u32();
                let (descriptors, used, avail) = (fields.u64(), fields.u64(), fields.u64());
                Request::SetVringAddr { ring, address: RingAddress { descriptors, used, avail } }
            }
            code::SET_VRING_BASE => state().map(|(ring, base)| Request::SetVringBase { ring, base })?,
            code::GET_VRING_BASE => state().map(|(ring, _)| Request::GetVringBase { ring })?,
            code::SET_VRING_KICK | code::SET_VRING_CALL | code::SET_VRING_ERR => {
                let word = word()?;
                let ring = index(request, word & 0xff)?;
                let fd = if word & NO_DESCRIPTOR == 0 { Some(one()?) } else { none().map(|()| None)? };
                return Ok(match request {
                    code::SET_VRING_KICK => Request::SetVringKick { ring, fd },
                    code::SET_VRING_CALL => Request::SetVringCall { ring, fd },
                    _ => Request::SetVringErr { ring, fd },
                });
            }
            code::GET_PROTOCOL_FEATURES => empty().map(|_| Request::GetProtocolFeatures)?,
            code::SET_PROTOCOL_FEATURES => Request::SetProtocolFeatures(word()?),
            code::GET_QUEUE_NUM => empty().map(|_| Request::GetQueueNum)?,
            code::SET_VRING_ENABLE => {
                let (ring, enable) = state()?;
                Request::SetVringEnable { ring, enable: ranged(request, "enable", enable, 0..=1, "0 or 1")? == 1 }
            }
            code::SEND_RARP => {
                let [a, b, c, d, e, f, ..] = word()?.to_ne_bytes();
                Request::SendRarp(Mac::new([a, b, c, d, e, f]))
            }
            code::NET_SET_MTU => Request::NetSetMtu(word()?),
            code::SET_BACKEND_REQ_FD => {
                empty()?;
                return one().map(|_| Request::SetBackendReqFd);
            }
            code::GET_CONFIG => {
                let (offset, flags, bytes) = config(request, payload)?;
                Request::GetConfig { offset, size: bytes.len() as u32, flags }
            }
            code::SET_CONFIG => {
                let (offset, flags, bytes) = config(request, payload)?;
                Request::SetConfig { offset, flags, bytes: bytes.to_vec() }
            }
            code::GET_INFLIGHT_FD => Request::GetInflightFd(inflight(payload).ok_or(size("20 or 24"))?),
            code::SET_INFLIGHT_FD => {
                return Ok(Request::SetInflightFd(inflight(payload).ok_or(size("20 or 24"))?, one()?));
            }
            code::RESET_DEVICE => empty().map(|_| Request::ResetDevice)?,
            code::GET_MAX_MEM_SLOTS => empty().map(|_| Request::GetMaxMemSlots)?,
            code::ADD_MEM_REG => {
                let mut fields = sized(8 + REGION_BYTES, "40")?;
                fields.u64();
                return Ok(Request::AddMemReg(fields.region(), one()?));
            }
            code::REM_MEM_REG => {
                let mut fields = sized(8 + REGION_BYTES, "40")?;
                fields.u64();
                // Some front ends send the region's descriptor again, which the specification tolerates.
                if count > 1 {
                    return Err(descriptors(0));
                }
                return Ok(Request::RemMemReg(fields.region()));
            }
            code::SET_STATUS => {
                let status = word()?;
                let wrong = MessageError::Value { request, what: "status", value: status, allowed: "0 to 255" };
                Request::SetStatus(u8::try_from(status).map_err(|_| wrong)?)
            }
            code::GET_STATUS => empty().map(|_| Request::GetStatus)?,
            _ => return Ok(Request::Unsupported(request)),
        };
        none()?;
        Ok(parsed)
    }
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

fn index(request: u32, value: u64) -> Result<u16, MessageError> {
    let wrong = MessageError::Value { request, what: "ring", value, allowed: "0 to 255" };
    u8::try_from(value).map(u16::from).map_err(|_| wrong)
}

fn ranged(
    request: u32,
    what: &'static str,
    value: u32,
    range: std::ops::RangeInclusive<u32>,
    allowed: &'static str,
) -> Result<u16, MessageError> {
    let wrong = MessageError::Value { request, what, value: u64::from(value), allowed };
    if range.contains(&value) { u16::try_from(value).map_err(|_| wrong) } else { Err(wrong) }
}

/// `SET_MEM_TABLE`: some front ends send room for more regions than they count.
fn memory_table(payload: &[u8], fds: Vec<OwnedFd>) -> Result<Request, MessageError> {
    let request = code::SET_MEM_TABLE;
    let size = MessageError::Size { request, size: payload.len(), expected: "8 and 32 for each region" };
    let Some((head, table)) = payload.split_at_checked(8) else { return Err(size) };
    let regions = Fields(head).u32();
    if !(1..=MAX_TABLE).contains(&regions) {
        return Err(MessageError::Regions(regions));
    }
    let count = regions as usize;
    if !table.len().is_multiple_of(REGION_BYTES)
        || !(count..=MAX_TABLE as usize).contains(&(table.len() / REGION_BYTES))
    {
        return Err(size);
    }
    if fds.len() != count {
        return Err(MessageError::Descriptors { request, count: fds.len(), expected: count });
    }
    let mut fields = Fields(table);
    Ok(Request::SetMemTable(fds.into_iter().map(|fd| (fields.region(), fd)).collect()))
}

/// Offset, flags and bytes of a configuration space message.
fn config(request: u32, payload: &[u8]) -> Result<(u32, u32, &[u8]), MessageError> {
    let size = MessageError::Size { request, size: payload.len(), expected: "12 and what they announce, up to 268" };
    let Some((head, bytes)) = payload.split_at_checked(12) else { return Err(size) };
    let mut fields = Fields(head);
    let (offset, announced, flags) = (fields.u32(), fields.u32(), fields.u32());
    if announced as usize != bytes.len() || bytes.len() > CONFIG_BYTES {
        return Err(size);
    }
    Ok((offset, flags, bytes))
}

/// The structure has 20 bytes, or 24 with the padding that C gives it.
fn inflight(payload: &[u8]) -> Option<InflightSpec> {
    if payload.len() != 20 && payload.len() != 24 {
        return None;
    }
    let mut fields = Fields(payload);
    Some(InflightSpec { size: fields.u64(), offset: fields.u64(), queues: fields.u16(), entries: fields.u16() })
}

/// Fields read one after the other; past the end they are zero, but lengths were checked before.
struct Fields<'a>(&'a [u8]);

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

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn region(&mut self) -> RegionSpec {
        RegionSpec { guest: self.u64(), size: self.u64(), user: self.u64(), offset: self.u64() }
    }
}

#[cfg(test)]
mod tests;
