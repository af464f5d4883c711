//! Guest memory: the regions a front end shared with us, and the only functions that read and write them.
//!
//! Invariant: no address that a guest or a front end names is used before it was found to lie, with its whole length, inside one region
//! of one living mapping; and every write marks its pages in the dirty log while there is one.
//!
//! Theory of operation: a [`GuestMemory`] is an immutable table of regions. What a descriptor points at becomes a [`Lent`] (readable) or a
//! [`Room`] (writable): a host address, a length and the epoch of the [`Arena`](crate::arena::Arena) that holds the memory. The arena
//! changes its epoch whenever it lets go of any memory, so a piece kept too long is refused instead of dereferenced. There is never a
//! Rust reference to shared memory, only copies in and out. Read first: vhost-user specification, "Memory region description" and "Migration".

use std::{
    cell::Cell,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::{copy, memory::Mapping};

/// Why a memory table is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Address plus size exceeds 64 bits, or size is zero.
    #[error("memory region at guest address {guest:#x} with {size:#x} bytes is empty or wraps around")]
    Range {
        /// Guest physical address.
        guest: u64,
        /// Bytes.
        size: u64,
    },
    /// The file behind the region is shorter than the region says.
    #[error("memory region at guest address {guest:#x} needs {need:#x} bytes of a mapping of {have:#x}")]
    Short {
        /// Guest physical address.
        guest: u64,
        /// Bytes needed in the mapping.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// Two regions claim the same guest address.
    #[error("memory regions at guest addresses {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    /// No region at all, or more than the specification's 509.
    #[error("a memory table has 1 to {max} regions, not {0}", max = GuestMemory::MAX_REGIONS)]
    Count(usize),
}

/// One region of guest memory.
#[derive(Clone)]
pub struct Region {
    guest: u64,
    size: u64,
    user: u64,
    offset: u64,
    host: NonNull<u8>,
    mapping: Arc<Mapping>,
}

// SAFETY: `host` points into `mapping`, which the region keeps alive and which is Send and Sync; nothing else is tied to a thread.
unsafe impl Send for Region {}
// SAFETY: as above; all access through `host` is by volatile, atomic or assembly copies.
unsafe impl Sync for Region {}

impl Region {
    /// The region of `size` bytes at `guest` (guest physical) and `user` (front end's virtual) address, `offset` bytes into `mapping`.
    pub fn new(guest: u64, size: u64, user: u64, mapping: Arc<Mapping>, offset: u64) -> Result<Self, RegionError> {
        let range = RegionError::Range { guest, size };
        if size == 0 || guest.checked_add(size).is_none() || user.checked_add(size).is_none() {
            return Err(range);
        }
        let need = offset.checked_add(size).ok_or(range)?;
        let have = mapping.len() as u64;
        if need > have {
            return Err(RegionError::Short { guest, need, have });
        }
        // SAFETY: `offset` is below `mapping.len()`, so the result lies inside the mapping.
        let host = unsafe { mapping.ptr().add(offset as usize) };
        Ok(Region { guest, size, user, offset, host, mapping })
    }

    /// Guest physical address of the first byte.
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Front end's virtual address of the first byte.
    pub fn user(&self) -> u64 {
        self.user
    }

    /// Offset of the first byte in its mapping.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// The log of pages written while a guest is migrated: one bit per 4 KiB page (vhost-user specification, "Migration").
pub struct DirtyLog {
    mapping: Mapping,
    offset: usize,
    size: usize,
}

impl DirtyLog {
    /// The log of `size` bytes at `offset` in `mapping`; nothing when it does not fit.
    pub fn new(mapping: Mapping, offset: u64, size: u64) -> Option<Self> {
        let end = offset.checked_add(size)?;
        (end <= mapping.len() as u64).then_some(DirtyLog { mapping, offset: offset as usize, size: size as usize })
    }

    /// Marks the pages of `len` bytes from guest physical address `guest`. Pages past the log are ignored: the front end chose its size.
    pub fn mark(&self, guest: u64, len: u64) {
        if len == 0 {
            return;
        }
        for page in guest >> 12..=(guest.saturating_add(len - 1)) >> 12 {
            let byte = (page >> 3) as usize;
            if byte >= self.size {
                return;
            }
            // SAFETY: `offset + byte` is inside the mapping (checked by `new` and above); an AtomicU8 needs no alignment.
            let bits = unsafe { AtomicU8::from_ptr(self.mapping.ptr().as_ptr().add(self.offset + byte)) };
            bits.fetch_or(1 << (page & 7), Ordering::Relaxed);
        }
    }
}

/// A guest's memory as one front end described it: immutable; a change is a new table.
pub struct GuestMemory {
    /// Sorted by guest address.
    regions: Box<[Region]>,
    largest: usize,
    log: Option<Arc<DirtyLog>>,
}

impl GuestMemory {
    /// Most regions a table may have (the memory slots we offer).
    pub const MAX_REGIONS: usize = 509;

    /// The table of `regions`, writes to which are marked in `log`.
    pub fn new(mut regions: Vec<Region>, log: Option<Arc<DirtyLog>>) -> Result<Self, RegionError> {
        if regions.is_empty() || regions.len() > Self::MAX_REGIONS {
            return Err(RegionError::Count(regions.len()));
        }
        regions.sort_by_key(|region| region.guest);
        for pair in regions.windows(2) {
            if let [a, b] = pair
                && a.guest + a.size > b.guest
            {
                return Err(RegionError::Overlap(a.guest, b.guest));
            }
        }
        let largest = regions.iter().enumerate().max_by_key(|(_, r)| r.size).map_or(0, |(i, _)| i);
        Ok(GuestMemory { regions: regions.into(), largest, log })
    }

    /// The regions, in the order of their guest addresses.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The guest physical address of a front end's virtual address.
    pub fn guest_of_user(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|r| {
            let offset = user.checked_sub(r.user)?;
            (offset < r.size).then_some(r.guest + offset)
        })
    }

    /// Whether a file behind the memory was truncated under us (its bytes read as zero since).
    pub fn is_dead(&self) -> bool {
        self.regions.iter().any(|r| r.mapping.is_dead())
    }

    /// Whether writes are logged.
    pub fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// Host address of `len` bytes at guest address `guest`, if one region holds them all; `hint` is the region to try first.
    #[inline(always)]
    fn host(&self, guest: u64, len: u64, hint: &Cell<usize>) -> Option<NonNull<u8>> {
        let inside = |region: &Region| {
            let offset = guest.wrapping_sub(region.guest);
            if offset < region.size && region.size - offset >= len {
                // SAFETY: `offset` is below the region's size, so the address is inside its mapping.
                Some(unsafe { region.host.add(offset as usize) })
            } else {
                None
            }
        };
        if let Some(found) = self.regions.get(hint.get()).and_then(inside) {
            return Some(found);
        }
        let index = self.regions.partition_point(|r| r.guest <= guest).checked_sub(1)?;
        let found = inside(self.regions.get(index)?)?;
        hint.set(index);
        Some(found)
    }

    /// Host address of `len` bytes at `guest`, for rings, which keep their memory alive themselves.
    pub(crate) fn ring_host(&self, guest: u64, len: u64) -> Option<NonNull<u8>> {
        self.host(guest, len, &Cell::new(self.largest))
    }

    /// Marks `len` bytes at guest physical address `guest` as written.
    #[inline]
    pub(crate) fn mark(&self, guest: u64, len: u64) {
        if let Some(log) = &self.log {
            log.mark(guest, len);
        }
    }

    /// Marks what was written at a host address of this memory.
    #[cold]
    fn mark_host(&self, at: *const u8, len: usize) {
        let Some(log) = &self.log else { return };
        for r in &self.regions {
            let offset = (at as usize).wrapping_sub(r.host.as_ptr() as usize) as u64;
            if offset < r.size {
                log.mark(r.guest + offset, len as u64);
                return;
            }
        }
    }
}

/// Bytes somebody lent us to read: guest memory or a pooled buffer. Valid until the arena lets go of any memory.
#[derive(Clone, Copy)]
pub struct Lent {
    pub(crate) ptr: NonNull<u8>,
    pub(crate) len: u32,
    pub(crate) epoch: u32,
}

// SAFETY: a `Lent` is a plain address; every access checks its epoch against the arena that holds the memory.
unsafe impl Send for Lent {}

impl Lent {
    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// No bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes of it from `at`; nothing when that goes past the end.
    #[inline]
    pub fn part(&self, at: usize, len: usize) -> Option<Lent> {
        let end = at.checked_add(len)?;
        if end > self.len as usize {
            return None;
        }
        // SAFETY: `at <= self.len`, so the address stays inside (or one past) the lent bytes.
        let ptr = unsafe { self.ptr.add(at) };
        Some(Lent { ptr, len: len as u32, epoch: self.epoch })
    }

    /// Asks for the first cache line, to read it soon.
    #[inline]
    pub fn prefetch(&self) {
        copy::prefetch_read(self.ptr.as_ptr());
    }
}

/// Guest memory that a driver offered for us to write. Written through [`MapRef`] only, which logs dirty pages.
#[derive(Clone, Copy)]
pub struct Room {
    ptr: NonNull<u8>,
    len: u32,
    epoch: u32,
}

// SAFETY: as for `Lent`.
unsafe impl Send for Room {}

impl Room {
    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// No bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is left after `at` bytes; empty when that is past the end.
    #[inline]
    pub fn after(&self, at: usize) -> Room {
        let at = at.min(self.len as usize);
        // SAFETY: `at <= self.len`.
        Room { ptr: unsafe { self.ptr.add(at) }, len: self.len - at as u32, epoch: self.epoch }
    }

    /// Asks for the first three cache lines, to write them soon: so many has a short frame with the headers of a tunnel.
    #[inline]
    pub fn prefetch(&self) {
        copy::prefetch_write(self.ptr.as_ptr());
        copy::prefetch_write(self.ptr.as_ptr().wrapping_add(64));
        copy::prefetch_write(self.ptr.as_ptr().wrapping_add(128));
    }
}

/// One guest's memory within one arena: lends pieces and writes into rooms.
pub struct MapRef<'a> {
    memory: &'a GuestMemory,
    epoch: u32,
    hint: Cell<usize>,
}

