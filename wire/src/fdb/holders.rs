//! [`Holders`]: which records belong to which NIC, in the order they were last heard.
//!
//! Invariant: a record that is used is in exactly one list, that of its NIC's learnt entries or of those that stay (static, told). A list of learnt entries is
//! ordered by stamp, oldest first, so the entry to evict or to expire is always its first. Lists are threaded through one array as long as
//! the table; nothing is allocated but in [`Holders::add`]. Who holds most learnt records is known at any time ([`Heaviest`]).

use crate::{
    ByNic, NicId,
    heaviest::Heaviest,
    lists::{Links, List},
};

use super::table::Slot;

/// What a NIC holds.
struct Holder {
    /// Learnt; static and told.
    lists: [List; 2],
    /// Its place among all by weight.
    place: usize,
}

/// See the module's documentation.
pub(crate) struct Holders {
    links: Links,
    nics: ByNic<Holder>,
    /// By their learnt records.
    heaviest: Heaviest<NicId>,
}

impl Holders {
    pub(crate) fn new(slots: usize) -> Holders {
        Holders { links: Links::new(slots), nics: ByNic::default(), heaviest: Heaviest::new(0) }
    }

    /// A NIC may hold records from here on. Allocates.
    pub(crate) fn add(&mut self, nic: NicId) {
        if !self.knows(nic) {
            let place = self.heaviest.add(nic);
            self.nics.insert(nic, Holder { lists: [List::EMPTY; 2], place });
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

    /// How many records a NIC holds, learnt ones or those that stay.
    pub(crate) fn count(&self, nic: NicId, stays: bool) -> u32 {
        self.list(nic, stays).map_or(0, List::count)
    }

    /// The record a NIC has not heard from for longest.
    pub(crate) fn first(&self, nic: NicId, stays: bool) -> Option<Slot> {
        self.list(nic, stays)?.first().map(Slot)
    }

    /// The record a NIC heard from last.
    pub(crate) fn last(&self, nic: NicId) -> Option<Slot> {
        self.list(nic, false)?.last().map(Slot)
    }

    /// The NIC with most learnt records.
    pub(crate) fn heaviest(&self) -> Option<NicId> {
        self.heaviest.first()
    }

    /// Puts a record at the end of a list.
    pub(crate) fn append(&mut self, nic: NicId, stays: bool, slot: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, stays) {
            self.links.append(list, slot.0);
            self.weigh(nic, stays);
        }
    }

    /// Takes a record out of its list.
    pub(crate) fn unlink(&mut self, nic: NicId, stays: bool, slot: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, stays) {
            self.links.unlink(list, slot.0);
            self.weigh(nic, stays);
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
    pub(crate) fn relocate(&mut self, nic: NicId, stays: bool, from: Slot, to: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, stays) {
            self.links.relocate(list, from.0, to.0);
        }
    }

    fn list(&self, nic: NicId, stays: bool) -> Option<&List> {
        let [learnt, staying] = &self.nics.get(nic)?.lists;
        Some(if stays { staying } else { learnt })
    }

    /// A NIC's list has become longer or shorter.
    fn weigh(&mut self, nic: NicId, stays: bool) {
        let Holders { nics, heaviest, .. } = self;
        let Some(Holder { lists: [learnt, _], place }) = nics.get(nic).filter(|_| !stays) else { return };
        heaviest.weigh(*place, learnt.count(), |nic, place| {
            if let Some(holder) = nics.get_mut(nic) {
                holder.place = place;
            }
        });
    }
}

fn list_mut(nics: &mut ByNic<Holder>, nic: NicId, stays: bool) -> Option<&mut List> {
    let [learnt, staying] = &mut nics.get_mut(nic)?.lists;
    Some(if stays { staying } else { learnt })
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
