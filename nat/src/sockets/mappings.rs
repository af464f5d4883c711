//! [`Mappings`]: inside endpoints and what is open for them: whose, where, and since when unused.
//!
//! Invariant: bounded; an entry is in exactly one list, that of its NIC and its class, ordered by when it was renewed. What expires or gives
//! way next is always the first of a list, so nothing is ever searched. A place that was used again has another generation, and a token of
//! the one before finds nothing.
//!
//! Theory of operation: a NIC that has its quota gives up its own oldest, of the shortest-lived class first. When the table is full, the NIC
//! that holds most does. Hashes are keyed: which endpoints meet in the index cannot be known from outside.
//! Read first: RFC 4787 sections 4.1 and 4.3.

use std::{
    collections::HashMap,
    hash::Hasher,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use wire::{Instant, NicId, keyed::Keyed};

const NONE: u32 = u32::MAX;

/// An endpoint inside, and behind which NIC: guests of two networks may have the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    address: u128,
    port: u16,
    nic: u16,
}

impl Key {
    pub(crate) fn new(nic: NicId, inside: SocketAddr) -> Key {
        Key { address: bits(inside.ip()), port: inside.port(), nic: nic.0 }
    }

    pub(crate) fn nic(self) -> NicId {
        NicId(self.nic)
    }
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.address as u64);
        state.write_u64((self.address >> 64) as u64 ^ u64::from(self.port) << 16 ^ u64::from(self.nic));
    }
}

/// An address of either family as a number; those of IPv4 as IPv6 has them (RFC 4291 section 2.5.5.2).
pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// How long an entry is kept without being renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The shorter time.
    Brief = 0,
    /// The longer one.
    Long = 1,
}

struct Entry<T> {
    key: Key,
    class: Class,
    generation: u32,
    renewed: Instant,
    before: u32,
    after: u32,
    value: T,
}

#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

#[derive(Clone, Copy)]
struct Holder {
    lists: [List; 2],
    count: usize,
}

const NOBODY: Holder = Holder { lists: [List { first: NONE, last: NONE }; 2], count: 0 };

/// Which entry: a place and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) place: u32,
    pub(crate) generation: u32,
}

impl Slot {
    /// The bits of a generation: as many as fit into a token.
    pub(crate) const GENERATIONS: u32 = 0xff_ffff;
}

/// See the module's documentation.
pub(crate) struct Mappings<T> {
    index: HashMap<Key, u32, Keyed>,
    entries: Vec<Option<Entry<T>>>,
    /// The generation that the next entry of each place has.
    generations: Vec<u32>,
    free: Vec<u32>,
    holders: Vec<Holder>,
    lifetimes: [Duration; 2],
    most: usize,
    quota: usize,
}