impl<'a> MapRef<'a> {
    pub(crate) fn new(memory: &'a GuestMemory, epoch: u32) -> Self {
        MapRef { memory, epoch, hint: Cell::new(memory.largest) }
    }

    /// The `len` bytes at guest physical address `guest`, to read; nothing when no one region holds them all.
    #[inline(always)]
    pub fn lend(&self, guest: u64, len: u32) -> Option<Lent> {
        let ptr = self.memory.host(guest, u64::from(len), &self.hint)?;
        Some(Lent { ptr, len, epoch: self.epoch })
    }

    /// The `len` bytes at guest physical address `guest`, to write; nothing when no one region holds them all.
    #[inline(always)]
    pub fn room(&self, guest: u64, len: u32) -> Option<Room> {
        let ptr = self.memory.host(guest, u64::from(len), &self.hint)?;
        Some(Room { ptr, len, epoch: self.epoch })
    }

    /// Copies the start of `from` into `into`, as far as both reach; returns the bytes copied, 0 when `from` is stale.
    #[inline(always)]
    pub fn read(&self, from: Lent, into: &mut [u8]) -> usize {
        read(from, self.epoch, into)
    }

    /// Copies `from` to the start of `to`, as far as both reach; returns the bytes copied, 0 when `to` is stale.
    #[inline(always)]
    pub fn write(&self, to: Room, from: &[u8]) -> usize {
        if to.epoch != self.epoch {
            return 0;
        }
        let n = from.len().min(to.len as usize);
        // SAFETY: the epoch says the arena still holds the memory, `n` bytes of which lie inside one region; `from` is our own memory.
        unsafe { copy::copy(to.ptr.as_ptr(), from.as_ptr(), n) };
        self.written(to, n);
        n
    }

