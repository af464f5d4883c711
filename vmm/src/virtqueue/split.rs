//! The device half of a split virtqueue (virtio 1.2 section 2.7).
//!
//! Invariant: chains are used in the order in which they were made available, so between two publishes the ring's whole state is one index
//! (`used`), and what was taken beyond it can be taken again.
//!
//! Theory of operation: `take` reads the available index once, the heads, then the descriptors, and asks for the buffers' cache lines
//! while it goes; `complete` fills used slots that nobody looks at yet; `publish` stores the used index once and says whether the
//! driver wants to hear of it. `give_back` forgets chains taken last.

use sys::{
    MapRef,
    split::{DESC_INDIRECT, DESC_NEXT, Descriptor, SplitMemory},
};

use super::{
    Ring,
    chain::{Batch, Chain, Piece, RingError},
};
use crate::features::Features;

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A split virtqueue as its device sees it.
pub struct SplitQueue {
    memory: SplitMemory,
    /// The driver's index as last read.
    avail: u16,
    /// Next chain to take.
    next: u16,
    /// Next used slot to fill.
    filled: u16,
    /// Used slots published.
    published: u16,
    event_idx: bool,
    in_order: bool,
}

impl SplitQueue {
    /// The queue in `memory`, to start at index `base` (what was made available before it has been used).
    pub fn new(memory: SplitMemory, features: Features, base: u16) -> Self {
        SplitQueue {
            memory,
            avail: base,
            next: base,
            filled: base,
            published: base,
            event_idx: features.has(Features::EVENT_IDX),
            in_order: features.has(Features::IN_ORDER),
        }
    }

    /// The next index to take: what a front end is told when the ring stops.
    pub fn base(&self) -> u16 {
        self.published
    }

    /// The ring's memory.
    pub fn memory(&self) -> &SplitMemory {
        &self.memory
    }

    /// Takes a chain that is not one plain descriptor.
    #[cold]
    fn take_chain<P: Piece>(&self, map: &MapRef<'_>, batch: &mut Batch<P>, first: Descriptor) -> Result<(), RingError> {
        let size = self.memory.size();
        let mark = batch.mark();
        let mut descriptor = first;
        let mut seen = 0;
        loop {
            if descriptor.flags & DESC_INDIRECT != 0 {
                batch.add_indirect(map, descriptor, mark, false)?;
                return Ok(());
            }
            batch.add(map, descriptor, mark)?;
            if descriptor.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            seen += 1;
            if seen >= size {
                return Err(RingError::Length(usize::from(size)));
            }
            let index = descriptor.next;
            descriptor = self.memory.descriptor(index).ok_or(RingError::Index { index, size })?;
        }
    }
}

impl Ring for SplitQueue {
    #[inline]
    fn take<P: Piece>(&mut self, map: &MapRef<'_>, batch: &mut Batch<P>, max: usize) -> Result<(), RingError> {
        let size = self.memory.size();
        let mut ready = self.avail.wrapping_sub(self.next);
        if usize::from(ready) < max {
            self.avail = self.memory.avail_index();
            ready = self.avail.wrapping_sub(self.next);
            // Chains that were not given back yet count: a driver has no others to offer in their place.
            let by = self.avail.wrapping_sub(self.published);
            if by > size {
                return Err(RingError::IndexJump { by, size });
            }
        }
        let n = ready.min(max as u16);
        for _ in 0..n {
            let head = self.memory.avail_head(self.next);
            let descriptor = self.memory.descriptor(head).ok_or(RingError::Index { index: head, size })?;
            let mark = batch.mark();
            if descriptor.flags & (DESC_NEXT | DESC_INDIRECT) == 0 {
                batch.add(map, descriptor, mark)?;
            } else {
                self.take_chain(map, batch, descriptor)?;
            }
            batch.end_chain(head, 1, mark);
            self.next = self.next.wrapping_add(1);
        }
        Ok(())
    }

    #[inline]
    fn give_back(&mut self, chains: &[Chain]) {
        self.next = self.next.wrapping_sub(chains.len() as u16);
    }

    #[inline]
    fn complete(&mut self, chain: Chain, written: u32) {
        self.memory.set_used(self.filled, chain.id, written);
        self.filled = self.filled.wrapping_add(1);
    }

    #[inline]
    fn complete_all(&mut self, chains: &[Chain]) {
        match chains.last() {
            Some(last) if self.in_order => {
                self.memory.set_used(self.filled, last.id, 0);
                self.filled = self.filled.wrapping_add(chains.len() as u16);
            }
            _ => chains.iter().for_each(|chain| self.complete(*chain, 0)),
        }
    }

    #[inline]
    fn publish(&mut self) -> bool {
        if self.filled == self.published {
            return false;
        }
        let before = std::mem::replace(&mut self.published, self.filled);
        self.memory.set_used_index(self.filled);
        self.memory.barrier();
        if self.event_idx {
            let event = self.memory.used_event();
            self.filled.wrapping_sub(event).wrapping_sub(1) < self.filled.wrapping_sub(before)
        } else {
            self.memory.avail_flags() & NO_INTERRUPT == 0
        }
    }

    fn is_staged(&self) -> bool {
        self.filled != self.published
    }

    fn want_kicks(&mut self, want: bool) -> bool {
        if self.event_idx {
            if want {
                self.memory.set_avail_event(self.next);
            }
        } else {
            self.memory.set_used_flags(if want { 0 } else { NO_NOTIFY });
        }
        if !want {
            return false;
        }
        self.memory.barrier();
        self.memory.avail_index() != self.next
    }
}
