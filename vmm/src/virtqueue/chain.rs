//! [`Chain`] and [`Batch`]: descriptor chains as a device took them from a ring, every piece found in guest memory.
//!
//! Invariant: a piece in a batch lies inside one region and points the way the batch asks for. Each descriptor was read once. A driver that
//! breaks a rule of virtio 1.2 (sections 2.7.5 and 2.8) gets a [`RingError`], which takes its port down.

use sys::{
    Lent, MapRef, Room,
    split::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor},
};

/// Longest chain, indirect tables included.
pub const MAX_CHAIN: usize = 1024;

/// A rule of the ring that the driver broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// More chains made available than the ring has entries.
    #[error("the available index jumped by {by} in a ring of {size}")]
    IndexJump {
        /// How far.
        by: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A descriptor index outside the ring.
    #[error("descriptor {index} in a ring of {size}")]
    Index {
        /// The index.
        index: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A chain that loops or has too many descriptors.
    #[error("a descriptor chain is longer than {0}")]
    Length(usize),
    /// An indirect table inside an indirect table, or one with `VIRTQ_DESC_F_NEXT`.
    #[error("an indirect descriptor where none is allowed")]
    NestedIndirect,
    /// An indirect table that is empty or not a multiple of 16 bytes.
    #[error("an indirect table of {0} bytes")]
    Table(u32),
    /// A buffer outside guest memory.
    #[error("a buffer of {len} bytes at guest address {guest:#x} is not inside one memory region")]
    Outside {
        /// Guest physical address.
        guest: u64,
        /// Bytes.
        len: u32,
    },
    /// A buffer for the other direction.
    #[error("a {0} buffer in a queue of the other direction")]
    Direction(&'static str),
    /// The memory was unmapped (the worker lost it) before the ring.
    #[error("the guest memory is gone")]
    NoMemory,
    /// The file behind guest memory was truncated.
    #[error("the guest memory was truncated")]
    Truncated,
}

impl From<RingError> for std::io::Error {
    fn from(error: RingError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// One chain: its buffer id, the ring entries it takes up, and its place in the batch's pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Split: the head descriptor's index. Packed: the buffer id.
    pub id: u16,
    /// Ring entries the chain takes up: 1 in a split ring, its descriptors in a packed one.
    pub entries: u16,
    /// Its pieces, in the batch.
    pub pieces: u16,
    /// Where its pieces begin.
    pub first: u32,
}

/// What a descriptor becomes: [`Lent`] to read, [`Room`] to write, or [`EitherWay`].
pub trait Piece: Copy {
    /// Whether the device only reads through pieces of this kind.
    const READ_ONLY: bool = false;
    /// The piece at this guest address, if the descriptor's direction (`writable`: by the device) is one that this kind of piece has.
    fn find(map: &MapRef<'_>, guest: u64, len: u32, writable: bool) -> Result<Self, RingError>;
    /// Asks for its first cache line.
    fn prefetch(&self);
}

impl Piece for Lent {
    const READ_ONLY: bool = true;
    #[inline]
    fn find(map: &MapRef<'_>, guest: u64, len: u32, writable: bool) -> Result<Self, RingError> {
        if writable {
            return Err(RingError::Direction("device-writable"));
        }
        map.lend(guest, len).ok_or(RingError::Outside { guest, len })
    }
    #[inline]
    fn prefetch(&self) {
        Lent::prefetch(self);
    }
}

impl Piece for Room {
    #[inline]
    fn find(map: &MapRef<'_>, guest: u64, len: u32, writable: bool) -> Result<Self, RingError> {
        if !writable {
            return Err(RingError::Direction("device-readable"));
        }
        map.room(guest, len).ok_or(RingError::Outside { guest, len })
    }
    #[inline]
    fn prefetch(&self) {
        Room::prefetch(self);
    }
}

/// A piece of a queue whose chains have both directions, as the control queue's do.
#[derive(Clone, Copy)]
pub enum EitherWay {
    /// To read.
    Lent(Lent),
    /// To write.
    Room(Room),
}

impl Piece for EitherWay {
    fn find(map: &MapRef<'_>, guest: u64, len: u32, writable: bool) -> Result<Self, RingError> {
        if writable {
            Room::find(map, guest, len, true).map(EitherWay::Room)
        } else {
            Lent::find(map, guest, len, false).map(EitherWay::Lent)
        }
    }
    fn prefetch(&self) {}
}

/// Chains taken in one go.
pub struct Batch<P> {
    /// The chains, in the order in which they were made available.
    pub chains: Vec<Chain>,
    pieces: Vec<P>,
}

impl<P: Piece> Default for Batch<P> {
    fn default() -> Self {
        Batch { chains: Vec::with_capacity(256), pieces: Vec::with_capacity(1024) }
    }
}

impl<P: Piece> Batch<P> {
    /// Empties it, keeping the memory.
    #[inline]
    pub fn clear(&mut self) {
        self.chains.clear();
        self.pieces.clear();
    }

    /// The pieces of a chain.
    #[inline]
    pub fn pieces(&self, chain: Chain) -> &[P] {
        let first = chain.first as usize;
        self.pieces.get(first..first + usize::from(chain.pieces)).unwrap_or_default()
    }

    /// Chain `index` and its piece, if it has just one.
    #[inline(always)]
    pub fn one_piece(&self, index: usize) -> Option<(Chain, P)> {
        let chain = *self.chains.get(index)?;
        if chain.pieces != 1 {
            return None;
        }
        Some((chain, *self.pieces.get(chain.first as usize)?))
    }

    /// Where the next chain's pieces begin.
    #[inline]
    pub(super) fn mark(&self) -> usize {
        self.pieces.len()
    }

    /// Ends a chain whose pieces began at `mark`.
    #[inline(always)]
    pub(super) fn end_chain(&mut self, id: u16, entries: u16, mark: usize) {
        let pieces = (self.pieces.len() - mark) as u16;
        self.chains.push(Chain { id, entries, pieces, first: mark as u32 });
    }

    /// Adds the piece of one descriptor to the chain that began at `mark`.
    #[inline(always)]
    pub(super) fn add(&mut self, map: &MapRef<'_>, descriptor: Descriptor, mark: usize) -> Result<(), RingError> {
        let Descriptor { guest, len, flags, .. } = descriptor;
        if self.pieces.len() - mark >= MAX_CHAIN {
            return Err(RingError::Length(MAX_CHAIN));
        }
        let piece = P::find(map, guest, len, flags & DESC_WRITE != 0)?;
        piece.prefetch();
        self.pieces.push(piece);
        Ok(())
    }

    /// Adds all pieces of an indirect table. `packed` tables are read from first to last, split ones along `next`.
    pub(super) fn add_indirect(
        &mut self,
        map: &MapRef<'_>,
        table: Descriptor,
        mark: usize,
        packed: bool,
    ) -> Result<(), RingError> {
        if table.flags & DESC_NEXT != 0 {
            return Err(RingError::NestedIndirect);
        }
        let count = table.len / 16;
        if count == 0 || !table.len.is_multiple_of(16) || count as usize > MAX_CHAIN {
            return Err(RingError::Table(table.len));
        }
        let lent = map.lend(table.guest, table.len).ok_or(RingError::Outside { guest: table.guest, len: table.len })?;
        let mut index = 0u32;
        loop {
            let mut bytes = [0u8; 16];
            let entry = lent.part(index as usize * 16, 16).ok_or(RingError::Table(table.len))?;
            if map.read(entry, &mut bytes) != 16 {
                return Err(RingError::NoMemory);
            }
            let word = u128::from_le_bytes(bytes);
            let (low, high) = ((word as u64).to_le(), ((word >> 64) as u64).to_le());
            let mut descriptor = Descriptor::from_words(low, high);
            if packed {
                std::mem::swap(&mut descriptor.flags, &mut descriptor.next);
            }
            if descriptor.flags & DESC_INDIRECT != 0 {
                return Err(RingError::NestedIndirect);
            }
            // DPDK's virtio driver leaves device-writable on the header in its packed tables, and on the frame's first piece where the table
            // stands in entry 1 of the ring. Where nothing is ever written, to read it harms nobody.
            if packed && P::READ_ONLY {
                descriptor.flags &= !DESC_WRITE;
            }
            self.add(map, descriptor, mark)?;
            index = if packed {
                index + 1
            } else if descriptor.flags & DESC_NEXT != 0 {
                u32::from(descriptor.next)
            } else {
                count
            };
            match index {
                i if i == count => return Ok(()),
                i if i > count => return Err(RingError::Index { index: i as u16, size: count as u16 }),
                _ => {}
            }
        }
    }
}
