//! The driver half of a split virtqueue (virtio 1.2 section 2.7).
//!
//! Invariant: a descriptor belongs either to one outstanding chain or to the list of free ones, and that list is kept in memory of our
//! own. A driver that agreed on in-order use takes descriptors in ring order (section 2.7.9), which the same list gives: it is a ring
//! then and never relinked.

use sys::{
    MapRef,
    split::{DESC_NEXT, DESC_WRITE, Descriptor, SplitMemory},
};

use super::{AddError, Buffer, Tables, Used, UsedError, outstanding::Outstanding, pieces, room};
use crate::features::Features;

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A split virtqueue as its driver sees it.
pub struct SplitDriver {
    memory: SplitMemory,
    tables: Option<Tables>,
    /// For every descriptor the one after it in its chain or in the list of free ones.
    links: Box<[u16]>,
    free_head: u16,
    free: u16,
    /// What every available slot holds. A slot that holds the right head already is not written again: the device keeps its cache line.
    heads: Box<[u16]>,
    /// Next available slot to fill.
    next: u16,
    /// Available slots published.
    published: u16,
    /// Next used slot to read.
    used: u16,
    /// The device's index as last read.
    used_seen: u16,
    outstanding: Outstanding,
    event_idx: bool,
    in_order: bool,
}

impl SplitDriver {
    /// The queue in `memory`, which is zero.
    pub(super) fn new(memory: SplitMemory, features: Features, tables: Option<Tables>) -> Self {
        let size = memory.size();
        let in_order = features.has(Features::IN_ORDER);
        SplitDriver {
            memory,
            tables,
            links: (0..size).map(|index| (index + 1) & (size - 1)).collect(),
            free_head: 0,
            free: size,
            heads: vec![0; usize::from(size)].into(),
            next: 0,
            published: 0,
            used: 0,
            used_seen: 0,
            outstanding: Outstanding::new(size, in_order),
            event_idx: features.has(Features::EVENT_IDX),
            in_order,
        }
    }

    #[inline]
    fn link(&self, index: u16) -> u16 {
        self.links.get(usize::from(index)).copied().unwrap_or(0)
    }

    #[inline]
    fn check(&self, need: usize) -> Result<(), AddError> {
        match need {
            0 => Err(AddError::Empty),
            need if need > usize::from(self.free) => Err(AddError::Full { free: self.free, need }),
            _ => Ok(()),
        }
    }

    /// See [`super::DriverQueue::add`].
    #[inline]
    pub(super) fn add(&mut self, readable: &[Buffer], writable: &[Buffer]) -> Result<u16, AddError> {
        let count = readable.len() + writable.len();
        self.check(count)?;
        let head = self.free_head;
        let mut index = head;
        for (n, (buffer, flags)) in pieces(readable, writable).enumerate() {
            let next = self.link(index);
            let more = if n + 1 < count { DESC_NEXT } else { 0 };
            let descriptor = Descriptor { guest: buffer.guest, len: buffer.len, flags: flags | more, next };
            self.memory.set_descriptor(index, descriptor);
            index = next;
        }
        self.offer(head, index, count as u16, room(writable));
        Ok(head)
    }

    /// See [`super::DriverQueue::add_indirect`].
    pub(super) fn add_indirect(
        &mut self,
        map: &MapRef<'_>,
        readable: &[Buffer],
        writable: &[Buffer],
    ) -> Result<u16, AddError> {
        let pieces = pieces(readable, writable);
        self.check(pieces.len().min(1))?;
        let head = self.free_head;
        let tables = self.tables.ok_or(AddError::Table(pieces.len()))?;
        let descriptor = tables.write(map, head, pieces, false)?;
        self.memory.set_descriptor(head, descriptor);
        self.offer(head, self.link(head), 1, room(writable));
        Ok(head)
    }

    /// See [`super::DriverQueue::add_each`].
    #[inline]
    pub(super) fn add_each(
        &mut self,
        buffers: impl Iterator<Item = Buffer>,
        writable: bool,
        mut added: impl FnMut(u16),
    ) {
        let flags = if writable { DESC_WRITE } else { 0 };
        for buffer in buffers.take(usize::from(self.free)) {
            let head = self.free_head;
            let next = self.link(head);
            self.memory.set_descriptor(head, Descriptor { guest: buffer.guest, len: buffer.len, flags, next });
            self.offer(head, next, 1, if writable { buffer.len } else { 0 });
            added(head);
        }
    }

