//! The driver half of a virtqueue of either format: what a guest's kernel does, for load, for tests and for our own machine's peers.
//!
//! Invariant: the driver believes nothing it reads back. Free descriptors, chains and ids are remembered outside of shared memory, and a
//! device that uses what it was not given, or more of it than there is, gets a [`UsedError`]. Read first: virtio 1.2 sections 2.7.13 and
//! 2.8.21 ("Supplying Buffers to The Device"), 2.7.14 and 2.8.22 ("Receiving Used Buffers From The Device").
//!
//! Theory of operation: [`DriverQueue::add`] writes a chain where the device does not look yet; [`DriverQueue::publish`] shows it all
//! chains added since with one store and says whether it wants a kick; [`DriverQueue::take_used`] hands chains back one by one, also
//! where a device that uses buffers in order wrote one element for many.

mod outstanding;
mod packed;
mod split;

use std::sync::Arc;

use sys::{
    GuestMemory, MapRef,
    packed::PackedMemory,
    split::{DESC_NEXT, DESC_WRITE, Descriptor, PlaceError, SplitMemory},
};

use crate::features::Features;
use packed::PackedDriver;
use split::SplitDriver;

/// A piece of guest memory that a driver offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub guest: u64,
    /// Bytes.
    pub len: u32,
}

/// A chain that the device is done with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// What [`DriverQueue::add`] returned.
    pub id: u16,
    /// Bytes the device wrote, from the start of the chain's writable part. A chain for which a device that uses buffers in order wrote no
    /// element of its own counts as written whole (virtio 1.2 section 2.7.9).
    pub written: u32,
}

/// Why a chain cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Fewer descriptors are free than the chain needs: take used chains, then try again.
    #[error("the virtqueue has {free} free descriptors, the chain needs {need}")]
    Full {
        /// Descriptors free.
        free: u16,
        /// Descriptors needed.
        need: usize,
    },
    /// A chain has at least one buffer.
    #[error("a chain without buffers")]
    Empty,
    /// The chain is longer than an indirect table, or the queue was set up without tables, or they are not in guest memory.
    #[error("no indirect table for a chain of {0} buffers")]
    Table(usize),
}

/// A rule of the ring that the device broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsedError {
    /// More used than was made available.
    #[error("the used index jumped by {by} while {outstanding} chains were outstanding")]
    IndexJump {
        /// How far.
        by: u16,
        /// Chains that the device had.
        outstanding: u16,
    },
    /// A chain that the device did not have.
    #[error("the device used chain {0}, which it was not given")]
    Id(u32),
    /// More written than the chain has room for.
    #[error("the device wrote {written} bytes into chain {id}, which has room for {room}")]
    Written {
        /// The chain.
        id: u16,
        /// Bytes the device claims.
        written: u32,
        /// Bytes of the chain's writable part.
        room: u32,
    },
}

/// Guest memory for indirect tables: one for every id, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Guest physical address of the first.
    pub guest: u64,
    /// Descriptors in each; 16 bytes a descriptor.
    pub entries: u16,
}

impl Tables {
    /// Writes the chain's table number `index`; returns the descriptor that stands for it, flags and id still to be completed.
    fn write<'a>(
        self,
        map: &MapRef<'_>,
        index: u16,
        pieces: impl ExactSizeIterator<Item = (&'a Buffer, u16)>,
        packed: bool,
    ) -> Result<Descriptor, AddError> {
        let count = pieces.len();
        let error = AddError::Table(count);
        if count > usize::from(self.entries) {
            return Err(error);
        }
        let guest = self.guest + u64::from(index) * u64::from(self.entries) * 16;
        let len = count as u32 * 16;
        let room = map.room(guest, len).ok_or(error)?;
        for (n, (buffer, flags)) in pieces.enumerate() {
            let descriptor = if packed {
                // The flags lie behind the id in a packed descriptor; order alone links them (virtio 1.2 section 2.8.8).
                Descriptor { guest: buffer.guest, len: buffer.len, flags: 0, next: flags }
            } else {
                let next = if n + 1 < count { DESC_NEXT } else { 0 };
                Descriptor { guest: buffer.guest, len: buffer.len, flags: flags | next, next: n as u16 + 1 }
            };
            let (low, high) = descriptor.words();
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&low.to_ne_bytes());
            bytes[8..].copy_from_slice(&high.to_ne_bytes());
            if map.write(room.after(n * 16), &bytes) != 16 {
                return Err(error);
            }
        }
        Ok(Descriptor { guest, len, flags: sys::split::DESC_INDIRECT, next: 0 })
    }
}

/// Where a driver puts a ring and how it runs it.
pub struct DriverSetup {
    /// The guest's memory as the driver sees it.
    pub memory: Arc<GuestMemory>,
    /// What driver and device agreed on; decides the format.
    pub features: Features,
    /// Entries.
    pub size: u16,
    /// Guest physical address of the descriptor area.
    pub descriptors: u64,
    /// Guest physical address of the driver area.
    pub driver: u64,
    /// Guest physical address of the device area.
    pub device: u64,
    /// Memory for indirect tables.
    pub tables: Option<Tables>,
}

