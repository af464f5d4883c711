//! Room for one more entry: who gives way.
//!
//! Invariant: one insertion gives up one entry at most, or two when the database is at its bound and both buckets are full; static entries
//! never give way. The work is bounded: a look at the NIC that holds most, and at eight records and their other buckets.
//! Read first: [`super::holders`], [`super::table`].

use super::{
    Fdb, Tick,
    table::{Key, Record, Slot},
};

impl Fdb {
    /// Puts a record of an unknown station in; false when its NIC was never added or only static entries could give way.
    pub(super) fn insert(&mut self, record: Record, now: Tick) -> bool {
        if !self.holders.knows(record.nic) || (self.len >= self.capacity && !self.evict()) {
            return false;
        }
        let key = record.key;
        let free = self.table.free(key).or_else(|| self.step_aside(key)).or_else(|| self.crowd_out(key, now));
        let Some(slot) = free else { return false };
        self.len += 1;
        self.staying += usize::from(record.stays());
        self.write(slot, record);
        true
    }

    /// At the bound: the NIC that holds most gives up the entry it has not heard from for longest.
    fn evict(&mut self) -> bool {
        let oldest = self.holders.heaviest().and_then(|nic| self.holders.first(nic, false));
        if let Some(slot) = oldest {
            self.remove_at(slot);
            self.stats.evicted += 1;
        }
        oldest.is_some()
    }

    /// A place for `key`, freed by moving another record to its other bucket.
    fn step_aside(&mut self, key: Key) -> Option<Slot> {
        let (from, to) = self.table.movable(key)?;
        let record = *self.table.get(from)?;
        *self.table.get_mut(to)? = record;
        self.holders.relocate(record.nic, record.stays(), from, to);
        Some(from)
    }

    /// A place for `key`, freed by giving up another record: one that is too old, else that of the NIC that holds most, the oldest of them.
    fn crowd_out(&mut self, key: Key, now: Tick) -> Option<Slot> {
        let weigh = |record: &Record| {
            let age = now.0.saturating_sub(record.stamp);
            (self.is_expired(record, now), self.holders.count(record.nic, false), age)
        };
        let victims = self.table.rivals(key).filter(|(_, record)| !record.stays());
        let (slot, _) = victims.max_by_key(|(_, record)| weigh(record))?;
        self.remove_at(slot);
        self.stats.crowded += 1;
        Some(slot)
    }
}
