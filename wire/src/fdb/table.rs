//! [`Table`]: the memory of the forwarding database, two buckets of four records for every key.
//!
//! Invariant: a key lies in one of its two buckets or not at all, and in one place only, so that a lookup reads two cache lines at most
//! whatever an adversary sends. Nothing is allocated after [`Table::new`].
//!
//! Theory of operation: both buckets come from one hash of the key under secret numbers, so which keys share a bucket cannot be known from
//! outside. With two choices, four ways, and room for one record to step aside to its other bucket, a table that is half full all but never
//! lacks a place. Read first: Pagh and Rodler, "Cuckoo Hashing" (2001), of which this is the variant with buckets and one step.

use crate::{
    NicId, Segment,
    keyed::{fold, splitmix},
};

/// A segment and a MAC in one word: the MAC as [`crate::Mac::to_bits`] has it, the segment above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// No station: a group address, which is neither learnt nor looked up.
    pub const NONE: Key = Key(u64::MAX);

    /// Of these; of the MAC, 48 bits count.
    #[inline]
    pub const fn new(segment: Segment, mac: u64) -> Key {
        Key((segment.0 as u64) << 48 | mac & 0xffff_ffff_ffff)
    }

    /// The segment.
    #[inline]
    pub const fn segment(self) -> Segment {
        Segment((self.0 >> 48) as u16)
    }

    /// The MAC.
    #[inline]
    pub const fn mac(self) -> u64 {
        self.0 & 0xffff_ffff_ffff
    }
}

/// How a station came to be known, and what may become of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It was heard: its entry ages, moves and gives way.
    Learnt,
    /// Control says so: its entry moves to where it is heard, but does not age or give way.
    Told,
    /// Static: its entry does not age, move or give way.
    Static,
}

/// What is known of one station.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) key: Key,
    /// When it was last heard, in ticks of the database.
    pub(crate) stamp: u32,
    pub(crate) nic: NicId,
    pub(crate) kind: Kind,
}

impl Record {
    pub(crate) const EMPTY: Record = Record { key: Key::NONE, stamp: 0, nic: NicId(0), kind: Kind::Learnt };

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.key == Key::NONE
    }

    /// Does not age or give way.
    #[inline]
    pub(crate) fn stays(&self) -> bool {
        self.kind != Kind::Learnt
    }
}

/// Records in a bucket.
pub(crate) const WAYS: usize = 4;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket([Record; WAYS]);

const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is one cache line");

/// The place of a record in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub(crate) u32);

impl Slot {
    #[inline]
    fn new(bucket: usize, way: usize) -> Slot {
        Slot((bucket * WAYS + way) as u32)
    }

    #[inline]
    fn bucket(self) -> usize {
        self.0 as usize / WAYS
    }

    #[inline]
    fn way(self) -> usize {
        self.0 as usize % WAYS
    }
}

/// See the module's documentation.
pub(crate) struct Table {
    buckets: Box<[Bucket]>,
    mask: usize,
    secret: [u64; 4],
}

impl Table {
    /// A table that holds `capacity` records (a power of two of at most 2^24 makes best use of it) at most half full.
    pub(crate) fn new(capacity: usize, seed: u64) -> Table {
        let buckets = (capacity.next_power_of_two() * 2 / WAYS).max(2);
        let mut state = seed;
        let secret = [(); 4].map(|()| splitmix(&mut state) | 1);
        Table { buckets: vec![Bucket([Record::EMPTY; WAYS]); buckets].into(), mask: buckets - 1, secret }
    }

