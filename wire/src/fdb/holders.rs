//! [`Holders`]: which records belong to which NIC, in the order they were last heard.
//!
//! Invariant: a record that is used is in exactly one list, that of its NIC's learnt or of its static entries. A list of learnt entries is
//! ordered by stamp, oldest first, so the entry to evict or to expire is always its first. Lists are threaded through one array as long as
//! the table; nothing is allocated but in [`Holders::add`]. Who holds most learnt records is known at any time.
//!
//! Theory of operation: NICs are in a heap by how many learnt records they hold (each no fewer than its two children), and each knows its place there. A
//! record more or less moves its NIC by a few places, the more NICs hold as many as it does: at most as many as the heap has levels.

use crate::{
    ByNic, NicId,
    lists::{Links, List},
};

use super::table::Slot;

/// What a NIC holds.
struct Holder {
    /// Learnt, static.
    lists: [List; 2],
    /// Its place in the heap.
    place: usize,
}

/// See the module's documentation.
pub(crate) struct Holders {
    links: Links,
    nics: ByNic<Holder>,
    /// Learnt records, and whose they are.
    heap: Vec<(u32, NicId)>,
}

impl Holders {
    pub(crate) fn new(slots: usize) -> Holders {
        Holders { links: Links::new(slots), nics: ByNic::default(), heap: Vec::new() }
    }

    /// A NIC may hold records from here on. Allocates.
    pub(crate) fn add(&mut self, nic: NicId) {
        if !self.knows(nic) {
            self.nics.insert(nic, Holder { lists: [List::EMPTY; 2], place: self.heap.len() });
            self.heap.push((0, nic));
        }
    }

    /// Whether `nic` may hold records.
    #[inline]
    pub(crate) fn knows(&self, nic: NicId) -> bool {
        self.nics.get(nic).is_some()
    }

    /// How many places of NICs there are; see [`ByNic::places`].
    pub(crate) fn places(&self) -> usize {
        self.nics.places()
    }

    /// The NIC at a place that may hold records.
    pub(crate) fn at(&self, place: usize) -> Option<NicId> {
        self.nics.at(place).map(|(nic, _)| nic)
    }

    /// How many records a NIC holds, learnt or static.
    pub(crate) fn count(&self, nic: NicId, fixed: bool) -> u32 {
        self.list(nic, fixed).map_or(0, List::count)
    }

    /// The record a NIC has not heard from for longest.
    pub(crate) fn first(&self, nic: NicId, fixed: bool) -> Option<Slot> {
        self.list(nic, fixed)?.first().map(Slot)
    }

    /// The record a NIC heard from last.
    pub(crate) fn last(&self, nic: NicId) -> Option<Slot> {
        self.list(nic, false)?.last().map(Slot)
    }

    /// The NIC with most learnt records.
    pub(crate) fn heaviest(&self) -> Option<NicId> {
        self.heap.first().filter(|(count, _)| *count > 0).map(|(_, nic)| *nic)
    }

    /// Puts a record at the end of a list.
    pub(crate) fn append(&mut self, nic: NicId, fixed: bool, slot: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, fixed) {
            self.links.append(list, slot.0);
            self.weigh(nic, fixed);
        }
    }

    /// Takes a record out of its list.
    pub(crate) fn unlink(&mut self, nic: NicId, fixed: bool, slot: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, fixed) {
            self.links.unlink(list, slot.0);
            self.weigh(nic, fixed);
        }
    }

    /// A learnt record was heard: it is the last now.
    pub(crate) fn renew(&mut self, nic: NicId, slot: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, false) {
            self.links.unlink(list, slot.0);
            self.links.append(list, slot.0);
        }
    }

    /// A record of a list lies at another place.
    pub(crate) fn relocate(&mut self, nic: NicId, fixed: bool, from: Slot, to: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, fixed) {
            self.links.relocate(list, from.0, to.0);
        }
    }

    fn list(&self, nic: NicId, fixed: bool) -> Option<&List> {
        let [learnt, statics] = &self.nics.get(nic)?.lists;
        Some(if fixed { statics } else { learnt })
    }

    /// A NIC's list has become longer or shorter.
    fn weigh(&mut self, nic: NicId, fixed: bool) {
        let Some(Holder { lists: [learnt, _], place }) = self.nics.get(nic).filter(|_| !fixed) else { return };
        let (count, place) = (learnt.count(), *place);
        let Some((before, _)) = self.heap.get_mut(place) else { return };
        match std::mem::replace(before, count) < count {
            true => self.rise(place),
            false => self.sink(place),
        }
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 && self.weight(at) > self.weight((at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let child = if self.weight(right) > self.weight(left) { right } else { left };
            if self.weight(child) <= self.weight(at) {
                break;
            }
            self.swap(at, child);
            at = child;
        }
    }

    /// What a place of the heap has; nothing where there is none.
    fn weight(&self, at: usize) -> Option<u32> {
        self.heap.get(at).map(|(count, _)| *count)
    }

    fn swap(&mut self, one: usize, two: usize) {
        self.heap.swap(one, two);
        for at in [one, two] {
            let holder = self.heap.get(at).and_then(|(_, nic)| self.nics.get_mut(*nic));
            if let Some(holder) = holder {
                holder.place = at;
            }
        }
    }
}

fn list_mut(nics: &mut ByNic<Holder>, nic: NicId, fixed: bool) -> Option<&mut List> {
    let [learnt, statics] = &mut nics.get_mut(nic)?.lists;
    Some(if fixed { statics } else { learnt })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_heaviest_is_known_whoever_gains_and_loses(steps in prop::collection::vec((any::<bool>(), 0..9u16), 0..600)) {
            let mut holders = Holders::new(600);
            let mut held: Vec<Vec<Slot>> = vec![Vec::new(); 9];
            for (n, (gains, nic)) in steps.into_iter().enumerate() {
                let (id, of) = (NicId(nic * 7), &mut held[usize::from(nic)]);
                holders.add(id);
                let lost = if gains { None } else { of.pop() };
                match lost {
                    Some(slot) => holders.unlink(id, false, slot),
                    None => {
                        of.push(Slot(n as u32));
                        holders.append(id, false, Slot(n as u32));
                    }
                }
                let most = held.iter().map(Vec::len).max().filter(|most| *most > 0);
                let heaviest = holders.heaviest();
                prop_assert_eq!(heaviest.map(|nic| holders.count(nic, false) as usize), most);
            }
        }
    }
}
