//! The device half of a packed virtqueue (virtio 1.2 section 2.8).
//!
//! Invariant: chains are used in the order in which they were made available, so the ring's whole state between two publishes is one
//! position with its wrap counter. An entry is available when its available flag equals the wrap counter and its used flag does not.
//!
//! Theory of operation: used elements are collected while a turn lasts and written in `publish`, the first of them last, so that a driver
//! that waits for it finds all the others. [`Ring`] says what the operations mean.

use sys::{
    MapRef,
    packed::{PACKED_AVAIL, PACKED_USED, PackedMemory},
    split::{DESC_INDIRECT, DESC_NEXT, Descriptor},
};

use super::{
    Ring,
    chain::{Batch, Chain, Piece, RingError},
    journal::{Journal, Publish, word_of},
};
use crate::features::Features;

pub(super) const EVENT_ENABLE: u16 = 0;
pub(super) const EVENT_DISABLE: u16 = 1;
pub(super) const EVENT_DESC: u16 = 2;

/// A position in a packed ring with the wrap counter that holds there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Entry, below the ring's size.
    pub index: u16,
    /// Wrap counter, true at first.
    pub wrap: bool,
}

impl Position {
    /// Where a ring begins.
    pub const START: Position = Position { index: 0, wrap: true };

    /// The position `by` entries on in a ring of `size`; `by` is at most `size`.
    #[inline]
    pub fn plus(self, by: u16, size: u16) -> Position {
        let index = u32::from(self.index) + u32::from(by);
        match index.checked_sub(u32::from(size)) {
            Some(over) => Position { index: over as u16, wrap: !self.wrap },
            None => Position { index: index as u16, wrap: self.wrap },
        }
    }

    /// The position `by` entries before.
    #[inline]
    pub fn minus(self, by: u16, size: u16) -> Position {
        match self.index.checked_sub(by) {
            Some(index) => Position { index, wrap: self.wrap },
            None => {
                Position { index: (u32::from(self.index) + u32::from(size) - u32::from(by)) as u16, wrap: !self.wrap }
            }
        }
    }

    /// Entries from `from` to here; at most the ring's size, and no more than a lap.
    #[inline]
    pub fn since(self, from: Position, size: u16) -> u16 {
        let laps = if self.wrap == from.wrap { 0 } else { size };
        self.index.wrapping_add(laps).wrapping_sub(from.index)
    }

    /// Whether it is one of the `entries` from `from` on: what an event suppression area's descriptor event asks (virtio 1.2 section
    /// 2.8.10). A position named long ago is of the other wrap counter or behind, and is not.
    #[inline]
    pub fn is_within(self, from: Position, entries: u16, size: u16) -> bool {
        let laps = if self.wrap == from.wrap { 0 } else { u32::from(size) };
        (u32::from(self.index) + laps).wrapping_sub(u32::from(from.index)) < u32::from(entries)
    }

    /// Index in bits 0 to 14, wrap counter in bit 15: as the event areas and vhost-user have it.
    #[inline]
    pub fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// The inverse of [`Position::bits`].
    #[inline]
    pub fn from_bits(bits: u16) -> Position {
        Position { index: bits & 0x7fff, wrap: bits >> 15 != 0 }
    }
}

/// A packed virtqueue as its device sees it.
pub struct PackedQueue {
    memory: PackedMemory,
    /// Next entry to take.
    next: Position,
    /// Next used element to write, staged ones included.
    filled: Position,
    /// First used element not yet published.
    published: Position,
    staged: Vec<(u16, u64)>,
    /// Entries of the ring that the staged elements stand for.
    staged_entries: u16,
    journal: Option<Journal>,
    event_idx: bool,
    in_order: bool,
}

impl PackedQueue {
    /// The queue in `memory`, to start at `base`. What is published is first written to `journal`.
    pub fn new(memory: PackedMemory, features: Features, base: Position, journal: Option<Journal>) -> Self {
        let staged = Vec::with_capacity(usize::from(memory.size()));
        PackedQueue {
            memory,
            next: base,
            filled: base,
            published: base,
            staged,
            staged_entries: 0,
            journal,
            event_idx: features.has(Features::EVENT_IDX),
            in_order: features.has(Features::IN_ORDER),
        }
    }

    /// Where the next publish begins: what a front end is told when the ring stops.
    pub fn base(&self) -> Position {
        self.published
    }

    /// The ring's memory.
    pub fn memory(&self) -> &PackedMemory {
        &self.memory
    }

    /// The ring's journal, for whoever stops the ring.
    pub fn take_journal(&mut self) -> Option<Journal> {
        self.journal.take()
    }

