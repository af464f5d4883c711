//! [`Journal`]: where a packed ring stands, kept in a mapped file so that a killed daemon can go on.
//!
//! Invariant: after a kill between any two stores, [`Journal::recover`] finds a position from which no chain is lost; at most the chains of
//! the burst in flight are carried out a second time.
//!
//! Theory of operation: a split ring keeps its own journal, the used index, which a front end reads back when we are gone. A packed ring
//! has nothing of the kind: the position is in the device's head, and QEMU can only guess it. So a publish does, in this order
//! ([`Publish::stores`] is the one place that says it):
//!
//! 1. store the used elements that are about to be written (entry and word of each) into the journal;
//! 2. store the state word: from, to, count > 0 ("intent");
//! 3. write the elements into the ring, the first one last: that store alone makes the burst visible to the driver;
//! 4. store the state word once more ("shown"), what the ring now ends with, and the state word: to, count 0 ("at rest").
//!
//! Killed before 2, the journal still says "at rest" before the burst, and nothing of it is in the ring: it is taken again. Killed between
//! 2 and the end of 3, the first element is still available in the ring: all of 3 is done again from the journal, which is idempotent.
//! Killed after 3, the first element is not available any more: the burst is published and only 4 is missing. The driver may have gone on
//! meanwhile, so in that case nothing is written into the ring.
//!
//! A journal may also be stale: the guest was started anew while we were gone. So a position is believed only if the ring's flags could
//! have come about that way, and if the last element written, and the entry before the position, are still there or were made available
//! again: see [`fits`]. A ring that fresh drivers have filled can look like a used one whose last element covered several chains,
//! which is why with a journal the last chain of a burst always gets an element of its own. Only the very first burst of a ring, cut
//! short, looks the same after the guest was started anew; finishing it then uses up to a burst of the new guest's chains.

use std::{io, path::Path};

use sys::{
    memory::Mapping,
    packed::{PACKED_AVAIL, PACKED_USED, PackedMemory},
    split::{DESC_NEXT, Descriptor},
    words::Words,
};

use super::packed::Position;

const MAGIC: u64 = 0x7472_756e_6b6c_0002;
const WORD_MAGIC: usize = 0;
const WORD_STATE: usize = 1;
/// Entry and word of the element written last.
const WORD_LAST_ENTRY: usize = 2;
const WORD_LAST: usize = 3;
/// Length, id and flags of the entry before the position.
const WORD_TAIL: usize = 4;
/// The same after the burst whose intent is stored.
const WORD_NEXT_TAIL: usize = 5;
const ELEMENTS: usize = 8;

/// The journal of one packed ring. See the module's documentation.
pub struct Journal {
    words: Words,
}

/// One store of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// This word of the journal.
    Journal(usize, u64),
    /// Length, id and flags of this entry of the ring.
    Ring(u16, u64),
}

/// What a publish shows the driver.
pub(super) struct Publish<'a> {
    /// The first entry used.
    pub(super) from: Position,
    /// The entry after the last one used.
    pub(super) to: Position,
    /// Entry and word of each element.
    pub(super) elements: &'a [(u16, u64)],
    /// Length, id and flags that the entry before `to` will have.
    pub(super) tail: u64,
}

impl Publish<'_> {
    /// Every store of the publish, in its order.
    #[inline]
    pub(super) fn stores(&self, mut store: impl FnMut(Store)) {
        let (Some(first), Some(last)) = (self.elements.first(), self.elements.last()) else { return };
        for (n, (entry, word)) in self.elements.iter().enumerate() {
            store(Store::Journal(ELEMENTS + 2 * n, u64::from(*entry)));
            store(Store::Journal(ELEMENTS + 2 * n + 1, *word));
        }
        store(Store::Journal(WORD_NEXT_TAIL, self.tail));
        let intent = State { from: self.from, to: self.to, count: self.elements.len() as u16, shown: false };
        store(Store::Journal(WORD_STATE, intent.word()));
        for (entry, word) in self.elements.iter().skip(1) {
            store(Store::Ring(*entry, *word));
        }
        store(Store::Ring(first.0, first.1));
        store(Store::Journal(WORD_STATE, State { shown: true, ..intent }.word()));
        State::rest(self.to, *last, self.tail, store);
    }
}

