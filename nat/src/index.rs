//! [`Index`]: from a key's hash to the slot of its record.
//!
//! Invariant: an entry lies in one of the two buckets of its hash, so a look-up reads two cache lines at most before the record itself,
//! whatever guests send. Nothing is allocated after [`Index::new`].
//!
//! Theory of operation: a bucket is eight entries of 32 bits of hash and 32 bits of slot. The second bucket follows from the first and the
//! entry's own bits (partial-key cuckoo hashing), so that an entry can step aside without its record being read. The hash is keyed: which
//! keys share a bucket cannot be known from outside. Read first: Fan et al., "Cuckoo Filter" (2014), section 3; `vswitch/src/fdb/table.rs`.

use wire::keyed::splitmix;

use crate::{
    family::Family,
    record::{Key, Slot},
};

const WAYS: usize = 8;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket([u64; WAYS]);

/// The hash of a key: 32 bits choose the first bucket, 32 are kept in the entry and choose the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hash(u64);

/// See the module's documentation.
pub(crate) struct Index {
    buckets: Box<[Bucket]>,
    mask: usize,
    secret: [u64; 4],
}

impl Index {
    /// For `records` entries, half full at most.
    pub(crate) fn new(records: usize, seed: u64) -> Index {
        let buckets = (records.next_power_of_two() * 2 / WAYS).max(2);
        let mut state = seed;
        let secret = [(); 4].map(|()| splitmix(&mut state) | 1);
        Index { buckets: sys::huge::filled(buckets, Bucket([0; WAYS])), mask: buckets - 1, secret }
    }

    /// The hash of a key.
    #[inline]
    pub(crate) fn hash<A: Family>(&self, key: Key<A>) -> Hash {
        Hash(key.hash(self.secret))
    }

    /// A number that depends on a key, `random` and the secrets, for choices that must not be foretold.
    pub(crate) fn choice<A: Family>(&self, key: Key<A>, random: u64) -> u64 {
        let [a, b, c, d] = self.secret;
        key.hash([c ^ random, d, b, a])
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    #[inline]
    fn homes(&self, hash: Hash) -> [usize; 2] {
        let first = (hash.0 >> 32) as usize & self.mask;
        [first, self.other(first, hash.0 as u32)]
    }

    #[inline]
    fn other(&self, home: usize, tag: u32) -> usize {
        let step = u64::from(tag | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (home ^ (step as usize | 1)) & self.mask
    }

    /// Asks for the buckets of a hash.
    #[inline]
    pub(crate) fn foresee(&self, hash: Hash) {
        for home in self.homes(hash) {
            if let Some(bucket) = self.buckets.get(home) {
                sys::prefetch(bucket);
            }
        }
    }

    /// The first slot of this hash that `is` the one looked for.
    #[inline]
    pub(crate) fn find(&self, hash: Hash, is: impl Fn(Slot) -> bool) -> Option<Slot> {
        let tag = hash.0 as u32;
        for home in self.homes(hash) {
            let Bucket(entries) = self.buckets.get(home)?;
            // All at once: which of them it is cannot be foretold, so a branch for each costs more.
            let mut hits = 0;
            for (way, entry) in entries.iter().enumerate() {
                hits |= u32::from(*entry as u32 == tag && *entry >> 32 != 0) << way;
            }
            while hits != 0 {
                let entry = entries.get(hits.trailing_zeros() as usize)?;
                let slot = Slot((entry >> 32) as u32 - 1);
                if is(slot) {
                    return Some(slot);
                }
                hits &= hits - 1;
            }
        }
        None
    }

    /// Puts an entry in; false when both buckets are full and nothing in them can step aside.
    #[must_use]
    pub(crate) fn insert(&mut self, hash: Hash, slot: Slot) -> bool {
        let entry = u64::from(slot.0 + 1) << 32 | u64::from(hash.0 as u32);
        let homes = self.homes(hash);
        if homes.into_iter().any(|home| self.put(home, entry)) {
            return true;
        }
        for home in homes {
            for way in 0..WAYS {
                let Some(rival) = self.buckets.get(home).and_then(|bucket| bucket.0.get(way)).copied() else {
                    continue;
                };
                if self.put(self.other(home, rival as u32), rival) {
                    if let Some(place) = self.buckets.get_mut(home).and_then(|bucket| bucket.0.get_mut(way)) {
                        *place = entry;
                    }
                    return true;
                }
            }
        }
        false
    }

    /// Slots whose entries stand in the way of this hash.
    pub(crate) fn rivals(&self, hash: Hash) -> impl Iterator<Item = Slot> {
        let buckets = self.homes(hash).into_iter().filter_map(|home| self.buckets.get(home));
        buckets.flat_map(|bucket| bucket.0).filter(|entry| entry >> 32 != 0).map(|entry| Slot((entry >> 32) as u32 - 1))
    }

    /// Takes the entry of a slot out.
    pub(crate) fn remove(&mut self, hash: Hash, slot: Slot) {
        let entry = u64::from(slot.0 + 1) << 32 | u64::from(hash.0 as u32);
        for home in self.homes(hash) {
            let Some(bucket) = self.buckets.get_mut(home) else { continue };
            if let Some(place) = bucket.0.iter_mut().find(|place| **place == entry) {
                *place = 0;
                return;
            }
        }
    }

    fn put(&mut self, home: usize, entry: u64) -> bool {
        let free = self.buckets.get_mut(home).and_then(|bucket| bucket.0.iter_mut().find(|place| **place == 0));
        if let Some(place) = free {
            *place = entry;
            return true;
        }
        false
    }
}
