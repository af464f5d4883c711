//! The shared memory of a split virtqueue, seen from either half.
//!
//! Invariant: the three parts were found whole, aligned and inside one region each when the view was made; every index is masked, so no
//! value a peer stores makes us touch anything else; each field is read by one atomic load, so what was checked is what is used.
//! Read first: virtio 1.2 section 2.7.
//!
//! The view keeps the guest's memory mapped. Stores are little endian; writes to the used ring are marked in the dirty log.

use std::{
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering, fence},
    },
};

use crate::{copy, guest::GuestMemory};

/// Why a ring cannot be used where the driver put it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// A ring has 1 to 32768 entries, a split ring a power of two of them.
    #[error("a virtqueue of {0} entries: allowed are {1}")]
    Size(u16, &'static str),
    /// The front end names a position past the ring.
    #[error("a start at entry {0} of a ring of {1}")]
    Base(u16, u16),
    /// The part is not wholly inside one memory region.
    #[error("the {part} of the virtqueue ({len} bytes at guest address {guest:#x}) is not inside one memory region")]
    Outside {
        /// Which part, in the words of the virtio specification.
        part: &'static str,
        /// Guest physical address.
        guest: u64,
        /// Bytes.
        len: u64,
    },
    /// The part is not aligned as the specification asks.
    #[error("the {part} of the virtqueue at guest address {guest:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which part.
        part: &'static str,
        /// Guest physical address.
        guest: u64,
        /// Bytes.
        align: usize,
    },
}

/// A descriptor as read from the ring, host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address of the buffer.
    pub guest: u64,
    /// Bytes.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// Split: the next descriptor of the chain. Packed: the buffer id.
    pub next: u16,
}

/// `VIRTQ_DESC_F_NEXT`: the chain goes on.
pub const DESC_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device writes.
pub const DESC_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

/// Finds `len` bytes at `guest` and checks their alignment.
pub(crate) fn place(
    memory: &GuestMemory,
    part: &'static str,
    guest: u64,
    len: u64,
    align: usize,
) -> Result<NonNull<u8>, PlaceError> {
    let host = memory.ring_host(guest, len).ok_or(PlaceError::Outside { part, guest, len })?;
    if host.as_ptr().addr() % align != 0 || !guest.is_multiple_of(align as u64) {
        return Err(PlaceError::Alignment { part, guest, align });
    }
    Ok(host)
}

/// The memory of one split virtqueue.
pub struct SplitMemory {
    descriptors: NonNull<u8>,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    used_guest: u64,
    mask: u16,
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers lead into mappings that `memory` keeps alive and that may be used from any thread by atomic accesses.
unsafe impl Send for SplitMemory {}

impl SplitMemory {
    /// The ring of `size` entries whose descriptor table, driver area and device area are at these guest physical addresses.
    pub fn new(
        memory: Arc<GuestMemory>,
        size: u16,
        descriptors: u64,
        avail: u64,
        used: u64,
    ) -> Result<Self, PlaceError> {
        if !size.is_power_of_two() || size > 32768 {
            return Err(PlaceError::Size(size, "powers of two up to 32768"));
        }
        let n = u64::from(size);
        Ok(SplitMemory {
            descriptors: place(&memory, "descriptor table", descriptors, n * 16, 16)?,
            avail: place(&memory, "available ring", avail, 6 + n * 2, 2)?,
            used: place(&memory, "used ring", used, 6 + n * 8, 4)?,
            used_guest: used,
            mask: size - 1,
            memory,
        })
    }

    /// Entries.
    #[inline]
    pub fn size(&self) -> u16 {
        self.mask + 1
    }

    /// The memory the ring lies in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    #[inline]
    fn half(&self, area: NonNull<u8>, at: usize) -> &AtomicU16 {
        // SAFETY: callers pass an area of this ring and a two-byte-aligned offset inside it; atomics may be shared with other processes.
        unsafe { AtomicU16::from_ptr(area.as_ptr().add(at).cast()) }
    }

    #[inline]
    fn entry(&self, index: u16) -> usize {
        usize::from(index & self.mask)
    }

    #[inline]
    fn tail(&self, width: usize) -> usize {
        4 + width * (usize::from(self.mask) + 1)
    }

    /// The driver's index: how many chains it has made available, modulo 2^16. What it wrote before is visible after.
    #[inline]
    pub fn avail_index(&self) -> u16 {
        u16::from_le(self.half(self.avail, 2).load(Ordering::Acquire))
    }

    /// `VIRTQ_AVAIL_F_*`.
    #[inline]
    pub fn avail_flags(&self) -> u16 {
        u16::from_le(self.half(self.avail, 0).load(Ordering::Relaxed))
    }

    /// The head in slot `index` (modulo the size) of the available ring; not checked against the size.
    #[inline]
    pub fn avail_head(&self, index: u16) -> u16 {
        u16::from_le(self.half(self.avail, 4 + 2 * self.entry(index)).load(Ordering::Relaxed))
    }

    /// Asks for the line of the available ring that holds slot `index`.
    #[inline]
    pub fn prefetch_avail(&self, index: u16) {
        copy::prefetch_read(self.avail.as_ptr().wrapping_add(4 + 2 * self.entry(index)));
    }