/// From, to and the number of elements of a burst, and whether the driver was shown it; at rest when there are no elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    from: Position,
    to: Position,
    count: u16,
    shown: bool,
}

impl State {
    /// The stores that put the journal at rest: step 4.
    #[inline]
    fn rest(at: Position, last: (u16, u64), tail: u64, mut store: impl FnMut(Store)) {
        store(Store::Journal(WORD_LAST_ENTRY, u64::from(last.0)));
        store(Store::Journal(WORD_LAST, last.1));
        store(Store::Journal(WORD_TAIL, tail));
        store(Store::Journal(WORD_STATE, State { from: at, to: at, count: 0, shown: true }.word()));
    }

    fn word(self) -> u64 {
        u64::from(self.from.bits())
            | u64::from(self.to.bits()) << 16
            | u64::from(self.count) << 32
            | u64::from(self.shown) << 48
    }

    fn from_word(word: u64) -> Self {
        let to = Position::from_bits((word >> 16) as u16);
        State { from: Position::from_bits(word as u16), to, count: (word >> 32) as u16, shown: word >> 48 != 0 }
    }
}

impl Journal {
    /// The journal in the file `path` for a ring of `size` entries; made when it is not there, kept when it is.
    pub fn open(path: &Path, size: u16) -> io::Result<Self> {
        Ok(Journal { words: Words::new(Mapping::file(path, Journal::bytes(size))?) })
    }

    /// The journal in memory that a front end keeps for us over our death, for a ring of `size` entries; nothing when it is too small. The
    /// front end may write there too, and then harms its own ring.
    pub fn within(mapping: Mapping, size: u16) -> Option<Self> {
        let words = Words::new(mapping);
        (words.len() as u64 * 8 >= Journal::bytes(size)).then_some(Journal { words })
    }

    /// Bytes of the journal of a ring of `size` entries.
    fn bytes(size: u16) -> u64 {
        (ELEMENTS as u64 + 2 * u64::from(size)) * 8
    }

    /// Forgets everything: the ring was stopped in order, and the front end was told where.
    pub fn clear(&mut self) {
        self.words.store(WORD_MAGIC, 0);
        self.words.store(WORD_STATE, 0);
    }

    /// Begins at a position that the front end named.
    pub fn start(&mut self, at: Position, memory: &PackedMemory) {
        let before = at.minus(1, memory.size()).index;
        let word = memory.descriptor(before).map_or(0, word_of);
        self.words.store(WORD_MAGIC, 0);
        State::rest(at, (before, word), word, |store| self.carry_out(memory, store));
        self.words.store(WORD_MAGIC, Self::magic(memory.size()));
    }

    fn magic(size: u16) -> u64 {
        MAGIC ^ u64::from(size) << 16
    }

    /// Publishes, in an order that survives a kill.
    #[inline]
    pub(super) fn publish(&mut self, memory: &PackedMemory, publish: &Publish<'_>) {
        publish.stores(|store| self.carry_out(memory, store));
    }

    #[inline]
    fn carry_out(&self, memory: &PackedMemory, store: Store) {
        match store {
            Store::Journal(at, word) => self.words.store(at, word),
            Store::Ring(entry, word) => memory.set_used(entry, word),
        }
    }

    fn element(&self, n: u16) -> (u16, u64) {
        let at = ELEMENTS + 2 * usize::from(n);
        (self.words.load(at) as u16, self.words.load(at + 1))
    }

    /// Where the ring in `memory` stands, after finishing a publish that was cut short; nothing, and nothing done, when the journal is empty,
    /// for a ring of another size, or contradicted by the ring.
    pub fn recover(&mut self, memory: &PackedMemory) -> Option<Position> {
        self.recover_through(memory, |store| self.carry_out(memory, store))
    }

