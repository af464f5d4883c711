//! [`Words`]: a mapped file (or memory shared with another process) as an array of 64-bit words with ordered stores.
//!
//! Invariant: every access is one aligned atomic load or store, so another process that reads the file after this one was killed sees each
//! word whole, and the words in the order in which they were stored.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Mapping;

/// An array of words in a mapping. Native byte order: it is read on the host that wrote it.
pub struct Words {
    mapping: Mapping,
    len: usize,
}

impl Words {
    /// The words of a mapping; an odd rest is left out. A mapping that does not begin at a multiple of 8 bytes has none.
    pub fn new(mapping: Mapping) -> Self {
        let len = if mapping.ptr().addr().get().is_multiple_of(8) { mapping.len() / 8 } else { 0 };
        Words { mapping, len }
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.len() {
            return None;
        }
        // SAFETY: `new` found the mapping aligned, and the word lies inside; atomics may be shared with other processes.
        Some(unsafe { AtomicU64::from_ptr(self.mapping.ptr().as_ptr().cast::<u64>().add(index)) })
    }

    /// Word `index`; zero past the end. What was stored before it by whoever stored it is visible after.
    #[inline]
    pub fn load(&self, index: usize) -> u64 {
        self.word(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Stores word `index` after everything stored before. Past the end: nothing.
    #[inline]
    pub fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index) {
            word.store(value, Ordering::Release);
        }
    }
}
