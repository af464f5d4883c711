//! [`ByNic`]: something for each of a few NICs, whatever their numbers.
//!
//! Invariant: what is there is found; memory is taken for the NICs that are there, not for the numbers below theirs. Numbers are given by worker, so a
//! worker with ten thousand networks has NICs with high numbers in bridges of two members.
//!
//! Theory of operation: an open-addressed table at most half full; a number is spread over it by a multiplication (Fibonacci hashing), so that rows of
//! numbers collide little, and what collided lies behind it. Whoever adds or removes may lay the table out anew.

use crate::NicId;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct ByNic<T> {
    slots: Box<[Option<(NicId, T)>]>,
    /// Bits of a product that are dropped to get a place.
    shift: u32,
    len: usize,
}

impl<T> Default for ByNic<T> {
    fn default() -> Self {
        ByNic::with_bits(1)
    }
}

impl<T> ByNic<T> {
    fn with_bits(bits: u32) -> ByNic<T> {
        ByNic { slots: (0..1 << bits).map(|_| None).collect(), shift: u32::BITS - bits, len: 0 }
    }

    /// Where a NIC is, or the first free place behind where it would be.
    #[inline]
    fn place(&self, nic: NicId) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (u32::from(nic.0).wrapping_mul(0x9e37_79b9) >> self.shift) as usize;
        while self.slots.get(at & mask).and_then(Option::as_ref).is_some_and(|(other, _)| *other != nic) {
            at += 1;
        }
        at & mask
    }

    /// What there is for a NIC.
    #[inline]
    pub fn get(&self, nic: NicId) -> Option<&T> {
        self.slots.get(self.place(nic))?.as_ref().map(|(_, what)| what)
    }

    /// The same, to change.
    #[inline]
    pub fn get_mut(&mut self, nic: NicId) -> Option<&mut T> {
        let at = self.place(nic);
        self.slots.get_mut(at)?.as_mut().map(|(_, what)| what)
    }

    /// Puts something there for a NIC; what was there before. May allocate.
    pub fn insert(&mut self, nic: NicId, what: T) -> Option<T> {
        if (self.len + 1) * 2 > self.slots.len() {
            let bits = u32::BITS - self.shift + 1;
            let old = std::mem::replace(self, ByNic::with_bits(bits));
            old.slots.into_iter().flatten().for_each(|(nic, what)| _ = self.insert(nic, what));
        }
        let at = self.place(nic);
        let before = self.slots.get_mut(at).and_then(|slot| slot.replace((nic, what)));
        self.len += usize::from(before.is_none());
        before.map(|(_, what)| what)
    }

    /// Takes out what there is for a NIC. What lies behind it moves up.
    pub fn remove(&mut self, nic: NicId) -> Option<T> {
        let mut at = self.place(nic);
        let (_, what) = self.slots.get_mut(at).and_then(Option::take)?;
        self.len -= 1;
        let mask = self.slots.len() - 1;
        loop {
            at = (at + 1) & mask;
            let Some((other, moved)) = self.slots.get_mut(at).and_then(Option::take) else { break };
            let to = self.place(other);
            if let Some(slot) = self.slots.get_mut(to) {
                *slot = Some((other, moved));
            }
        }
        Some(what)
    }

    /// How many places there are; each has a NIC or none. Who goes round all of them meets every NIC.
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// The NIC at a place.
    #[inline]
    pub fn at(&self, place: usize) -> Option<(NicId, &T)> {
        self.slots.get(place)?.as_ref().map(|(nic, what)| (*nic, what))
    }

    /// All, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (NicId, &T)> {
        self.slots.iter().flatten().map(|(nic, what)| (*nic, what))
    }

    /// How many NICs something is there for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<bool>(), prop_oneof![0..40u16, any::<u16>()]), 0..400)) {
            let mut table = ByNic::default();
            let mut oracle = BTreeMap::new();
            for (n, (add, nic)) in steps.into_iter().enumerate() {
                match add {
                    true => prop_assert_eq!(table.insert(NicId(nic), n), oracle.insert(nic, n)),
                    false => prop_assert_eq!(table.remove(NicId(nic)), oracle.remove(&nic)),
                }
                prop_assert_eq!(table.len(), oracle.len());
                prop_assert!(oracle.iter().all(|(nic, what)| table.get(NicId(*nic)) == Some(what)));
                let mut all: Vec<(u16, usize)> = table.iter().map(|(nic, what)| (nic.0, *what)).collect();
                all.sort();
                prop_assert!(all.into_iter().eq(oracle.iter().map(|(nic, what)| (*nic, *what))));
            }
        }
    }

    #[test]
    fn rows_of_numbers_hardly_collide() {
        for step in [1u16, 2, 3, 64, 100] {
            let mut table = ByNic::default();
            (0..500).for_each(|n| _ = table.insert(NicId(n * step), n));
            assert!(table.places() <= 1024);
            // No run of taken places is long.
            let taken: Vec<bool> = (0..table.places()).map(|place| table.at(place).is_some()).collect();
            let longest = taken.split(|taken| !taken).map(<[bool]>::len).max();
            assert!(longest.is_some_and(|longest| longest < 40), "{step}: {longest:?}");
        }
    }
}