/// One virtqueue of a driver. The three areas must be zero when it is made.
pub enum DriverQueue {
    /// Split.
    Split(SplitDriver),
    /// Packed.
    Packed(PackedDriver),
}

/// Runs `$body` with `$queue` being the concrete queue.
macro_rules! with_queue {
    ($any:expr, $queue:ident => $body:expr) => {
        match $any {
            DriverQueue::Split($queue) => $body,
            DriverQueue::Packed($queue) => $body,
        }
    };
}

impl DriverQueue {
    /// The queue at the places of `setup`.
    ///
    /// # Errors
    /// The size is not allowed, or an area is not whole, aligned and inside one memory region.
    pub fn new(setup: &DriverSetup) -> Result<Self, PlaceError> {
        let DriverSetup { memory, features, size, descriptors, driver, device, tables } = setup;
        let memory = Arc::clone(memory);
        Ok(if features.has(Features::RING_PACKED) {
            let memory = PackedMemory::new(memory, *size, *descriptors, *driver, *device)?;
            DriverQueue::Packed(PackedDriver::new(memory, *features, *tables))
        } else {
            let memory = SplitMemory::new(memory, *size, *descriptors, *driver, *device)?;
            DriverQueue::Split(SplitDriver::new(memory, *features, *tables))
        })
    }

    /// Adds the chain of the buffers in `readable` (for the device to read) and then those in `writable`. The device sees it after
    /// [`DriverQueue::publish`]. Returns its id, which is below the ring's size and unique among the chains that the device has.
    ///
    /// # Errors
    /// No room, or no buffers; nothing was added.
    #[inline]
    pub fn add(&mut self, readable: &[Buffer], writable: &[Buffer]) -> Result<u16, AddError> {
        with_queue!(self, queue => queue.add(readable, writable))
    }

    /// The same by an indirect table, which takes one descriptor of the ring. `map` is the memory in which the tables lie.
    ///
    /// # Errors
    /// As for [`DriverQueue::add`], or no table that is long enough.
    pub fn add_indirect(
        &mut self,
        map: &MapRef<'_>,
        readable: &[Buffer],
        writable: &[Buffer],
    ) -> Result<u16, AddError> {
        with_queue!(self, queue => queue.add_indirect(map, readable, writable))
    }

    /// Adds a chain of its own for each of the buffers, as far as descriptors are free, and tells `added` the ids in turn; nothing more is
    /// taken from `buffers` when none is.
    #[inline]
    pub fn add_each(&mut self, buffers: impl Iterator<Item = Buffer>, writable: bool, added: impl FnMut(u16)) {
        with_queue!(self, queue => queue.add_each(buffers, writable, added))
    }

    /// Shows the device every chain added so far, and says whether it wants to be kicked.
    #[inline]
    #[must_use]
    pub fn publish(&mut self) -> bool {
        with_queue!(self, queue => queue.publish())
    }

    /// The next chain that the device is done with, if there is one.
    ///
    /// # Errors
    /// The device broke a rule; the queue is of no use any more.
    #[inline]
    pub fn take_used(&mut self) -> Result<Option<Used>, UsedError> {
        with_queue!(self, queue => queue.take_used())
    }

    /// Takes up to as many used chains as `places` has, in order; returns how many.
    ///
    /// # Errors
    /// As for [`DriverQueue::take_used`].
    #[inline]
    pub fn take_many(&mut self, places: &mut [Used]) -> Result<usize, UsedError> {
        with_queue!(self, queue => {
            let mut taken = 0;
            for place in places {
                let Some(used) = queue.take_used()? else { break };
                *place = used;
                taken += 1;
            }
            Ok(taken)
        })
    }

    /// Takes back every chain that the device is done with, and does not tell which: for chains that hold nothing of interest.
    ///
    /// # Errors
    /// As for [`DriverQueue::take_used`].
    #[inline]
    pub fn reclaim(&mut self) -> Result<(), UsedError> {
        with_queue!(self, queue => queue.reclaim())
    }

    /// Whether the device has used a chain that was not taken yet.
    pub fn has_used(&self) -> bool {
        with_queue!(self, queue => queue.has_used())
    }

    /// Asks the device for a notification when it uses the next chain, or for none. When asked to, says whether there is one already.
    pub fn want_interrupts(&mut self, want: bool) -> bool {
        with_queue!(self, queue => queue.want_interrupts(want))
    }

    /// Free descriptors of the ring.
    #[inline]
    pub fn free(&self) -> u16 {
        with_queue!(self, queue => queue.free())
    }

    /// Chains that were added and not taken back.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        with_queue!(self, queue => queue.outstanding())
    }
}

/// The buffers of a chain in their order, each with its direction flag.
fn pieces<'a>(
    readable: &'a [Buffer],
    writable: &'a [Buffer],
) -> impl ExactSizeIterator<Item = (&'a Buffer, u16)> + use<'a> {
    let split = readable.len();
    (0..split + writable.len()).map(move |n| match readable.get(n) {
        Some(buffer) => (buffer, 0),
        None => (&writable[n - split], DESC_WRITE),
    })
}

/// Bytes that the device may write, at most as many as a used element can tell.
fn room(writable: &[Buffer]) -> u32 {
    writable.iter().fold(0, |sum: u32, buffer| sum.saturating_add(buffer.len))
}
