//! [`MemoryTable`]: the guest memory of one session, changed region by region or as a whole.
//!
//! Invariant: a change either succeeds or leaves the table as it is; what was handed out stays mapped until its last holder drops it, so
//! whoever changes the table first takes home all that uses it. Read first: vhost-user specification, "Memory access" and "Migration".

use std::{os::fd::AsFd, os::fd::OwnedFd, sync::Arc};

use sys::{GuestMemory, Region, guest::DirtyLog, guest::RegionError, memory::Mapping};

use super::{error::SessionError, message::RegionSpec};

/// The regions a front end shared, and the log of writes to them.
#[derive(Default)]
pub(super) struct MemoryTable {
    memory: Option<Arc<GuestMemory>>,
    log: Option<Arc<DirtyLog>>,
    logging: bool,
}

impl MemoryTable {
    /// The memory, if there is any.
    pub(super) fn memory(&self) -> Option<&Arc<GuestMemory>> {
        self.memory.as_ref()
    }

    /// Replaces all regions.
    pub(super) fn set(&mut self, regions: Vec<(RegionSpec, OwnedFd)>) -> Result<(), SessionError> {
        let regions = regions.iter().map(|(spec, fd)| map(spec, fd)).collect::<Result<Vec<_>, _>>()?;
        self.memory = Some(self.build(regions)?);
        Ok(())
    }

    /// Adds one region, in the place of the same one if it is there already: QEMU 7.2 adds every region once for each queue pair.
    pub(super) fn add(&mut self, spec: RegionSpec, fd: OwnedFd) -> Result<(), SessionError> {
        let mut regions = self.regions().to_vec();
        regions.retain(|region| !is_same(region, &spec));
        if regions.len() >= GuestMemory::MAX_REGIONS {
            return Err(RegionError::Count(regions.len() + 1).into());
        }
        regions.push(map(&spec, &fd)?);
        self.memory = Some(self.build(regions)?);
        Ok(())
    }

    /// Removes the region with this guest address, user address and size.
    pub(super) fn remove(&mut self, spec: RegionSpec) -> Result<(), SessionError> {
        let mut regions = self.regions().to_vec();
        let at = regions.iter().position(|region| is_same(region, &spec));
        regions.remove(at.ok_or(SessionError::NoRegion { guest: spec.guest, size: spec.size })?);
        self.memory = if regions.is_empty() { None } else { Some(self.build(regions)?) };
        Ok(())
    }

    /// Writes are to be logged in `size` bytes at `offset` of a file, once logging is on.
    pub(super) fn set_log(&mut self, fd: OwnedFd, offset: u64, size: u64) -> Result<(), SessionError> {
        let mapping = Mapping::shared(fd.as_fd(), offset, size).map_err(SessionError::Log)?;
        self.log = DirtyLog::new(mapping, 0, size).map(Arc::new);
        self.rebuild()
    }

    /// Turns logging on or off.
    pub(super) fn set_logging(&mut self, logging: bool) -> Result<(), SessionError> {
        if self.logging == logging {
            return Ok(());
        }
        self.logging = logging;
        self.rebuild()
    }

    fn rebuild(&mut self) -> Result<(), SessionError> {
        if self.memory.is_some() {
            self.memory = Some(self.build(self.regions().to_vec())?);
        }
        Ok(())
    }

    fn build(&self, regions: Vec<Region>) -> Result<Arc<GuestMemory>, RegionError> {
        GuestMemory::new(regions, self.log.clone().filter(|_| self.logging)).map(Arc::new)
    }

    fn regions(&self) -> &[Region] {
        self.memory.as_deref().map_or(&[], GuestMemory::regions)
    }
}

/// Whether a region is the one that a front end describes.
fn is_same(region: &Region, spec: &RegionSpec) -> bool {
    (region.guest(), region.user(), region.size()) == (spec.guest, spec.user, spec.size)
}

fn map(spec: &RegionSpec, fd: &OwnedFd) -> Result<Region, SessionError> {
    let wrong = |error| SessionError::Map { guest: spec.guest, error };
    let mapping = Mapping::shared(fd.as_fd(), spec.offset, spec.size).map_err(wrong)?;
    Ok(Region::new(spec.guest, spec.size, spec.user, Arc::new(mapping), 0)?)
}
