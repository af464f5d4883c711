//! [`Inflight`]: the buffer that a front end keeps for us over our death.
//!
//! Invariant: a buffer is large enough for all queues it names, in whichever format; it is one file whose size the front end cannot change
//! when we made it. Read first: vhost-user specification, "Inflight I/O tracking".
//!
//! The rings here use buffers in the order in which they were made available and hold none beyond a turn, so a split ring is restored from
//! its used index alone, and its part of the buffer is left as it is. A packed ring's part holds its [`Journal`]: the layout within a part
//! is the back end's own affair.

use std::os::fd::{AsFd, OwnedFd};

use sys::memory::{Mapping, memfd};

use super::{error::SessionError, message::InflightSpec};
use crate::virtqueue::journal::Journal;

/// Regions of the queues begin at multiples of this.
const ALIGN: u64 = 64;
/// Bytes of a queue's region before its descriptor states, and of each state: packed, split.
const PACKED_BYTES: u64 = 32;
const SPLIT_BYTES: u64 = 16;

/// The buffer in force.
pub(super) struct Inflight {
    /// Its layout.
    pub(super) spec: InflightSpec,
    fd: OwnedFd,
}

/// Bytes of one queue's part.
fn part(spec: InflightSpec, packed: bool) -> u64 {
    let unit = if packed { PACKED_BYTES } else { SPLIT_BYTES };
    (unit + unit * u64::from(spec.entries)).next_multiple_of(ALIGN)
}

fn check(spec: InflightSpec, rings: usize) -> Result<(), SessionError> {
    let InflightSpec { size, queues, entries, .. } = spec;
    if queues == 0 || usize::from(queues) > rings || entries == 0 || entries > 32768 {
        return Err(SessionError::Inflight { queues, entries, size, rings });
    }
    Ok(())
}

impl Inflight {
    /// Makes a buffer for the front end to keep, of rings of either format, and another descriptor of it to send.
    pub(super) fn make(asked: InflightSpec, rings: usize) -> Result<(Inflight, OwnedFd), SessionError> {
        check(asked, rings)?;
        let spec = InflightSpec { size: u64::from(asked.queues) * part(asked, true), offset: 0, ..asked };
        let fd = memfd("trunkline-inflight", spec.size).map_err(SessionError::InflightMemory)?;
        let other = fd.try_clone().map_err(SessionError::InflightMemory)?;
        Ok((Inflight { spec, fd }, other))
    }

    /// Takes a buffer back that a front end kept.
    pub(super) fn adopt(spec: InflightSpec, fd: OwnedFd, rings: usize, packed: bool) -> Result<Inflight, SessionError> {
        check(spec, rings)?;
        if spec.size < u64::from(spec.queues) * part(spec, packed) {
            return Err(SessionError::Inflight { queues: spec.queues, entries: spec.entries, size: spec.size, rings });
        }
        Mapping::shared(fd.as_fd(), spec.offset, spec.size).map_err(SessionError::InflightMemory)?;
        Ok(Inflight { spec, fd })
    }

    /// The journal of a packed ring of `size` entries, where the buffer has room for it.
    pub(super) fn journal(&self, ring: u16, size: u16) -> Option<Journal> {
        if ring >= self.spec.queues {
            return None;
        }
        let bytes = part(self.spec, true);
        let offset = self.spec.offset.checked_add(u64::from(ring) * bytes)?;
        Journal::within(Mapping::shared(self.fd.as_fd(), offset, bytes).ok()?, size)
    }
}