    /// Writes a frame to the start of `to`: the 12 bytes of its virtio-net header (virtio 1.2 section 5.1.6, little endian) given as two
    /// words, then `head`, then the pieces of `body`. False, and the guest's bytes undefined, when `to` is too short or anything is stale.
    #[inline(always)]
    pub fn write_frame(&self, to: Room, header: (u64, u32), head: &[u8], body: &[Lent]) -> bool {
        let mut at = 12 + head.len();
        if to.epoch != self.epoch || (to.len as usize) < at {
            return false;
        }
        let start = to.ptr.as_ptr();
        // SAFETY: the epoch says the arena still holds the memory, which reaches at least to the end of `head`; unaligned stores.
        unsafe {
            copy::store_u64(start, header.0);
            copy::store_u32(start.add(8), header.1);
            copy::copy(start.add(12), head.as_ptr(), head.len());
        }
        for piece in body {
            let len = piece.len as usize;
            if piece.epoch != self.epoch || to.len as usize - at < len {
                return false;
            }
            // SAFETY: both epochs are the arena's; `len` bytes are left in the room. Overlapping guest memory is a matter of contents.
            unsafe { copy::copy(start.add(at), piece.ptr.as_ptr(), len) };
            at += len;
        }
        self.written(to, at);
        true
    }

