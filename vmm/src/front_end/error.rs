//! [`FrontEndError`]: why a front end has no running back end.
//!
//! Invariant: every error names what was asked or set up, and what is wrong with it. None is final by itself: what the back end does wrong
//! ends a connection, and there is always a next one.

use std::{io, path::PathBuf};

use sys::{guest::RegionError, split::PlaceError};

use crate::{
    features::Features,
    vhost_user::message::{MAX_TABLE, MessageError, name},
};

/// Why a front end has no running back end.
#[derive(Debug, thiserror::Error)]
pub enum FrontEndError {
    /// Nobody takes connections there, yet or any more.
    #[error("connecting to the back end at {}: {error}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The socket that back ends connect to is broken.
    #[error("waiting for a back end to connect: {0}")]
    Accept(io::Error),
    /// The back end closed its end, or the connection broke.
    #[error("the back end closed the connection{}", .asked.map(|code| format!(" instead of answering {}", name(code))).unwrap_or_default())]
    Closed {
        /// What it was asked and had not answered.
        asked: Option<u32>,
    },
    /// The socket failed.
    #[error("the connection to the back end: {0}")]
    Socket(io::Error),
    /// The bytes are no reply.
    #[error("the back end sent no reply: {0}")]
    Message(#[from] MessageError),
    /// A reply to something else.
    #[error("the back end answered {} where {} was asked", name(*.got), name(*.asked))]
    OtherReply {
        /// What was asked.
        asked: u32,
        /// What the reply is to.
        got: u32,
    },
    /// A reply of a length that it cannot have.
    #[error("the back end answered {} with {size} bytes instead of {expected}", name(*.asked))]
    ReplySize {
        /// What was asked.
        asked: u32,
        /// Bytes announced.
        size: u32,
        /// What the specification asks for.
        expected: &'static str,
    },
    /// No reply that is read here has a descriptor.
    #[error("the back end attached file descriptors to its answer to {}", name(*.0))]
    Descriptors(u32),
    /// Bytes without a question.
    #[error("the back end sent something, though nothing was asked")]
    Unasked,
    /// No answer for too long.
    #[error("the back end has not answered {} for {seconds} s", name(*.asked))]
    Silent {
        /// What was asked.
        asked: u32,
        /// How long ago, in seconds.
        seconds: u64,
    },
    /// The back end says that it could not do it.
    #[error("the back end refused {} (it answered {code})", name(*.asked))]
    Refused {
        /// What was asked.
        asked: u32,
        /// Its answer; 0 would mean success.
        code: u64,
    },
    /// The back end lacks what the device needs, or had when it was set up.
    #[error("the back end does not offer {:?}, which this device needs", .0.names())]
    NotOffered(Features),
    /// A field of a reply that contradicts the specification.
    #[error("the back end answered {}: {what} {value:#x}; allowed is {allowed}", name(*.asked))]
    Value {
        /// What was asked.
        asked: u32,
        /// Which field.
        what: &'static str,
        /// What it holds.
        value: u64,
        /// What it may hold.
        allowed: &'static str,
    },
    /// Too many regions, or none.
    #[error("a device with {0} memory regions; one table has 1 to {MAX_TABLE}")]
    Regions(usize),
    /// A region cannot be used.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A region cannot be mapped.
    #[error("the memory region at guest address {guest:#x} cannot be mapped: {error}")]
    Map {
        /// Guest physical address.
        guest: u64,
        /// What the system said.
        error: io::Error,
    },
    /// More rings than an index of 8 bits can tell apart, or none.
    #[error("a device with {0} rings; allowed are 1 to 255")]
    Rings(usize),
    /// A ring cannot be where the driver put it.
    #[error("ring {ring}: {error}")]
    Place {
        /// The ring.
        ring: u16,
        /// Why not.
        error: PlaceError,
    },
    /// The device runs already.
    #[error("the device is running; it is stopped first")]
    Running,
    /// Nothing was set up that could be started again.
    #[error("{given} ring positions for a device of {rings} rings")]
    Positions {
        /// How many were given.
        given: usize,
        /// How many rings were set up.
        rings: usize,
    },
    /// The position of a packed ring died with the back end.
    #[error(
        "the back end is gone, and with it the positions of the packed rings: the driver must reset the device, \
         or say where its rings are"
    )]
    PositionUnknown,
    /// The indices of a split ring contradict each other, so somebody has written over them.
    #[error(
        "ring {ring} cannot go on: its used index is {used} and its available index {available}, in a ring of {size}"
    )]
    Indices {
        /// The ring.
        ring: u16,
        /// The device's index.
        used: u16,
        /// The driver's.
        available: u16,
        /// Entries.
        size: u16,
    },
}
