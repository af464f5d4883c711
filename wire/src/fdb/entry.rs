//! What the forwarding database says and is told: [`Entry`], [`Learn`], [`FdbStats`], [`StaticError`].
//!
//! Invariant: plain data; nothing here refers into a database but [`Learn`], which is good until that database changes.

use crate::{Mac, NicId, Segment};

use super::table::Slot;

/// What hearing a station at a NIC means to the database. Found out without changing it, and carried out later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// Nothing: it is known there, and was heard in this second, or is static there.
    Current,
    /// It is known there; its time is renewed.
    Renew(Slot),
    /// It was known behind another NIC and moves.
    Move {
        /// Its entry.
        slot: Slot,
        /// Where it was.
        from: NicId,
    },
    /// It was not known.
    Insert,
    /// It is static behind another NIC: nothing is learnt.
    Pinned(NicId),
    /// It moved too often of late and is held behind another NIC: nothing is learnt.
    Held(NicId),
}

/// One station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The segment it is heard in.
    pub segment: Segment,
    /// Its address.
    pub mac: Mac,
    /// The NIC it is behind.
    pub nic: NicId,
    /// Seconds since it was last heard; zero for a static entry.
    pub age: u32,
    /// Put there by configuration: does not age, move or give way.
    pub fixed: bool,
    /// Told by control: moves to where it is heard, and does not age or give way.
    pub told: bool,
}

/// What happened to a database since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FdbStats {
    /// Stations that moved from one NIC to another.
    pub moves: u64,
    /// Times that a station had moved too often and was held.
    pub flapping: u64,
    /// Entries that gave way at the bound.
    pub evicted: u64,
    /// Entries that gave way below the bound because both buckets of a new one were full; next to none, unless the seed is known to a guest.
    pub crowded: u64,
    /// Entries that the sweep freed.
    pub expired: u64,
}

/// Why a static entry cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StaticError {
    /// A group address or zero.
    #[error("{0} is not the address of one station; a static entry needs a unicast address")]
    Address(Mac),
    /// The NIC was not added, or is not a member of the segment.
    #[error("port {} is not a member of the segment; add it there first", .0.0)]
    NotMember(NicId),
    /// Static entries may use half of the database.
    #[error(
        "no room for another static entry; half of the database, here {0} entries, is the most; raise its capacity"
    )]
    Full(usize),
}