    /// What the next publish shows.
    pub(super) fn staged(&self) -> Publish<'_> {
        let (from, to) = (self.published, self.filled);
        let before = to.minus(1, self.memory.size()).index;
        let tail = match self.staged.last() {
            Some((entry, word)) if *entry == before => *word,
            _ => self.memory.descriptor(before).map_or(0, word_of),
        };
        Publish { from, to, elements: &self.staged, tail }
    }

    fn publish_journalled(&mut self) {
        if let Some(mut journal) = self.journal.take() {
            journal.publish(&self.memory, &self.staged());
            self.journal = Some(journal);
        }
    }

    #[inline]
    fn is_available(descriptor: Descriptor, wrap: bool) -> bool {
        let avail = descriptor.flags & PACKED_AVAIL != 0;
        let used = descriptor.flags & PACKED_USED != 0;
        avail == wrap && used != wrap
    }

    #[inline]
    fn stage(&mut self, id: u16, written: u32, entries: u16) {
        let word = PackedMemory::used_word(id, written, self.filled.wrap);
        self.staged.push((self.filled.index, word));
        self.staged_entries += entries;
        self.filled = self.filled.plus(entries, self.memory.size());
    }

    /// Takes the rest of a chain whose first descriptor was not a plain single one; returns its id and entries.
    #[cold]
    fn take_chain<P: Piece>(
        &self,
        map: &MapRef<'_>,
        batch: &mut Batch<P>,
        first: Descriptor,
        left: u16,
    ) -> Result<(u16, u16), RingError> {
        let size = self.memory.size();
        let mark = batch.mark();
        let mut at = self.next;
        let mut descriptor = first;
        let mut entries = 1;
        loop {
            if descriptor.flags & DESC_INDIRECT != 0 {
                batch.add_indirect(map, descriptor, mark, true)?;
            } else {
                batch.add(map, descriptor, mark)?;
            }
            if descriptor.flags & DESC_NEXT == 0 {
                return Ok((descriptor.next, entries));
            }
            if entries >= left {
                return Err(RingError::Length(usize::from(left)));
            }
            entries += 1;
            at = at.plus(1, size);
            descriptor = self.memory.descriptor(at.index).ok_or(RingError::Index { index: at.index, size })?;
        }
    }
}

impl Ring for PackedQueue {
    #[inline]
    fn take<P: Piece>(&mut self, map: &MapRef<'_>, batch: &mut Batch<P>, max: usize) -> Result<(), RingError> {
        let size = self.memory.size();
        // A driver has no entries to offer beyond those that were not given back yet.
        let mut left = size.saturating_sub(self.next.since(self.published, size));
        for _ in 0..max {
            let index = self.next.index;
            let descriptor = self.memory.descriptor(index).ok_or(RingError::Index { index, size })?;
            if left == 0 || !Self::is_available(descriptor, self.next.wrap) {
                break;
            }
            let mark = batch.mark();
            let (id, entries) = if descriptor.flags & (DESC_NEXT | DESC_INDIRECT) == 0 {
                batch.add(map, descriptor, mark)?;
                (descriptor.next, 1)
            } else {
                self.take_chain(map, batch, descriptor, left)?
            };
            left = left.saturating_sub(entries);
            batch.end_chain(id, entries, mark);
            self.next = self.next.plus(entries, size);
        }
        Ok(())
    }

    #[inline]
    fn give_back(&mut self, chains: &[Chain]) {
        for chain in chains {
            self.next = self.next.minus(chain.entries, self.memory.size());
        }
    }

    #[inline]
    fn complete(&mut self, chain: Chain, written: u32) {
        self.stage(chain.id, written, chain.entries);
    }

    #[inline]
    fn complete_all(&mut self, chains: &[Chain]) {
        if !self.in_order {
            return chains.iter().for_each(|chain| self.complete(*chain, 0));
        }
        // A journal wants to know the last chain by an element of its own.
        let batches =
            if self.journal.is_some() { chains.split_at(chains.len().saturating_sub(1)) } else { (chains, &[][..]) };
        for batch in [batches.0, batches.1] {
            if let Some(last) = batch.last() {
                self.stage(last.id, 0, batch.iter().map(|chain| chain.entries).sum());
            }
        }
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let Some(first) = self.staged.first() else { return false };
        match &mut self.journal {
            None => {
                for (index, word) in self.staged.iter().skip(1) {
                    self.memory.set_used(*index, *word);
                }
                self.memory.set_used(first.0, first.1);
            }
            Some(_) => self.publish_journalled(),
        }
        let before = std::mem::replace(&mut self.published, self.filled);
        let entries = std::mem::take(&mut self.staged_entries);
        self.staged.clear();
        self.memory.barrier();
        let (event, flags) = self.memory.driver_event();
        match flags & 3 {
            EVENT_DESC if self.event_idx => Position::from_bits(event).is_within(before, entries, self.memory.size()),
            EVENT_DISABLE => false,
            _ => true,
        }
    }

    fn is_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    fn want_kicks(&mut self, want: bool) -> bool {
        if !want {
            self.memory.set_device_event(0, EVENT_DISABLE);
            return false;
        }
        if self.event_idx {
            self.memory.set_device_event(self.next.bits(), EVENT_DESC);
        } else {
            self.memory.set_device_event(0, EVENT_ENABLE);
        }
        self.memory.barrier();
        self.memory.descriptor(self.next.index).is_some_and(|d| Self::is_available(d, self.next.wrap))
    }
}
