//! [`DeviceSetup`]: what a front end gives to a back end: memory, rings, and the doorbells between them.
//!
//! Invariant: a setup that was checked can be said in messages: every ring lies whole and aligned in one region, and has an address in the
//! numbers of the front end. Read first: vhost-user specification, "Memory region description" and "Ring states".

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use sys::{GuestMemory, Region, eventfd::EventFd, memory::Mapping, packed::PackedMemory, split::SplitMemory};

use super::error::FrontEndError;
use crate::{
    features::Features,
    vhost_user::message::{MAX_TABLE, RegionSpec, RingAddress},
};

/// A region of the guest's memory and the file it lies in, a memfd as a rule.
#[derive(Debug)]
pub struct MemoryRegion {
    /// Where it is. The user address only has to be another one for each region: rings are named by it, nobody dereferences it.
    pub spec: RegionSpec,
    /// The file.
    pub file: OwnedFd,
}

/// All of the guest's memory that a back end may see.
pub struct DeviceMemory {
    regions: Vec<MemoryRegion>,
    map: Arc<GuestMemory>,
}

impl DeviceMemory {
    /// The memory of these regions, which are mapped here too: rings are read in it.
    ///
    /// # Errors
    /// No region or more than one table holds, regions that overlap, files that are too short or cannot be mapped.
    pub fn new(regions: Vec<MemoryRegion>) -> Result<Self, FrontEndError> {
        if !(1..=MAX_TABLE as usize).contains(&regions.len()) {
            return Err(FrontEndError::Regions(regions.len()));
        }
        let map = |MemoryRegion { spec, file }: &MemoryRegion| {
            let mapping = Mapping::shared(file.as_fd(), spec.offset, spec.size);
            let mapping = mapping.map_err(|error| FrontEndError::Map { guest: spec.guest, error })?;
            Ok(Region::new(spec.guest, spec.size, spec.user, Arc::new(mapping), 0)?)
        };
        let mapped = regions.iter().map(map).collect::<Result<Vec<_>, FrontEndError>>()?;
        Ok(DeviceMemory { regions, map: Arc::new(GuestMemory::new(mapped, None)?) })
    }

    /// The memory as the driver sees it.
    pub fn map(&self) -> &Arc<GuestMemory> {
        &self.map
    }

    /// The regions.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }

    /// The front end's address of a guest physical address, as messages name rings.
    fn user(&self, guest: u64) -> Option<u64> {
        self.regions.iter().find_map(|MemoryRegion { spec, .. }| {
            let offset = guest.checked_sub(spec.guest)?;
            (offset < spec.size).then(|| spec.user + offset)
        })
    }
}

/// One virtqueue as its driver set it up.
#[derive(Debug)]
pub struct RingSetup {
    /// Entries.
    pub size: u16,
    /// Guest physical address of the descriptor area.
    pub descriptors: u64,
    /// Guest physical address of the driver area.
    pub driver: u64,
    /// Guest physical address of the device area.
    pub device: u64,
    /// Rung by the driver.
    pub kick: EventFd,
    /// Rung by the device.
    pub call: EventFd,
    /// Where it starts, as vhost-user's `SET_VRING_BASE` has it: split, an index, 0 for a new ring; packed, index and wrap counter of the
    /// next available entry in the low and of the next used one in the high half, [`RingSetup::PACKED_START`] for a new ring.
    pub base: u32,
}

impl RingSetup {
    /// The base of a packed ring that nobody used yet: both at entry 0, both wrap counters 1 (virtio 1.2 section 2.8.1).
    pub const PACKED_START: u32 = 0x8000_8000;
}

/// A device whose driver is ready.
pub struct DeviceSetup {
    /// What the driver agreed on, out of [`super::Offer::features`].
    pub features: Features,
    /// The guest's memory.
    pub memory: DeviceMemory,
    /// The virtqueues, from ring 0 on.
    pub rings: Vec<RingSetup>,
}

impl DeviceSetup {
    /// Whether the rings are packed.
    pub fn is_packed(&self) -> bool {
        self.features.has(Features::RING_PACKED)
    }

    /// Whether all of it can be said in messages.
    pub(super) fn check(&self) -> Result<(), FrontEndError> {
        if !(1..=255).contains(&self.rings.len()) {
            return Err(FrontEndError::Rings(self.rings.len()));
        }
        for (index, ring) in (0..).zip(&self.rings) {
            let RingSetup { size, descriptors, driver, device, .. } = *ring;
            let map = self.memory.map().clone();
            let placed = if self.is_packed() {
                PackedMemory::new(map, size, descriptors, driver, device).map(|_| ())
            } else {
                SplitMemory::new(map, size, descriptors, driver, device).map(|_| ())
            };
            placed.map_err(|error| FrontEndError::Place { ring: index, error })?;
        }
        Ok(())
    }

    /// A ring's places in the front end's addresses.
    pub(super) fn address(&self, ring: &RingSetup) -> RingAddress {
        // Checked rings lie in a region.
        let user = |guest| self.memory.user(guest).unwrap_or_default();
        RingAddress { descriptors: user(ring.descriptors), used: user(ring.device), avail: user(ring.driver) }
    }

    /// Sets the bases to where a back end that is gone has left the rings.
    ///
    /// For a split ring that is its used index. A network device uses chains in the order in which they were made available (ours does,
    /// and so do DPDK's and the kernel's), so the first chain not used yet is the one at this index; the device stores the index last, so
    /// everything before it is done and visible; and the available entries from it on are still as the driver wrote them, because a driver
    /// takes none back before it is used. What the dead back end had taken and not used is taken again: at most one burst is done twice,
    /// nothing is lost. (The available index would lose all of these.) It is read when the next back end has answered, which ours does when
    /// its workers have let go of the rings of the connection before.
    ///
    /// A packed ring keeps no index: whose turn an entry is follows from counters that only the two sides hold.
    ///
    /// # Errors
    /// The rings are packed, or a ring's indices contradict each other.
    pub(super) fn resume(&mut self) -> Result<(), FrontEndError> {
        if self.is_packed() {
            return Err(FrontEndError::PositionUnknown);
        }
        for (index, ring) in (0..).zip(&mut self.rings) {
            let RingSetup { size, descriptors, driver, device, .. } = *ring;
            let memory = SplitMemory::new(self.memory.map().clone(), size, descriptors, driver, device)
                .map_err(|error| FrontEndError::Place { ring: index, error })?;
            let (used, available) = (memory.used_index(), memory.avail_index());
            if available.wrapping_sub(used) > size {
                return Err(FrontEndError::Indices { ring: index, used, available, size });
            }
            ring.base = u32::from(used);
        }
        Ok(())
    }
}