    /// Descriptor `index`; nothing when it is past the table.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index > self.mask {
            return None;
        }
        // SAFETY: the table has `mask + 1` aligned entries of 16 bytes.
        let (low, high) = unsafe {
            let at = self.descriptors.as_ptr().add(16 * usize::from(index)).cast::<u64>();
            (AtomicU64::from_ptr(at).load(Ordering::Relaxed), AtomicU64::from_ptr(at.add(1)).load(Ordering::Relaxed))
        };
        Some(Descriptor::from_words(low, high))
    }

    /// Asks for the line of descriptor `index` (modulo the size).
    #[inline]
    pub fn prefetch_descriptor(&self, index: u16) {
        copy::prefetch_read(self.descriptors.as_ptr().wrapping_add(16 * self.entry(index)));
    }

    /// Stores slot `index` (modulo the size) of the used ring.
    #[inline]
    pub fn set_used(&self, index: u16, id: u16, len: u32) {
        let word = u64::from(len) << 32 | u64::from(id);
        let at = 4 + 8 * self.entry(index);
        // SAFETY: the slot is inside the used ring.
        unsafe { copy::store_u64(self.used.as_ptr().add(at), word) };
        if self.memory.is_logged() {
            self.memory.mark(self.used_guest + at as u64, 8);
        }
    }

    /// Asks for the line of used slot `index`, to write it.
    #[inline]
    pub fn prefetch_used(&self, index: u16) {
        copy::prefetch_write(self.used.as_ptr().wrapping_add(4 + 8 * self.entry(index)));
    }

    /// Publishes: the device's index after everything stored before.
    #[inline]
    pub fn set_used_index(&self, index: u16) {
        self.half(self.used, 2).store(index.to_le(), Ordering::Release);
        if self.memory.is_logged() {
            self.memory.mark(self.used_guest + 2, 2);
        }
    }

    /// The device's index; what it wrote before is visible after.
    #[inline]
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.half(self.used, 2).load(Ordering::Acquire))
    }

    /// Stores `VIRTQ_USED_F_*`.
    #[inline]
    pub fn set_used_flags(&self, flags: u16) {
        self.half(self.used, 0).store(flags.to_le(), Ordering::Relaxed);
        if self.memory.is_logged() {
            self.memory.mark(self.used_guest, 2);
        }
    }

    /// `used_event`: the driver wants a notification when the used index passes it (virtio 1.2 section 2.7.7).
    #[inline]
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.half(self.avail, self.tail(2)).load(Ordering::Relaxed))
    }

    /// Stores `avail_event`: the device wants a kick when the available index passes it (virtio 1.2 section 2.7.10).
    #[inline]
    pub fn set_avail_event(&self, index: u16) {
        self.half(self.used, self.tail(8)).store(index.to_le(), Ordering::Relaxed);
        if self.memory.is_logged() {
            self.memory.mark(self.used_guest + self.tail(8) as u64, 2);
        }
    }

    /// Orders all stores before it against all loads after it: between a publish and the look at the other side's suppression fields.
    #[inline]
    pub fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

/// What only a driver does.
impl SplitMemory {
    /// Stores descriptor `index` (modulo the size).
    #[inline]
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        let (low, high) = descriptor.words();
        // SAFETY: the masked index is inside the table of aligned 16-byte entries.
        unsafe {
            let at = self.descriptors.as_ptr().add(16 * self.entry(index)).cast::<u64>();
            AtomicU64::from_ptr(at).store(low, Ordering::Relaxed);
            AtomicU64::from_ptr(at.add(1)).store(high, Ordering::Relaxed);
        }
    }

    /// Stores slot `index` (modulo the size) of the available ring.
    #[inline]
    pub fn set_avail_head(&self, index: u16, head: u16) {
        self.half(self.avail, 4 + 2 * self.entry(index)).store(head.to_le(), Ordering::Relaxed);
    }

    /// Publishes: the driver's index after everything stored before.
    #[inline]
    pub fn set_avail_index(&self, index: u16) {
        self.half(self.avail, 2).store(index.to_le(), Ordering::Release);
    }

    /// Stores `VIRTQ_AVAIL_F_*`.
    pub fn set_avail_flags(&self, flags: u16) {
        self.half(self.avail, 0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// Stores `used_event`.
    pub fn set_used_event(&self, index: u16) {
        self.half(self.avail, self.tail(2)).store(index.to_le(), Ordering::Relaxed);
    }

    /// Slot `index` (modulo the size) of the used ring: id and written bytes.
    #[inline]
    pub fn used(&self, index: u16) -> (u32, u32) {
        let at = 4 + 8 * self.entry(index);
        // SAFETY: inside the used ring.
        let word = unsafe { copy::load_u64(self.used.as_ptr().add(at)) };
        (word as u32, (word >> 32) as u32)
    }

    /// Asks for the lines of `count` used slots from slot `index` (modulo the size) on, to read them.
    #[inline]
    pub fn prefetch_used_elements(&self, index: u16, count: u16) {
        for at in (0..count.min(self.size())).step_by(8) {
            copy::prefetch_read(self.used.as_ptr().wrapping_add(4 + 8 * self.entry(index.wrapping_add(at))));
        }
    }

    /// `VIRTQ_USED_F_*`.
    #[inline]
    pub fn used_flags(&self) -> u16 {
        u16::from_le(self.half(self.used, 0).load(Ordering::Relaxed))
    }

    /// `avail_event`.
    #[inline]
    pub fn avail_event(&self) -> u16 {
        u16::from_le(self.half(self.used, self.tail(8)).load(Ordering::Relaxed))
    }
}

impl Descriptor {
    /// The descriptor in the two little-endian words of the ring.
    #[inline]
    pub fn from_words(low: u64, high: u64) -> Self {
        let high = u64::from_le(high);
        Descriptor { guest: u64::from_le(low), len: high as u32, flags: (high >> 32) as u16, next: (high >> 48) as u16 }
    }

    /// The inverse of [`Descriptor::from_words`], also the layout of an indirect table (virtio 1.2 section 2.7.5).
    #[inline]
    pub fn words(self) -> (u64, u64) {
        let high = u64::from(self.next) << 48 | u64::from(self.flags) << 32 | u64::from(self.len);
        (self.guest.to_le(), high.to_le())
    }
}
