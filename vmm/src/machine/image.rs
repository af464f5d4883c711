//! [`Memory`] of a machine, and the program loaded into it.
//!
//! Invariant: what is loaded lies between the machine's own tables and the end of memory, and so does the entry. One memory is seen in three
//! ways: by KVM and by rings through `sys`, by the loader and the slow devices through vm-memory.

use std::{fs::File, io, os::fd::AsFd, sync::Arc};

use linux_loader::loader::{KernelLoader, elf::Elf};
use sys::{GuestMemory, Region, memory::Mapping};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::{MachineError, boot};

/// The memory of a machine, in one piece from address 0.
#[derive(Clone)]
pub(super) struct Memory {
    /// As the loader and slow devices see it.
    pub(super) map: Arc<GuestMemoryMmap>,
    /// As rings see it.
    pub(super) guest: Arc<GuestMemory>,
    /// As KVM sees it.
    pub(super) mapping: Arc<Mapping>,
    /// The file behind it, for a back end in another process.
    pub(super) file: Arc<File>,
}

impl Memory {
    pub(super) fn new(bytes: u64) -> io::Result<Memory> {
        let file = File::from(sys::memory::memfd("machine", bytes)?);
        let mapping = Arc::new(Mapping::shared(file.as_fd(), 0, bytes)?);
        let region = Region::new(0, bytes, 0, Arc::clone(&mapping), 0).map_err(io::Error::other)?;
        let guest = GuestMemory::new(vec![region], None).map_err(io::Error::other)?;
        let range = (GuestAddress(0), bytes as usize, Some(FileOffset::new(file.try_clone()?, 0)));
        let map = GuestMemoryMmap::from_ranges_with_files([range]).map_err(io::Error::other)?;
        Ok(Memory { map: Arc::new(map), guest: Arc::new(guest), mapping, file: Arc::new(file) })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.map.write_slice(bytes, GuestAddress(at)).map_err(io::Error::other)
    }

    /// The word at guest address `at`; nothing when it is not memory.
    pub(super) fn word(&self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.map.read_slice(&mut bytes, GuestAddress(at)).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// Where a loaded program begins, and the first page behind it.
pub(super) struct Loaded {
    pub(super) entry: u64,
    pub(super) free: u64,
}

/// Loads an ELF program.
pub(super) fn load(memory: &Memory, image: &[u8]) -> Result<Loaded, MachineError> {
    if !image.starts_with(b"\x7fELF\x02") {
        return Err(MachineError::Image("it is no 64-bit ELF program".to_owned()));
    }
    let lowest = Some(GuestAddress(boot::LOW));
    let loaded = Elf::load(&*memory.map, None, &mut io::Cursor::new(image), lowest)
        .map_err(|error| MachineError::Image(error.to_string()))?;
    // The loader says where segments end in the file; uninitialised data follow up to a segment's size in memory.
    let end = segments(image).map(|(address, size)| address.saturating_add(size)).max().unwrap_or(0);
    let free = end.max(loaded.kernel_end).next_multiple_of(4096);
    let entry = loaded.kernel_load.0;
    if free >= memory.bytes() {
        let (need, have) = (free >> 20, memory.bytes() >> 20);
        return Err(MachineError::Image(format!("the program needs {need} MiB and more, the machine has {have} MiB")));
    }
    if entry < boot::LOW || entry >= free {
        let what = format!("its entry {entry:#x} is outside the program ({:#x} to {free:#x})", boot::LOW);
        return Err(MachineError::Image(what));
    }
    Ok(Loaded { entry, free })
}

/// Address and size in memory of each loadable segment (ELF-64 object file format, program header).
fn segments(image: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let word = |at: usize| image.get(at..at + 8).and_then(|b| b.first_chunk().copied()).map_or(0, u64::from_le_bytes);
    let half = |at: usize| image.get(at..at + 2).and_then(|b| b.first_chunk().copied()).map_or(0, u16::from_le_bytes);
    let (offset, size, count) = (word(32) as usize, usize::from(half(54)), usize::from(half(56)));
    (0..count).filter_map(move |n| {
        let at = offset.checked_add(n.checked_mul(size)?)?;
        let header = image.get(at..at.checked_add(56)?)?;
        let field = |at: usize| header.get(at..at + 8).and_then(|b| b.first_chunk().copied()).map(u64::from_le_bytes);
        let is_loadable = header.starts_with(&1u32.to_le_bytes());
        is_loadable.then_some((field(24)?, field(40)?))
    })
}
