//! The shared memory of a packed virtqueue, seen from either half.
//!
//! Invariant: the three parts were found whole, aligned and inside one region each when the view was made; no index reaches past the ring;
//! a descriptor's length, id and flags are one 8-byte atomic access, so they are never mixed from two states. Read first: virtio 1.2
//! section 2.8. The view keeps the guest's memory mapped. Device writes are marked in the dirty log.

use std::{
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
};

use crate::{
    copy,
    guest::GuestMemory,
    split::{Descriptor, PlaceError, place},
};

/// The available flag of a packed descriptor (`VIRTQ_DESC_F_AVAIL`).
pub const PACKED_AVAIL: u16 = 1 << 7;
/// The used flag of a packed descriptor (`VIRTQ_DESC_F_USED`).
pub const PACKED_USED: u16 = 1 << 15;

/// The memory of one packed virtqueue.
pub struct PackedMemory {
    descriptors: NonNull<u8>,
    driver: NonNull<u8>,
    device: NonNull<u8>,
    guest: u64,
    device_guest: u64,
    size: u16,
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers lead into mappings that `memory` keeps alive and that may be used from any thread by atomic accesses.
unsafe impl Send for PackedMemory {}

impl PackedMemory {
    /// The ring of `size` entries whose descriptor ring, driver and device event suppression areas are at these guest physical addresses.
    pub fn new(
        memory: Arc<GuestMemory>,
        size: u16,
        descriptors: u64,
        driver: u64,
        device: u64,
    ) -> Result<Self, PlaceError> {
        if size == 0 || size > 32768 {
            return Err(PlaceError::Size(size, "1 to 32768"));
        }
        Ok(PackedMemory {
            descriptors: place(&memory, "descriptor ring", descriptors, u64::from(size) * 16, 16)?,
            driver: place(&memory, "driver event area", driver, 4, 4)?,
            device: place(&memory, "device event area", device, 4, 4)?,
            guest: descriptors,
            device_guest: device,
            size,
            memory,
        })
    }

    /// Entries.
    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory the ring lies in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    #[inline]
    fn words(&self, index: u16) -> Option<(&AtomicU64, &AtomicU64)> {
        if index >= self.size {
            return None;
        }
        // SAFETY: the ring has `size` entries of 16 bytes, aligned to 16.
        unsafe {
            let at = self.descriptors.as_ptr().add(16 * usize::from(index)).cast::<u64>();
            Some((AtomicU64::from_ptr(at), AtomicU64::from_ptr(at.add(1))))
        }
    }

    /// The flags of entry `index`, and the entry itself as it was when they were read; nothing past the ring.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        let (low, high) = self.words(index)?;
        let high = u64::from_le(high.load(Ordering::Acquire));
        let guest = u64::from_le(low.load(Ordering::Relaxed));
        Some(Descriptor { guest, len: high as u32, next: (high >> 32) as u16, flags: (high >> 48) as u16 })
    }

    /// Asks for the line of entry `index`.
    #[inline]
    pub fn prefetch(&self, index: u16) {
        copy::prefetch_write(self.descriptors.as_ptr().wrapping_add(16 * usize::from(index)));
    }

    /// Stores length, id and flags of entry `index` at once, after everything stored before; the address stays. Past the ring: nothing.
    #[inline]
    pub fn set_used(&self, index: u16, word: u64) {
        if let Some((_, high)) = self.words(index) {
            high.store(word.to_le(), Ordering::Release);
            if self.memory.is_logged() {
                self.memory.mark(self.guest + 16 * u64::from(index) + 8, 8);
            }
        }
    }

    /// The word that [`PackedMemory::set_used`] stores.
    #[inline]
    pub fn used_word(id: u16, len: u32, wrap: bool) -> u64 {
        let flags = if wrap { PACKED_AVAIL | PACKED_USED } else { 0 };
        u64::from(flags) << 48 | u64::from(id) << 32 | u64::from(len)
    }

    /// Stores a whole entry, its flags last: what a driver does.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        if let Some((low, high)) = self.words(index) {
            let Descriptor { guest, len, flags, next } = descriptor;
            low.store(guest.to_le(), Ordering::Relaxed);
            high.store((u64::from(flags) << 48 | u64::from(next) << 32 | u64::from(len)).to_le(), Ordering::Release);
        }
    }

    #[inline]
    fn area(&self, area: NonNull<u8>) -> &AtomicU32 {
        // SAFETY: both areas are 4 bytes, aligned to 4, inside their region.
        unsafe { AtomicU32::from_ptr(area.as_ptr().cast()) }
    }

    /// What the driver wants to be told: (offset and wrap counter, flags), virtio 1.2 section 2.8.10.
    #[inline]
    pub fn driver_event(&self) -> (u16, u16) {
        let word = u32::from_le(self.area(self.driver).load(Ordering::Relaxed));
        (word as u16, (word >> 16) as u16)
    }

    /// Stores what the driver wants to be told.
    pub fn set_driver_event(&self, offset_wrap: u16, flags: u16) {
        self.area(self.driver).store((u32::from(flags) << 16 | u32::from(offset_wrap)).to_le(), Ordering::Relaxed);
    }

    /// What the device wants to be told.
    pub fn device_event(&self) -> (u16, u16) {
        let word = u32::from_le(self.area(self.device).load(Ordering::Relaxed));
        (word as u16, (word >> 16) as u16)
    }

    /// Stores what the device wants to be told.
    #[inline]
    pub fn set_device_event(&self, offset_wrap: u16, flags: u16) {
        self.area(self.device).store((u32::from(flags) << 16 | u32::from(offset_wrap)).to_le(), Ordering::Relaxed);
        if self.memory.is_logged() {
            self.memory.mark(self.device_guest, 4);
        }
    }

    /// Orders all stores before it against all loads after it.
    #[inline]
    pub fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}