    /// The same; what is to be stored goes through `store`.
    fn recover_through(&self, memory: &PackedMemory, mut store: impl FnMut(Store)) -> Option<Position> {
        let size = memory.size();
        if self.words.load(WORD_MAGIC) != Self::magic(size) {
            return None;
        }
        let state = State::from_word(self.words.load(WORD_STATE));
        if state.from.index >= size || state.to.index >= size || state.count > size {
            return None;
        }
        let before = (self.words.load(WORD_LAST_ENTRY) as u16, self.words.load(WORD_LAST));
        let Some(newest) = state.count.checked_sub(1) else {
            let fits = fits(state.from, 0, before, self.words.load(WORD_TAIL), memory);
            return fits.then_some(state.from);
        };
        let (last, tail) = (self.element(newest), self.words.load(WORD_NEXT_TAIL));
        if !state.shown && flags(memory.descriptor(state.from.index)?) == (state.from.wrap, !state.from.wrap) {
            let staged = state.to.since(state.from, size);
            let fits = fits(state.from, staged, before, self.words.load(WORD_TAIL), memory);
            if !fits || !self.fits_unpublished(state, memory) {
                return None;
            }
            for n in (0..state.count).rev() {
                let (entry, word) = self.element(n);
                store(Store::Ring(entry, word));
            }
            store(Store::Journal(WORD_STATE, State { shown: true, ..state }.word()));
        } else if !fits(state.to, 0, last, tail, memory) {
            return None;
        }
        State::rest(state.to, last, tail, store);
        Some(state.to)
    }

    /// Whether every element of an unpublished burst stands where an available descriptor or the element itself is.
    fn fits_unpublished(&self, state: State, memory: &PackedMemory) -> bool {
        (0..state.count).all(|n| {
            let (entry, word) = self.element(n);
            let wrap = if entry >= state.from.index { state.from.wrap } else { !state.from.wrap };
            memory.descriptor(entry).is_some_and(|found| flags(found) == (wrap, !wrap) || word_of(found) == word)
        })
    }
}

/// Whether the ring could stand at `at`: every entry was used in the device's last pass over it, or skipped there, or made available again
/// since; the available ones follow `at` without a gap; and the element written `last`, and the entry before `at` (its `tail`), are as they
/// were left or made available again. The `staged` entries from `at` on may hold elements that were not published.
///
/// The driver goes on meanwhile. It makes entries available in their order, so they are looked at from the far end: whatever was
/// available when it was looked at, everything before it is. But for the first descriptor of a chain, which comes after the others.
fn fits(at: Position, staged: u16, last: (u16, u64), tail: u64, memory: &PackedMemory) -> bool {
    let size = memory.size();
    let lap_of = |entry: u16| if entry < at.index { at.wrap } else { !at.wrap };
    let (mut available, mut headless, mut gap) = (false, true, false);
    for step in (0..size).rev() {
        let entry = at.plus(step, size).index;
        let lap = lap_of(entry);
        let Some(descriptor) = memory.descriptor(entry) else { return false };
        let found = flags(descriptor);
        if step < staged {
            if found != (!lap, lap) && found != (!lap, !lap) {
                return false;
            }
        } else if found == (!lap, !lap) {
            return false;
        } else if found == (!lap, lap) {
            // All but the last descriptor of a chain whose first is still to come have a next one.
            headless &= !available || descriptor.flags & DESC_NEXT != 0;
            available = true;
        } else if available {
            if gap || !headless {
                return false;
            }
            gap = true;
        }
    }
    let as_left = |entry: u16, word: u64| {
        let lap = lap_of(entry);
        let is_staged =
            (u32::from(entry) + u32::from(size) - u32::from(at.index)) % u32::from(size) < u32::from(staged);
        is_staged || memory.descriptor(entry).is_some_and(|found| flags(found) == (!lap, lap) || word_of(found) == word)
    };
    as_left(last.0, last.1) && as_left(at.minus(1, size).index, tail)
}

/// The available and used flags of an entry.
fn flags(descriptor: Descriptor) -> (bool, bool) {
    (descriptor.flags & PACKED_AVAIL != 0, descriptor.flags & PACKED_USED != 0)
}

/// Length, id and flags of an entry, as [`PackedMemory::set_used`] stores them.
pub(super) fn word_of(descriptor: Descriptor) -> u64 {
    u64::from(descriptor.flags) << 48 | u64::from(descriptor.next) << 32 | u64::from(descriptor.len)
}

#[cfg(test)]
mod tests;
