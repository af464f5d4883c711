//! The driver half of a packed virtqueue (virtio 1.2 section 2.8).
//!
//! Invariant: entries between the next used and the next available position belong to outstanding chains, the rest are free; which entries
//! a chain takes up and which ids are free is kept in memory of our own.
//!
//! Theory of operation: `add` writes a chain's descriptors but for its first, which makes the chain available; `publish` writes these, the
//! first of them last, so that the device finds either nothing or everything that was added.

use sys::{
    MapRef,
    packed::{PACKED_AVAIL, PACKED_USED, PackedMemory},
    split::{DESC_NEXT, Descriptor},
};

use super::{
    super::packed::{EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, Position},
    AddError, Buffer, Tables, Used, UsedError,
    outstanding::Outstanding,
    pieces, room,
};
use crate::features::Features;

/// A packed virtqueue as its driver sees it.
pub struct PackedDriver {
    memory: PackedMemory,
    tables: Option<Tables>,
    /// Next entry to write.
    next: Position,
    /// First entry added and not published.
    published: Position,
    /// First descriptors of the chains that are not published.
    heads: Vec<(u16, Descriptor)>,
    /// Entries that are not published.
    unpublished: u16,
    /// Next entry that the device uses.
    used: Position,
    free: u16,
    ids: Vec<u16>,
    outstanding: Outstanding,
    event_idx: bool,
}

impl PackedDriver {
    /// The queue in `memory`, which is zero.
    pub(super) fn new(memory: PackedMemory, features: Features, tables: Option<Tables>) -> Self {
        let size = memory.size();
        PackedDriver {
            memory,
            tables,
            next: Position::START,
            published: Position::START,
            heads: Vec::with_capacity(usize::from(size)),
            unpublished: 0,
            used: Position::START,
            free: size,
            ids: (0..size).rev().collect(),
            outstanding: Outstanding::new(size, features.has(Features::IN_ORDER)),
            event_idx: features.has(Features::EVENT_IDX),
        }
    }

    /// An id for a chain of `need` entries.
    fn take_id(&mut self, need: usize) -> Result<u16, AddError> {
        match need {
            0 => Err(AddError::Empty),
            need if need > usize::from(self.free) => Err(AddError::Full { free: self.free, need }),
            _ => self.ids.pop().ok_or(AddError::Full { free: 0, need }),
        }
    }

    fn available(at: Position) -> u16 {
        if at.wrap { PACKED_AVAIL } else { PACKED_USED }
    }

    /// See [`super::DriverQueue::add`].
    pub(super) fn add(&mut self, readable: &[Buffer], writable: &[Buffer]) -> Result<u16, AddError> {
        let size = self.memory.size();
        let count = readable.len() + writable.len();
        let id = self.take_id(count)?;
        let mut at = self.next;
        for (n, (buffer, flags)) in pieces(readable, writable).enumerate() {
            let more = if n + 1 < count { DESC_NEXT } else { 0 };
            let flags = flags | more | Self::available(at);
            let descriptor = Descriptor { guest: buffer.guest, len: buffer.len, flags, next: id };
            if n == 0 {
                self.heads.push((at.index, descriptor));
            } else {
                self.memory.set_descriptor(at.index, descriptor);
            }
            at = at.plus(1, size);
        }
        self.offer(id, count as u16, room(writable));
        Ok(id)
    }

    /// See [`super::DriverQueue::add_indirect`].
    pub(super) fn add_indirect(
        &mut self,
        map: &MapRef<'_>,
        readable: &[Buffer],
        writable: &[Buffer],
    ) -> Result<u16, AddError> {
        let pieces = pieces(readable, writable);
        let count = pieces.len();
        let id = self.take_id(count.min(1))?;
        let table = self.tables.ok_or(AddError::Table(count)).and_then(|tables| tables.write(map, id, pieces, true));
        let mut descriptor = match table {
            Ok(descriptor) => descriptor,
            Err(error) => {
                self.ids.push(id);
                return Err(error);
            }
        };
        descriptor.flags |= Self::available(self.next);
        descriptor.next = id;
        self.heads.push((self.next.index, descriptor));
        self.offer(id, 1, room(writable));
        Ok(id)
    }