impl<T> Mappings<T> {
    /// `most` entries, `quota` of one NIC, kept for these times: brief, long.
    pub(crate) fn new(most: usize, quota: usize, lifetimes: [Duration; 2], seed: u64) -> Mappings<T> {
        Mappings {
            index: HashMap::with_hasher(Keyed::new(seed)),
            entries: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            holders: Vec::new(),
            lifetimes,
            most: most.max(1),
            quota: quota.max(1),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn held_by(&self, nic: NicId) -> usize {
        self.holders.get(nic.index()).map_or(0, |holder| holder.count)
    }

    pub(crate) fn find(&self, key: Key) -> Option<Slot> {
        let place = *self.index.get(&key)?;
        let entry = self.entries.get(place as usize)?.as_ref()?;
        Some(Slot { place, generation: entry.generation })
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&T> {
        let entry = self.entries.get(slot.place as usize)?.as_ref()?;
        (entry.generation == slot.generation).then_some(&entry.value)
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        let entry = self.entries.get_mut(slot.place as usize)?.as_mut()?;
        (entry.generation == slot.generation).then_some(&mut entry.value)
    }

    pub(crate) fn key(&self, slot: Slot) -> Option<Key> {
        let entry = self.entries.get(slot.place as usize)?.as_ref()?;
        (entry.generation == slot.generation).then_some(entry.key)
    }

    /// The entry that has to give way before `nic` can have one more; nothing when there is room.
    pub(crate) fn in_the_way(&self, nic: NicId) -> Option<Slot> {
        if self.held_by(nic) >= self.quota {
            return self.oldest_of(nic);
        }
        (self.len() >= self.most).then(|| self.heaviest()).flatten()
    }

    /// The oldest entry of whoever holds most.
    pub(crate) fn heaviest(&self) -> Option<Slot> {
        let (nic, _) = self.holders.iter().enumerate().max_by_key(|(_, holder)| holder.count)?;
        self.oldest_of(NicId(nic as u16))
    }

    /// The entry of a NIC that can be done without best.
    pub(crate) fn oldest_of(&self, nic: NicId) -> Option<Slot> {
        let holder = self.holders.get(nic.index())?;
        holder.lists.iter().find_map(|list| self.slot(list.first))
    }

    fn slot(&self, place: u32) -> Option<Slot> {
        let entry = self.entries.get(place as usize)?.as_ref()?;
        Some(Slot { place, generation: entry.generation })
    }

    /// The place and generation that the next entry will have: what to register its socket by.
    pub(crate) fn next_slot(&self) -> Slot {
        let place = self.free.last().copied().unwrap_or(self.entries.len() as u32);
        Slot { place, generation: self.generations.get(place as usize).copied().unwrap_or(0) }
    }

    /// Puts an entry in, at [`Mappings::next_slot`]. The value comes back where there is no room, or the key is there.
    pub(crate) fn insert(&mut self, key: Key, class: Class, value: T, now: Instant) -> Result<Slot, T> {
        if self.len() >= self.most || self.find(key).is_some() {
            return Err(value);
        }
        let Slot { place, generation } = self.next_slot();
        if self.free.pop().is_none() {
            self.entries.push(None);
            self.generations.push(0);
        }
        let entry = Entry { key, class, generation, renewed: now, before: NONE, after: NONE, value };
        if let Some(at) = self.entries.get_mut(place as usize) {
            *at = Some(entry);
        }
        self.index.insert(key, place);
        if self.holders.len() <= key.nic().index() {
            self.holders.resize(key.nic().index() + 1, NOBODY);
        }
        self.append(place);
        Ok(Slot { place, generation })
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<T> {
        self.get(slot)?;
        self.unlink(slot.place);
        let entry = self.entries.get_mut(slot.place as usize)?.take()?;
        if let Some(generation) = self.generations.get_mut(slot.place as usize) {
            *generation = slot.generation.wrapping_add(1) & Slot::GENERATIONS;
        }
        self.index.remove(&entry.key);
        self.free.push(slot.place);
        Some(entry.value)
    }

    /// The entry was used: its time begins anew, as that of `class` if that is the longer one.
    #[inline]
    pub(crate) fn renew(&mut self, slot: Slot, class: Class, now: Instant) {
        let Some(Some(entry)) = self.entries.get_mut(slot.place as usize) else { return };
        if entry.generation != slot.generation {
            return;
        }
        let longer = class == Class::Long && entry.class == Class::Brief;
        // Within one second, order does not matter.
        if !longer && entry.renewed.seconds() == now.seconds() {
            return;
        }
        self.unlink(slot.place);
        if let Some(Some(entry)) = self.entries.get_mut(slot.place as usize) {
            entry.renewed = now;
            if longer {
                entry.class = Class::Long;
            }
        }
        self.append(slot.place);
    }

    /// An entry whose time is over.
    pub(crate) fn expired(&self, now: Instant) -> Option<Slot> {
        self.firsts().find(|(_, ends)| *ends <= now).map(|(slot, _)| slot)
    }

    /// When the next one is.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.firsts().map(|(_, ends)| ends).min()
    }

    fn firsts(&self) -> impl Iterator<Item = (Slot, Instant)> {
        let lists = self.holders.iter().flat_map(|holder| holder.lists);
        lists.filter_map(|list| self.slot(list.first)).filter_map(|slot| Some((slot, self.ends(slot)?)))
    }

    /// When an entry's time is over.
    pub(crate) fn ends(&self, slot: Slot) -> Option<Instant> {
        let entry = self.entries.get(slot.place as usize)?.as_ref()?;
        let [brief, long] = self.lifetimes;
        Some(entry.renewed + if entry.class == Class::Brief { brief } else { long })
    }

    /// Every entry.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, Key, &T)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(place, entry)| {
            let entry = entry.as_ref()?;
            Some((Slot { place: place as u32, generation: entry.generation }, entry.key, &entry.value))
        })
    }

    /// Puts an entry at the end of its list.
    fn append(&mut self, place: u32) {
        let Some(Some(entry)) = self.entries.get(place as usize) else { return };
        let (nic, class) = (entry.key.nic(), entry.class as usize);
        let Some(holder) = self.holders.get_mut(nic.index()) else { return };
        holder.count += 1;
        let Some(list) = holder.lists.get_mut(class) else { return };
        let last = std::mem::replace(&mut list.last, place);
        if last == NONE {
            list.first = place;
        }
        if let Some(Some(neighbour)) = self.entries.get_mut(last as usize) {
            neighbour.after = place;
        }
        if let Some(Some(entry)) = self.entries.get_mut(place as usize) {
            (entry.before, entry.after) = (last, NONE);
        }
    }

