//! [`Fdb`]: which NIC a station is behind, the filtering database of a bridge; to a tunnel endpoint, which endpoint, for each of which a [`NicId`] stands.
//!
//! Invariant: it never holds more than its capacity, an entry names a NIC that was added and not removed since, and whatever guests send,
//! one frame costs two cache lines to look up and a bounded number to learn. Nothing is allocated after [`Fdb::new`] and [`Fdb::add_nic`].
//!
//! Theory of operation: an entry is renewed when its station is heard and ignored once that is the ageing time ago; [`Fdb::sweep`] frees such
//! entries a few at a time. At the bound, the NIC that holds most learnt entries gives up the one it has not heard from for longest, so a
//! guest that invents addresses evicts its own. A station that moves to and fro is held where it was (`fdb/flaps.rs`). Every NIC's entries are threaded oldest first, which makes eviction, expiry and removal of a
//! NIC proportional to what they remove. Time is counted in whole seconds, shifted by the ageing time so that what is restored at the very
//! start of a clock can be older than the clock.
//! Read first: IEEE 802.1Q clause 8.8 (the filtering database), then `fdb/table.rs` and `fdb/holders.rs`.

use std::time::Duration;

use crate::{Instant, Mac, NicId, Segment};

use self::table::{Kind, Record};
pub use self::{
    entry::{Entry, FdbStats, Learn, StaticError},
    flaps::Flap,
    table::{Key, Slot},
};
use self::{flaps::Flaps, holders::Holders, table::Table};

mod entry;
mod flaps;
mod holders;
mod room;
mod table;
#[cfg(test)]
mod tests;

/// Entries a database holds unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 65_536;
/// How long a station is remembered unless told otherwise (IEEE 802.1Q table 8-6).
pub const DEFAULT_AGEING: Duration = Duration::from_secs(300);
/// Bounds of the capacity; what is outside is brought to the nearer one.
const CAPACITY: std::ops::RangeInclusive<usize> = 16..=1 << 22;
/// Bounds of the ageing time in seconds (the upper one is IEEE 802.1Q's).
const AGEING: std::ops::RangeInclusive<u64> = 1..=1_000_000;

/// The time as a database counts it. Made by [`Fdb::tick`], once for many frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u32);

/// See the module's documentation.
pub struct Fdb {
    table: Table,
    holders: Holders,
    capacity: usize,
    ageing: u32,
    len: usize,
    staying: usize,
    hand: usize,
    flaps: Flaps,
    stats: FdbStats,
}

impl Fdb {
    /// An empty database for `capacity` entries (16 to 2^22) that forgets after `ageing` (1 to 1,000,000 whole seconds). All memory, about
    /// 48 bytes an entry for a power of two, is taken here. `seed` must be unknown to guests.
    pub fn new(capacity: usize, ageing: Duration, seed: u64) -> Fdb {
        let capacity = capacity.clamp(*CAPACITY.start(), *CAPACITY.end());
        let table = Table::new(capacity, seed);
        Fdb {
            holders: Holders::new(table.slots()),
            table,
            capacity,
            ageing: ageing.as_secs().clamp(*AGEING.start(), *AGEING.end()) as u32,
            len: 0,
            staying: 0,
            hand: 0,
            flaps: Flaps::new(),
            stats: FdbStats::default(),
        }
    }

    /// Entries may name `nic` from here on. Allocates, unless it was added before.
    pub fn add_nic(&mut self, nic: NicId) {
        self.holders.add(nic);
    }

    /// The time as this database counts it.
    #[inline]
    pub fn tick(&self, now: Instant) -> Tick {
        Tick(u32::try_from(now.seconds()).unwrap_or(u32::MAX).saturating_add(self.ageing))
    }

    /// The NIC a station is behind, if it was heard within the ageing time or is static.
    #[inline]
    pub fn lookup(&self, segment: Segment, mac: Mac, now: Tick) -> Option<NicId> {
        self.find(Key::new(segment, mac.to_bits()), now)
    }

    /// As [`Fdb::lookup`], by a key that is there already.
    #[inline]
    pub fn find(&self, key: Key, now: Tick) -> Option<NicId> {
        let (_, record) = self.table.find(key)?;
        (!self.is_expired(&record, now)).then_some(record.nic)
    }

    /// Whether a station moved to and fro and is held where it was.
    #[inline]
    pub fn is_held(&self, key: Key, now: Tick) -> bool {
        self.flaps.holds(key, now)
    }

    /// Whether a station is behind a NIC by a static entry.
    pub fn is_fixed(&self, key: Key, nic: NicId) -> bool {
        self.table.find(key).is_some_and(|(_, record)| record.kind == Kind::Static && record.nic == nic)
    }

    /// A station was heard at a NIC. False when it could not be learnt (static elsewhere, a group
    /// address, a NIC never added, or no room among static entries).
    pub fn learn(&mut self, segment: Segment, mac: Mac, nic: NicId, now: Tick) -> bool {
        let key = Key::new(segment, mac.to_bits());
        mac.is_unicast() && self.settle(self.consider(key, nic, now), key, nic, now)
    }