    fn offer(&mut self, id: u16, entries: u16, room: u32) {
        self.next = self.next.plus(entries, self.memory.size());
        self.free -= entries;
        self.unpublished += entries;
        self.outstanding.add(id, entries, room);
    }

    /// See [`super::DriverQueue::publish`].
    pub(super) fn publish(&mut self) -> bool {
        if self.heads.is_empty() {
            return false;
        }
        for (index, descriptor) in self.heads.drain(..).rev() {
            self.memory.set_descriptor(index, descriptor);
        }
        let before = std::mem::replace(&mut self.published, self.next);
        let entries = std::mem::take(&mut self.unpublished);
        self.memory.barrier();
        let (event, flags) = self.memory.device_event();
        match flags & 3 {
            EVENT_DESC if self.event_idx => Position::from_bits(event).is_within(before, entries, self.memory.size()),
            EVENT_DISABLE => false,
            _ => true,
        }
    }

    fn used_element(&self) -> Option<Descriptor> {
        let descriptor = self.memory.descriptor(self.used.index)?;
        let available = descriptor.flags & PACKED_AVAIL != 0;
        let used = descriptor.flags & PACKED_USED != 0;
        (available == self.used.wrap && used == self.used.wrap).then_some(descriptor)
    }

    /// See [`super::DriverQueue::take_used`].
    pub(super) fn take_used(&mut self) -> Result<Option<Used>, UsedError> {
        if !self.outstanding.has_used() {
            let Some(element) = self.used_element() else { return Ok(None) };
            let (_, entries) = self.outstanding.used(u32::from(element.next), element.len)?;
            self.used = self.used.plus(entries, self.memory.size());
        }
        Ok(self.outstanding.next().map(|(used, entries)| {
            self.free += entries;
            self.ids.push(used.id);
            used
        }))
    }

    /// See [`super::DriverQueue::add_each`].
    pub(super) fn add_each(
        &mut self,
        buffers: impl Iterator<Item = Buffer>,
        writable: bool,
        mut added: impl FnMut(u16),
    ) {
        for buffer in buffers.take(usize::from(self.free)) {
            let chain = if writable { self.add(&[], &[buffer]) } else { self.add(&[buffer], &[]) };
            // As many entries are free as are taken.
            chain.into_iter().for_each(&mut added);
        }
    }

    /// See [`super::DriverQueue::reclaim`].
    pub(super) fn reclaim(&mut self) -> Result<(), UsedError> {
        while self.take_used()?.is_some() {}
        Ok(())
    }

    /// See [`super::DriverQueue::has_used`].
    pub(super) fn has_used(&self) -> bool {
        self.outstanding.has_used() || self.used_element().is_some()
    }

    /// See [`super::DriverQueue::want_interrupts`].
    pub(super) fn want_interrupts(&mut self, want: bool) -> bool {
        match (want, self.event_idx) {
            (true, true) => self.memory.set_driver_event(self.used.bits(), EVENT_DESC),
            (true, false) => self.memory.set_driver_event(0, EVENT_ENABLE),
            (false, _) => self.memory.set_driver_event(0, EVENT_DISABLE),
        }
        self.memory.barrier();
        want && self.has_used()
    }

    /// See [`super::DriverQueue::free`].
    pub(super) fn free(&self) -> u16 {
        self.free
    }

    /// See [`super::DriverQueue::outstanding`].
    pub(super) fn outstanding(&self) -> u16 {
        self.outstanding.count()
    }

    /// The ring's memory, for tests that break its rules.
    pub fn memory(&self) -> &PackedMemory {
        &self.memory
    }
}
