//! [`SessionError`]: why a request of a front end was not carried out.
//!
//! Invariant: every error names what was asked, what is wrong with it and, where the front end's owner can do something, what. Errors that
//! leave the session whole are refusals; all others end it, and it alone.

use std::io;

use sys::{guest::RegionError, split::PlaceError};

use super::message::{MessageError, name};
use crate::virtqueue::chain::RingError;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The bytes are no request.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Not known here, or not offered.
    #[error("{name} is not supported", name = name(*.0))]
    Unsupported(u32),
    /// The front end agreed to what was not offered.
    #[error("{request} agrees to features {bits:#x}, which were not offered")]
    NotOffered {
        /// Which of the two feature requests.
        request: &'static str,
        /// The bits that were not offered.
        bits: u64,
    },
    /// The features of a running device changed.
    #[error("SET_FEATURES changes {bits:#x} while ring {ring} runs; a ring is stopped with GET_VRING_BASE first")]
    FeaturesWhileRunning {
        /// The bits that changed.
        bits: u64,
        /// A ring that runs.
        ring: u16,
    },
    /// A setting that a running ring cannot change.
    #[error("{request} for ring {ring}, which runs; it is stopped with GET_VRING_BASE first")]
    RingRuns {
        /// What was asked.
        request: &'static str,
        /// The ring.
        ring: u16,
    },
    /// There is no such ring.
    #[error("ring {ring} of a port with rings 0 to {last}")]
    NoRing {
        /// The ring asked for.
        ring: u16,
        /// The last ring there is.
        last: u16,
    },
    /// A part of a ring lies outside the memory table.
    #[error("the {part} of ring {ring} at the front end's address {user:#x} is in no memory region")]
    Elsewhere {
        /// The ring.
        ring: u16,
        /// Which part, in the words of the virtio specification.
        part: &'static str,
        /// The front end's virtual address.
        user: u64,
    },
    /// A ring cannot be where the front end put it.
    #[error("ring {ring}: {error}")]
    Place {
        /// The ring.
        ring: u16,
        /// Why not.
        error: PlaceError,
    },
    /// The memory table contradicts itself.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A memory region cannot be mapped.
    #[error("the memory region at guest address {guest:#x} cannot be mapped: {error}")]
    Map {
        /// Guest physical address.
        guest: u64,
        /// Why not.
        error: io::Error,
    },
    /// A region to remove that is not there.
    #[error("REM_MEM_REG for {size:#x} bytes at guest address {guest:#x}, where no such region is")]
    NoRegion {
        /// Guest physical address.
        guest: u64,
        /// Bytes.
        size: u64,
    },
    /// The dirty log cannot be mapped.
    #[error("the dirty log cannot be mapped: {0}")]
    Log(io::Error),
    /// A descriptor for notifications is none.
    #[error("{request} for ring {ring}: {error}")]
    Doorbell {
        /// What was asked.
        request: &'static str,
        /// The ring.
        ring: u16,
        /// Why not.
        error: io::Error,
    },
    /// An MTU that the device cannot have.
    #[error("NET_SET_MTU asks for {asked}; this port allows 68 to {most}")]
    Mtu {
        /// What was asked.
        asked: u64,
        /// The port's own.
        most: u16,
    },
    /// A write to the configuration space that is not allowed.
    #[error("SET_CONFIG of {size} bytes at {offset}: only the MAC address (6 bytes at 0) can be set")]
    Config {
        /// Where.
        offset: u32,
        /// Bytes.
        size: usize,
    },
    /// The buffer for inflight tracking does not fit the device.
    #[error("inflight buffer for {queues} queues of {entries} entries in {size} bytes: this port has {rings} rings")]
    Inflight {
        /// Queues asked for.
        queues: u16,
        /// Entries of each.
        entries: u16,
        /// Bytes of the buffer.
        size: u64,
        /// Rings of the port.
        rings: usize,
    },
    /// The buffer for inflight tracking cannot be made or mapped.
    #[error("the inflight buffer: {0}")]
    InflightMemory(io::Error),
    /// The driver broke a rule of the control queue.
    #[error("the control queue: {0}")]
    Control(RingError),
    /// The control queue could not be set up.
    #[error("the control queue cannot be served: {0}")]
    ControlMemory(io::Error),
}

impl SessionError {
    /// Whether nothing has changed by it, so that a front end which asked how it went can go on.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            SessionError::Unsupported(_)
                | SessionError::Map { .. }
                | SessionError::Log(_)
                | SessionError::Mtu { .. }
                | SessionError::Config { .. }
                | SessionError::InflightMemory(_)
        )
    }
}