    /// Reads a frame from the start of `from`: its 12-byte virtio-net header as two little-endian words, and the bytes after it into
    /// `into`, all of which must be there. Nothing when `from` is too short or stale.
    #[inline(always)]
    pub fn read_frame(&self, from: Lent, into: &mut [u8]) -> Option<(u64, u32)> {
        if from.epoch != self.epoch || (from.len as usize) < 12 + into.len() {
            return None;
        }
        let start = from.ptr.as_ptr();
        // SAFETY: the epoch says the arena still holds the memory, which is long enough; `into` is our own. Unaligned loads.
        unsafe {
            let low = copy::load_u64(start);
            let high = copy::load_u32(start.add(8));
            copy::copy(into.as_mut_ptr(), start.add(12), into.len());
            Some((low, high))
        }
    }

    /// Stores the 12 bytes of a virtio-net header (virtio 1.2 section 5.1.6, little endian) given as two words; false when `to` is shorter.
    #[inline(always)]
    pub fn write_header(&self, to: Room, low: u64, high: u32) -> bool {
        if to.epoch != self.epoch || to.len < 12 {
            return false;
        }
        // SAFETY: as for `write`, with 12 bytes, which `to` has; unaligned stores.
        unsafe {
            copy::store_u64(to.ptr.as_ptr(), low);
            copy::store_u32(to.ptr.as_ptr().add(8), high);
        }
        self.written(to, 12);
        true
    }

    /// Copies the start of `from` to the start of `to`, as far as both reach; returns the bytes copied, 0 when either is stale.
    /// A guest that lends and receives the same bytes gets a mixture of them.
    #[inline(always)]
    pub fn copy(&self, to: Room, from: Lent) -> usize {
        if to.epoch != self.epoch || from.epoch != self.epoch {
            return 0;
        }
        let n = (from.len as usize).min(to.len as usize);
        // SAFETY: both epochs are the arena's, so both ranges are mapped; the copy is by assembly or volatile accesses, for which
        // overlapping guest memory is a matter of contents, not of soundness.
        unsafe { copy::copy(to.ptr.as_ptr(), from.ptr.as_ptr(), n) };
        self.written(to, n);
        n
    }

    #[inline(always)]
    fn written(&self, to: Room, n: usize) {
        if self.memory.log.is_some() {
            self.memory.mark_host(to.ptr.as_ptr(), n);
        }
    }
}

/// Reads lent bytes for an arena of epoch `epoch`.
#[inline(always)]
pub(crate) fn read(from: Lent, epoch: u32, into: &mut [u8]) -> usize {
    if from.epoch != epoch {
        return 0;
    }
    let n = into.len().min(from.len as usize);
    // SAFETY: the epoch says the arena still holds the memory; `into` is our own and does not overlap it.
    unsafe { copy::copy(into.as_mut_ptr(), from.ptr.as_ptr(), n) };
    n
}