    /// What it would mean to hear a station at a NIC.
    #[inline]
    pub fn consider(&self, key: Key, nic: NicId, now: Tick) -> Learn {
        match self.table.find(key) {
            None => Learn::Insert,
            Some((_, record)) if record.nic == nic && (record.stamp == now.0 || record.stays()) => Learn::Current,
            Some((slot, record)) if record.nic == nic => Learn::Renew(slot),
            Some((_, record)) if record.kind == Kind::Static => Learn::Pinned(record.nic),
            Some((_, record)) if !self.is_expired(&record, now) && self.flaps.holds(key, now) => {
                Learn::Held(record.nic)
            }
            Some((slot, record)) => Learn::Move { slot, from: record.nic },
        }
    }

    /// Carries out what [`Fdb::consider`] said of the same key, NIC and time.
    #[inline]
    pub fn settle(&mut self, learn: Learn, key: Key, nic: NicId, now: Tick) -> bool {
        match learn {
            Learn::Current => true,
            Learn::Pinned(_) => false,
            Learn::Held(_) => {
                self.flaps.refused(key, nic);
                false
            }
            Learn::Insert => self.insert(Record { key, stamp: now.0, nic, kind: Kind::Learnt }, now),
            Learn::Renew(slot) => self.renew(slot, key, nic, now),
            Learn::Move { slot, from } => self.shift(slot, key, from, nic, now),
        }
    }

    /// Puts a station behind a NIC for good, wherever it was before.
    pub fn add_static(&mut self, segment: Segment, mac: Mac, nic: NicId, now: Tick) -> Result<(), StaticError> {
        self.add(Key::new(segment, mac.to_bits()), nic, Kind::Static, now)
    }

    /// Puts a station behind a NIC by control's word, wherever it was heard before: until it is heard elsewhere, or told to be. A static entry stays
    /// as it is.
    pub fn tell(&mut self, segment: Segment, mac: Mac, nic: NicId, now: Tick) -> Result<(), StaticError> {
        let key = Key::new(segment, mac.to_bits());
        if self.table.find(key).is_some_and(|(_, record)| record.kind == Kind::Static) {
            return Ok(());
        }
        self.add(key, nic, Kind::Told, now)?;
        // What is known now is better than what was guessed of its moves.
        self.flaps.forget_station(key);
        Ok(())
    }

    fn add(&mut self, key: Key, nic: NicId, kind: Kind, now: Tick) -> Result<(), StaticError> {
        let mac = Mac::from_bits(key.mac());
        if !mac.is_unicast() {
            return Err(StaticError::Address(mac));
        }
        if !self.holders.knows(nic) {
            return Err(StaticError::NotMember(nic));
        }
        let most = self.capacity / 2;
        let known = self.table.find(key);
        if self.staying >= most && !known.is_some_and(|(_, record)| record.stays()) {
            return Err(StaticError::Full(most));
        }
        if let Some((slot, _)) = known {
            self.remove_at(slot);
        }
        let record = Record { key, stamp: now.0, nic, kind };
        if self.insert(record, now) { Ok(()) } else { Err(StaticError::Full(most)) }
    }

    /// Forgets a station, static or not, and whether it is held; false when it was not known.
    pub fn remove(&mut self, segment: Segment, mac: Mac) -> bool {
        let key = Key::new(segment, mac.to_bits());
        let known = self.table.find(key);
        if let Some((slot, _)) = known {
            self.remove_at(slot);
        }
        self.flaps.forget_station(key);
        known.is_some()
    }

    /// Control says no more that a station is behind a NIC; where it was heard elsewhere, that stays.
    pub fn untell(&mut self, segment: Segment, mac: Mac, nic: NicId) {
        let known = self.table.find(Key::new(segment, mac.to_bits()));
        if let Some((slot, _)) = known.filter(|(_, record)| record.kind == Kind::Told && record.nic == nic) {
            self.remove_at(slot);
        }
    }

    /// Forgets where a station was heard; what is static or told stays.
    pub fn unlearn(&mut self, segment: Segment, mac: Mac) {
        let key = Key::new(segment, mac.to_bits());
        if let Some((slot, record)) = self.table.find(key)
            && !record.stays()
        {
            self.remove_at(slot);
            self.flaps.forget_station(key);
        }
    }

    /// Forgets all stations learnt behind a NIC, and the static and told ones too if `all`; returns how many.
    pub fn remove_nic(&mut self, nic: NicId, all: bool) -> usize {
        let before = self.len;
        self.flaps.forget(nic);
        while let Some(slot) = self.holders.first(nic, false).or_else(|| self.holders.first(nic, true).filter(|_| all))
        {
            self.remove_at(slot);
        }
        before - self.len
    }