    #[inline]
    fn offer(&mut self, head: u16, free_head: u16, entries: u16, room: u32) {
        self.free_head = free_head;
        self.free -= entries;
        if let Some(held) = self.heads.get_mut(usize::from(self.next) & (self.links.len() - 1))
            && *held != head
        {
            *held = head;
            self.memory.set_avail_head(self.next, head);
        }
        self.next = self.next.wrapping_add(1);
        self.outstanding.add(head, entries, room);
    }

    /// See [`super::DriverQueue::publish`].
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        if self.next == self.published {
            return false;
        }
        let before = std::mem::replace(&mut self.published, self.next);
        self.memory.set_avail_index(self.next);
        self.memory.barrier();
        if self.event_idx {
            let event = self.memory.avail_event();
            self.next.wrapping_sub(event).wrapping_sub(1) < self.next.wrapping_sub(before)
        } else {
            self.memory.used_flags() & NO_NOTIFY == 0
        }
    }

    /// Reads the next used element, if there is one, unless chains of the one before are still to be handed back. Says whether any are now.
    #[inline]
    fn read_used(&mut self) -> Result<bool, UsedError> {
        if self.outstanding.has_used() {
            return Ok(true);
        }
        if self.used == self.used_seen {
            self.used_seen = self.memory.used_index();
            self.memory.prefetch_used_elements(self.used, self.used_seen.wrapping_sub(self.used));
        }
        let by = self.used_seen.wrapping_sub(self.used);
        let jump = UsedError::IndexJump { by, outstanding: self.outstanding.count() };
        if by == 0 {
            return Ok(false);
        }
        if by > self.outstanding.count() {
            return Err(jump);
        }
        let (id, written) = self.memory.used(self.used);
        let (chains, _) = self.outstanding.used(id, written)?;
        if chains > by {
            return Err(jump);
        }
        self.used = self.used.wrapping_add(chains);
        Ok(true)
    }

    /// See [`super::DriverQueue::take_used`].
    #[inline]
    pub(super) fn take_used(&mut self) -> Result<Option<Used>, UsedError> {
        if !self.read_used()? {
            return Ok(None);
        }
        Ok(self.outstanding.next().map(|(used, entries)| {
            self.give_back(used.id, entries);
            used
        }))
    }

    /// See [`super::DriverQueue::reclaim`].
    #[inline]
    pub(super) fn reclaim(&mut self) -> Result<(), UsedError> {
        while self.read_used()? {
            match self.outstanding.rest_of_batch() {
                Some(entries) => self.free += entries,
                None => drop(self.take_used()?),
            }
        }
        Ok(())
    }

    /// Puts a chain's descriptors before the free ones.
    #[inline]
    fn give_back(&mut self, head: u16, entries: u16) {
        self.free += entries;
        if self.in_order {
            return;
        }
        let last = (1..entries).fold(head, |index, _| self.link(index));
        if let Some(link) = self.links.get_mut(usize::from(last)) {
            *link = self.free_head;
        }
        self.free_head = head;
    }

    /// See [`super::DriverQueue::has_used`].
    pub(super) fn has_used(&self) -> bool {
        self.outstanding.has_used() || self.used != self.memory.used_index()
    }

    /// See [`super::DriverQueue::want_interrupts`].
    pub(super) fn want_interrupts(&mut self, want: bool) -> bool {
        if self.event_idx {
            // An event just passed is as far away as one can be.
            let event = if want { self.used } else { self.used.wrapping_sub(1) };
            self.memory.set_used_event(event);
        } else {
            self.memory.set_avail_flags(if want { 0 } else { NO_INTERRUPT });
        }
        self.memory.barrier();
        want && self.has_used()
    }

    /// See [`super::DriverQueue::free`].
    #[inline]
    pub(super) fn free(&self) -> u16 {
        self.free
    }

    /// See [`super::DriverQueue::outstanding`].
    #[inline]
    pub(super) fn outstanding(&self) -> u16 {
        self.outstanding.count()
    }

    /// The ring's memory, for tests that break its rules.
    pub fn memory(&self) -> &SplitMemory {
        &self.memory
    }
}