    fn unlink(&mut self, place: u32) {
        let Some(Some(entry)) = self.entries.get(place as usize) else { return };
        let (nic, class, before, after) = (entry.key.nic(), entry.class as usize, entry.before, entry.after);
        if let Some(holder) = self.holders.get_mut(nic.index()) {
            holder.count = holder.count.saturating_sub(1);
            if let Some(list) = holder.lists.get_mut(class) {
                if before == NONE {
                    list.first = after;
                }
                if after == NONE {
                    list.last = before;
                }
            }
        }
        if let Some(Some(neighbour)) = self.entries.get_mut(before as usize) {
            neighbour.after = after;
        }
        if let Some(Some(neighbour)) = self.entries.get_mut(after as usize) {
            neighbour.before = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(nic: u16, port: u16) -> Key {
        Key::new(NicId(nic), SocketAddr::from(([10, 0, 0, 2], port)))
    }

    fn at(seconds: u64) -> Instant {
        Instant::START + Duration::from_secs(seconds)
    }

    fn table(most: usize, quota: usize) -> Mappings<u16> {
        Mappings::new(most, quota, [Duration::from_secs(120), Duration::from_secs(300)], 7)
    }

    #[test]
    fn brief_entries_expire_first_and_use_renews() {
        let mut table = table(8, 8);
        let brief = table.insert(key(0, 1), Class::Brief, 1, at(0)).unwrap();
        let long = table.insert(key(0, 2), Class::Long, 2, at(0)).unwrap();
        assert_eq!(table.expired(at(119)), None);
        assert_eq!(table.expired(at(120)), Some(brief));
        table.renew(brief, Class::Brief, at(119));
        assert_eq!((table.expired(at(238)), table.deadline()), (None, Some(at(239))));
        table.renew(brief, Class::Long, at(200));
        assert_eq!(table.expired(at(300)), Some(long));
        assert_eq!(table.remove(long), Some(2));
        assert_eq!(table.remove(long), None, "a place's next entry is another one");
        let next = table.next_slot();
        assert_eq!(table.insert(key(0, 3), Class::Long, 3, at(300)).unwrap(), next);
        assert_eq!((table.get(long), table.get(next)), (None, Some(&3)));
    }

    #[test]
    fn a_nic_gives_up_its_own_and_then_the_heaviest_does() {
        let mut table = table(6, 4);
        for port in 0..4 {
            assert_eq!(table.in_the_way(NicId(1)), None);
            table.insert(key(1, port), Class::Long, port, at(u64::from(port))).unwrap();
        }
        let first = table.find(key(1, 0)).unwrap();
        assert_eq!(table.in_the_way(NicId(1)), Some(first), "its own oldest");
        assert_eq!(table.in_the_way(NicId(2)), None);
        table.insert(key(2, 0), Class::Brief, 9, at(9)).unwrap();
        table.insert(key(2, 1), Class::Brief, 9, at(9)).unwrap();
        assert_eq!(table.in_the_way(NicId(2)), Some(first), "of whoever holds most");
        assert!(table.insert(key(2, 2), Class::Brief, 9, at(9)).is_err());
    }

    proptest! {
        #[test]
        fn counts_and_lists_agree_whatever_happens(steps in prop::collection::vec((0u8..3, 0u16..3, 0u16..6), 0..200)) {
            let mut table = table(10, 5);
            for (second, (what, nic, port)) in steps.into_iter().enumerate() {
                let now = at(second as u64);
                match (what, table.find(key(nic, port))) {
                    (0, None) => {
                        while let Some(slot) = table.in_the_way(NicId(nic)) {
                            prop_assert!(table.remove(slot).is_some());
                        }
                        prop_assert!(table.insert(key(nic, port), Class::Brief, port, now).is_ok());
                    }
                    (1, Some(slot)) => prop_assert_eq!(table.remove(slot), Some(port)),
                    (2, Some(slot)) => table.renew(slot, Class::Long, now),
                    _ => {}
                }
                let held: usize = (0..3).map(|nic| table.held_by(NicId(nic))).sum();
                prop_assert_eq!((table.len(), table.iter().count()), (held, held));
                prop_assert!((0..3).all(|nic| table.held_by(NicId(nic)) <= 5));
            }
            while let Some(slot) = table.expired(at(10_000)) {
                prop_assert!(table.remove(slot).is_some());
            }
            prop_assert_eq!(table.len(), 0);
        }
    }
}