    /// Frees up to `budget` entries that were not heard within the ageing time; returns how many. Looks at every NIC's oldest entry.
    pub fn sweep(&mut self, now: Tick, budget: usize) -> usize {
        let mut freed = 0;
        for _ in 0..self.holders.places() {
            let nic = self.holders.at(self.hand);
            while freed < budget
                && let Some(nic) = nic
                && let Some(slot) = self.holders.first(nic, false)
                && self.table.get(slot).is_some_and(|record| self.is_expired(record, now))
            {
                self.remove_at(slot);
                freed += 1;
            }
            if freed == budget {
                break;
            }
            self.hand = (self.hand + 1) % self.holders.places();
        }
        self.stats.expired += freed as u64;
        freed
    }

    /// The entries that are valid at `now`, in no order.
    pub fn iter(&self, now: Tick) -> impl Iterator<Item = Entry> {
        self.table.iter().filter(move |record| !self.is_expired(record, now)).map(move |record| Entry {
            segment: record.key.segment(),
            mac: Mac::from_bits(record.key.mac()),
            nic: record.nic,
            age: if record.stays() { 0 } else { now.0.saturating_sub(record.stamp) },
            fixed: record.kind == Kind::Static,
            told: record.kind == Kind::Told,
        })
    }

    /// Takes up an entry as [`Fdb::iter`] gave it, under the NIC it names; false when it is too old or cannot be held, and when the station
    /// is known or was told. Entries given oldest first keep their ages.
    pub fn restore(&mut self, entry: &Entry, now: Tick) -> bool {
        let key = Key::new(entry.segment, entry.mac.to_bits());
        if !entry.mac.is_unicast() || entry.told || self.table.find(key).is_some() {
            return false;
        }
        if entry.fixed {
            return self.add_static(entry.segment, entry.mac, entry.nic, now).is_ok();
        }
        let record = Record { key, stamp: now.0.saturating_sub(entry.age), nic: entry.nic, kind: Kind::Learnt };
        entry.age < self.ageing && self.insert(record, now)
    }

    /// Entries it holds, those included that are too old and not yet freed.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Entries it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Entries learnt behind a NIC, those included that are too old and not yet freed.
    pub fn count(&self, nic: NicId) -> usize {
        self.holders.count(nic, false) as usize
    }

    /// What happened so far.
    pub fn stats(&self) -> FdbStats {
        self.stats
    }

    #[inline]
    fn is_expired(&self, record: &Record, now: Tick) -> bool {
        now.0.saturating_sub(record.stamp) >= self.ageing && !record.stays()
    }

    /// The entry at `slot` moves from one NIC to another, unless it has moved too often: then it is held where it was first.
    fn shift(&mut self, slot: Slot, key: Key, from: NicId, to: NicId, now: Tick) -> bool {
        let record = self.table.get(slot).filter(|record| record.key == key && !self.is_expired(record, now));
        let heard = record.map(|record| Tick(record.stamp));
        let home = heard.and_then(|heard| self.flaps.moves(key, (from, heard), to, now));
        self.stats.flapping += u64::from(home.is_some());
        match home {
            Some(home) => self.renew(slot, key, home, now) && home == to,
            None => self.renew(slot, key, to, now),
        }
    }

    /// Stations that moved to and fro and are held, or were within the last ten minutes.
    pub fn flapping(&self, now: Tick) -> impl Iterator<Item = Flap> {
        self.flaps.iter(now)
    }

    /// The entry at `slot` was heard at `nic`.
    fn renew(&mut self, slot: Slot, key: Key, nic: NicId, now: Tick) -> bool {
        let Some(record) = self.table.get(slot).copied().filter(|record| record.key == key) else { return false };
        if !self.holders.knows(nic) {
            return false;
        }
        self.stats.moves += u64::from(record.nic != nic && !self.is_expired(&record, now));
        if record.nic == nic && !record.stays() {
            let stamp = self.newest(nic).max(now.0);
            self.holders.renew(nic, slot);
            if let Some(place) = self.table.get_mut(slot) {
                place.stamp = stamp;
            }
            return true;
        }
        self.holders.unlink(record.nic, record.stays(), slot);
        self.staying -= usize::from(record.stays()).min(self.staying);
        self.write(slot, Record { key, stamp: now.0, nic, kind: Kind::Learnt });
        true
    }

    /// The stamp of what a NIC heard last.
    fn newest(&self, nic: NicId) -> u32 {
        self.holders.last(nic).and_then(|last| self.table.get(last)).map_or(0, |last| last.stamp)
    }

    /// Writes a record into a place that no list has, and puts it at the end of its list, no older than the one before it.
    fn write(&mut self, slot: Slot, mut record: Record) {
        if !record.stays() {
            record.stamp = record.stamp.max(self.newest(record.nic));
        }
        self.holders.append(record.nic, record.stays(), slot);
        if let Some(place) = self.table.get_mut(slot) {
            *place = record;
        }
    }

    fn remove_at(&mut self, slot: Slot) {
        let Some(place) = self.table.get_mut(slot) else { return };
        let record = std::mem::replace(place, Record::EMPTY);
        self.holders.unlink(record.nic, record.stays(), slot);
        self.len = self.len.saturating_sub(1);
        self.staying -= usize::from(record.stays()).min(self.staying);
    }
}
