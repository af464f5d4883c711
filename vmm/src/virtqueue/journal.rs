//! [`Journal`]: where a packed ring stands, kept in a mapped file so that a killed daemon can go on.
//!
//! Invariant: after a kill between any two stores, [`Journal::recover`] finds a position from which no chain is lost; at most the chains of
//! the burst in flight are carried out a second time.
//!
//! Theory of operation: a split ring keeps its own journal, the used index, which a front end reads back when we are gone. A packed ring
//! has nothing of the kind: the position is in the device's head, and QEMU can only guess it. So `publish` does, in this order:
//!
//! 1. store the used elements that are about to be written (entry and word of each) into the journal;
//! 2. store the state word: from, to, count > 0 ("intent");
//! 3. write the elements into the ring, the first one last: that store alone makes the burst visible to the driver;
//! 4. store the state word: to, count 0 ("at rest").
//!
//! Killed before 2, the journal still says "at rest" before the burst, and nothing of it is in the ring: it is taken again. Killed between
//! 2 and the end of 3, the first element is still available in the ring: all of 3 is done again from the journal, which is idempotent.
//! Killed after 3, the first element is not available any more: the burst is published and only 4 is missing. The driver may have gone on
//! meanwhile, so in that case nothing is written.
//!
//! A journal may also be stale (the guest was started anew while we were gone), so a position is believed only if the ring's flags
//! could have come about that way: see [`Journal::recover`].

use std::{io, path::Path};

use sys::{
    memory::Mapping,
    packed::{PACKED_AVAIL, PACKED_USED, PackedMemory},
    words::Words,
};

use super::packed::Position;

const MAGIC: u64 = 0x7472_756e_6b6c_0001;
const WORD_MAGIC: usize = 0;
const WORD_STATE: usize = 1;
const WORD_LAST_ENTRY: usize = 2;
const WORD_LAST: usize = 3;
const ELEMENTS: usize = 8;

/// The journal of one packed ring. See the module's documentation.
pub struct Journal {
    words: Words,
}

/// From, to and the number of elements of a burst; at rest when there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    from: Position,
    to: Position,
    count: u16,
}

impl State {
    fn word(self) -> u64 {
        u64::from(self.from.bits()) | u64::from(self.to.bits()) << 16 | u64::from(self.count) << 32
    }

    fn from_word(word: u64) -> Self {
        let to = Position::from_bits((word >> 16) as u16);
        State { from: Position::from_bits(word as u16), to, count: (word >> 32) as u16 }
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

    /// Begins at a position that the front end named (or that [`Journal::recover`] found).
    pub fn start(&mut self, at: Position, size: u16) {
        if self.words.load(WORD_MAGIC) != Self::magic(size) {
            self.words.store(WORD_MAGIC, 0);
            self.words.store(WORD_LAST_ENTRY, u64::MAX);
        }
        self.words.store(WORD_STATE, State { from: at, to: at, count: 0 }.word());
        self.words.store(WORD_MAGIC, Self::magic(size));
    }

    fn magic(size: u16) -> u64 {
        MAGIC ^ u64::from(size) << 16
    }

    /// Steps 1 and 2: `elements` are about to be written, standing for the entries from `from` up to `to`.
    #[inline]
    pub fn intend(&mut self, from: Position, to: Position, elements: &[(u16, u64)]) {
        for (n, (index, word)) in elements.iter().enumerate() {
            self.words.store(ELEMENTS + 2 * n, u64::from(*index));
            self.words.store(ELEMENTS + 2 * n + 1, *word);
        }
        self.words.store(WORD_STATE, State { from, to, count: elements.len() as u16 }.word());
        if let Some((index, word)) = elements.last() {
            self.words.store(WORD_LAST_ENTRY, u64::from(*index));
            self.words.store(WORD_LAST, *word);
        }
    }

    /// Step 4: the ring is at `to`.
    #[inline]
    pub fn commit(&mut self, to: Position) {
        self.words.store(WORD_STATE, State { from: to, to, count: 0 }.word());
    }

    fn element(&self, n: u16) -> (u16, u64) {
        let at = ELEMENTS + 2 * usize::from(n);
        (self.words.load(at) as u16, self.words.load(at + 1))
    }

    /// Where the ring in `memory` stands, after finishing a publish that was cut short; nothing when the journal is empty, for a ring of
    /// another size, or when the ring's flags contradict it.
    pub fn recover(&mut self, memory: &PackedMemory) -> Option<Position> {
        let size = memory.size();
        if self.words.load(WORD_MAGIC) != Self::magic(size) {
            return None;
        }
        let state = State::from_word(self.words.load(WORD_STATE));
        if state.from.index >= size || state.to.index >= size || state.count > size {
            return None;
        }
        let at = if state.count == 0 { state.from } else { self.finish(state, memory)? };
        self.fits(at, memory).then_some(at)
    }

    /// Finishes a burst whose intent was stored.
    fn finish(&mut self, state: State, memory: &PackedMemory) -> Option<Position> {
        if flags(memory, state.from.index)? == (state.from.wrap, !state.from.wrap) {
            if !self.fits_unpublished(state, memory) {
                return None;
            }
            for n in (0..state.count).rev() {
                let (index, word) = self.element(n);
                memory.set_used(index, word);
            }
        }
        if let Some(last) = state.count.checked_sub(1) {
            let (index, word) = self.element(last);
            self.words.store(WORD_LAST_ENTRY, u64::from(index));
            self.words.store(WORD_LAST, word);
        }
        self.commit(state.to);
        Some(state.to)
    }

    /// Whether every element of an unpublished burst stands where an available descriptor or the element itself is.
    fn fits_unpublished(&self, state: State, memory: &PackedMemory) -> bool {
        (0..state.count).all(|n| {
            let (index, word) = self.element(n);
            let wrap = if index >= state.from.index { state.from.wrap } else { !state.from.wrap };
            let written = memory.descriptor(index).map(|d| PackedMemory::used_word(d.next, d.len, wrap));
            match flags(memory, index) {
                Some(found) if found == (wrap, !wrap) => true,
                Some(found) if found == (wrap, wrap) => written == Some(word),
                _ => false,
            }
        })
    }

    /// Whether the ring's flags could be those of a ring that stands at `at`: every entry was used in the device's last pass over it, or
    /// skipped there, or made available again since; the available ones follow `at` without a gap; and the element written last is
    /// there or was made available again.
    fn fits(&self, at: Position, memory: &PackedMemory) -> bool {
        let size = memory.size();
        let mut available = true;
        for step in 0..size {
            let index = at.plus(step, size).index;
            let lap = if index < at.index { at.wrap } else { !at.wrap };
            let Some(found) = flags(memory, index) else { return false };
            if found == (!lap, !lap) {
                return false;
            }
            let is_available = found == (!lap, lap);
            if is_available && !available {
                return false;
            }
            available = is_available;
        }
        let Ok(last) = u16::try_from(self.words.load(WORD_LAST_ENTRY)) else { return true };
        let lap = if last < at.index { at.wrap } else { !at.wrap };
        let Some(descriptor) = memory.descriptor(last) else { return false };
        let word = PackedMemory::used_word(descriptor.next, descriptor.len, lap);
        match flags(memory, last) {
            Some(found) if found == (lap, lap) => word == self.words.load(WORD_LAST),
            Some(found) => found == (!lap, lap),
            None => false,
        }
    }
}

/// The available and used flags of an entry.
fn flags(memory: &PackedMemory, index: u16) -> Option<(bool, bool)> {
    memory.descriptor(index).map(|d| (d.flags & PACKED_AVAIL != 0, d.flags & PACKED_USED != 0))
}
