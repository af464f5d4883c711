//! Hashes under a secret, for tables that somebody outside fills: which keys meet cannot be known without it.
//!
//! Invariant: two tables with one seed hash alike. Not for more than tables: who sees hashes may find the secret.
//!
//! Theory of operation: a word is mixed in by a multiplication to 128 bits whose halves are laid over each other, so each bit of it reaches the low
//! bits that a table looks at. The secrets come out of the seed by SplitMix64, so that seeds that are alike give secrets that are not.

use std::hash::{BuildHasher, Hasher};

/// Both halves of the 128-bit product, one over the other.
#[inline]
pub fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The next number of the SplitMix64 sequence.
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Makes hashers that share a secret.
#[derive(Clone, Copy, Debug)]
pub struct Keyed([u64; 2]);

impl Keyed {
    /// `seed` must be unknown to whoever fills the table.
    pub fn new(seed: u64) -> Keyed {
        let mut state = seed;
        Keyed([(); 2].map(|()| splitmix(&mut state) | 1))
    }
}

/// A hash in the making; see [`Keyed`].
pub struct KeyedHasher {
    state: u64,
    secret: u64,
}

impl BuildHasher for Keyed {
    type Hasher = KeyedHasher;

    fn build_hasher(&self) -> KeyedHasher {
        let [state, secret] = self.0;
        KeyedHasher { state, secret }
    }
}

impl Hasher for KeyedHasher {
    fn finish(&self) -> u64 {
        fold(self.state, self.secret)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.state = fold(self.state ^ word, self.secret) ^ word.rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_beside_each_other_fall_apart_and_seeds_differ() {
        let places = |seed| (0..4096u64).map(|key| Keyed::new(seed).hash_one(key) % 65_536).collect::<HashSet<u64>>();
        // Of 4,096 balls into 65,536 urns some 3,970 are alone or first (birthday).
        assert!(places(1).len() > 3900 && places(2).len() > 3900);
        assert!(places(1).intersection(&places(2)).count() < 600);
        assert_eq!(Keyed::new(7).hash_one("a"), Keyed::new(7).hash_one("a"));
    }
}