    /// Places in all.
    pub(crate) fn slots(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// The two buckets of a key. Two rounds leave no arithmetic relation between keys that one product would keep.
    #[inline]
    fn homes(&self, key: Key) -> [usize; 2] {
        let [a, b, c, d] = self.secret;
        let hash = fold(fold(key.0 ^ a, b) ^ c, d);
        [hash as usize & self.mask, (hash >> 32) as usize & self.mask]
    }

    /// The record of a key.
    #[inline]
    pub(crate) fn find(&self, key: Key) -> Option<(Slot, Record)> {
        for home in self.homes(key) {
            let Bucket(records) = self.buckets.get(home)?;
            for (way, record) in records.iter().enumerate() {
                if record.key == key {
                    return Some((Slot::new(home, way), *record));
                }
            }
        }
        None
    }

    /// The record at a place.
    #[inline]
    pub(crate) fn get(&self, slot: Slot) -> Option<&Record> {
        self.buckets.get(slot.bucket())?.0.get(slot.way())
    }

    /// The record at a place, to change or to empty.
    #[inline]
    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Record> {
        self.buckets.get_mut(slot.bucket())?.0.get_mut(slot.way())
    }

    /// A free place of a key.
    pub(crate) fn free(&self, key: Key) -> Option<Slot> {
        self.homes(key).into_iter().find_map(|home| self.free_in(home))
    }

    /// A record in a bucket of `key` that could step aside, and the free place it would go to.
    pub(crate) fn movable(&self, key: Key) -> Option<(Slot, Slot)> {
        self.rivals(key).find_map(|(from, record)| Some((from, self.free(record.key)?)))
    }

    /// The records in the two buckets of a key.
    pub(crate) fn rivals(&self, key: Key) -> impl Iterator<Item = (Slot, &Record)> {
        self.homes(key).into_iter().flat_map(|home| self.in_bucket(home)).filter(|(_, record)| !record.is_empty())
    }

    /// All records.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.buckets.iter().flat_map(|bucket| &bucket.0).filter(|record| !record.is_empty())
    }

    /// The two buckets of a key, for tests of what an adversary can do.
    #[cfg(test)]
    pub(crate) fn ways_of(&self, key: Key) -> [usize; 2] {
        self.homes(key)
    }

    fn in_bucket(&self, home: usize) -> impl Iterator<Item = (Slot, &Record)> {
        let records = self.buckets.get(home).map_or([].as_slice(), |bucket| &bucket.0);
        records.iter().enumerate().map(move |(way, record)| (Slot::new(home, way), record))
    }

    fn free_in(&self, home: usize) -> Option<Slot> {
        self.in_bucket(home).find(|(_, record)| record.is_empty()).map(|(slot, _)| slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `keys` find neither a free place nor one that can be freed by a step aside.
    fn left_over(seed: u64, keys: impl Iterator<Item = Key>) -> usize {
        let mut table = Table::new(4096, seed);
        keys.filter(|key| {
            let slot = table.free(*key).or_else(|| {
                let (from, to) = table.movable(*key)?;
                *table.get_mut(to)? = *table.get(from)?;
                Some(from)
            });
            match slot.and_then(|slot| table.get_mut(slot)) {
                Some(place) => {
                    place.key = *key;
                    false
                }
                None => true,
            }
        })
        .count()
    }

    #[test]
    fn orderly_addresses_find_a_place_under_every_seed() {
        let key = |i: u64| Key::new(Segment(0), i);
        for seed in 0..64 {
            assert_eq!(left_over(seed, (1..=4096).map(key)), 0, "counting up");
            assert_eq!(left_over(seed, (1..=4096).map(|i| key(i << 36))), 0, "counting up in the last byte but one");
            assert_eq!(left_over(seed, (1..=4096).map(|i| key(i * 0x1_0001_0001))), 0, "a stride");
            assert_eq!(left_over(seed, (1..=4096).map(|i| key(!i))), 0, "counting down from all ones");
            assert_eq!(left_over(seed, (0..4096).map(|i| Key::new(Segment(i), 2))), 0, "one MAC in many segments");
            let bits = (0..4096u64).map(|i| (0..12).filter(|b| i >> b & 1 == 1).fold(2, |key, b| key | 16 << (b * 3)));
            assert_eq!(left_over(seed, bits.map(key)), 0, "all sums of twelve bits");
        }
    }

    #[test]
    fn a_record_is_found_in_two_lines() {
        let mut table = Table::new(64, 7);
        let keys: Vec<Key> = (1..=64).map(|i| Key::new(Segment(3), i << 8)).collect();
        for key in &keys {
            let slot = table.free(*key).unwrap();
            table.get_mut(slot).unwrap().key = *key;
        }
        for key in &keys {
            let (slot, record) = table.find(*key).unwrap();
            assert_eq!((record.key, table.homes(*key).contains(&slot.bucket())), (*key, true));
        }
        assert_eq!(table.iter().count(), 64);
        assert!(table.find(Key::new(Segment(4), 1 << 8)).is_none());
    }
}
