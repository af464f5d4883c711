//! Requests of a front end, read from payloads and file descriptors.
//!
//! Invariant: a [`Request`] has the size, the number of file descriptors and the field ranges that its kind asks for, so nothing behind
//! this edge checks lengths again; what does not is a [`MessageError`] with a name. Nothing here panics, whatever the bytes.
//! Read first: vhost-user specification, "Front-end message types".

use std::os::fd::OwnedFd;

use wire::Mac;

use super::message::{CONFIG_BYTES, Fields, InflightSpec, MAX_TABLE, MessageError, RegionSpec, RingAddress, code};
use crate::features::Features;

const NO_DESCRIPTOR: u64 = 1 << 8;
const REGION_BYTES: usize = 32;

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
    /// Where the back end could ask its front end something.
    SetBackendReqFd(OwnedFd),
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
                return one().map(Request::SetBackendReqFd);
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

#[cfg(test)]
mod tests;
