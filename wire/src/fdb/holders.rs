//! [`Holders`]: which records belong to which NIC, in the order they were last heard.
//!
//! Invariant: a record that is used is in exactly one list, that of its NIC's learnt or of its static entries. A list of learnt entries is
//! ordered by stamp, oldest first, so the entry to evict or to expire is always its first. Lists are threaded through one array as long as
//! the table; nothing is allocated but in [`Holders::add`].

use crate::{
    ByNic, NicId,
    lists::{Links, List},
};

use super::table::Slot;

/// The two lists of a NIC: learnt, static.
type Lists = [List; 2];

/// See the module's documentation.
pub(crate) struct Holders {
    links: Links,
    nics: ByNic<Lists>,
}

impl Holders {
    pub(crate) fn new(slots: usize) -> Holders {
        Holders { links: Links::new(slots), nics: ByNic::default() }
    }

    /// A NIC may hold records from here on. Allocates.
    pub(crate) fn add(&mut self, nic: NicId) {
        if !self.knows(nic) {
            self.nics.insert(nic, [List::EMPTY; 2]);
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

    /// The NIC with most learnt records. Looks at every NIC's count, in one array.
    pub(crate) fn heaviest(&self) -> Option<NicId> {
        let counts = self.nics.iter().map(|(nic, [learnt, _])| (nic, learnt.count()));
        counts.filter(|(_, count)| *count > 0).max_by_key(|(_, count)| *count).map(|(nic, _)| nic)
    }

    /// Puts a record at the end of a list.
    pub(crate) fn append(&mut self, nic: NicId, fixed: bool, slot: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, fixed) {
            self.links.append(list, slot.0);
        }
    }

    /// Takes a record out of its list.
    pub(crate) fn unlink(&mut self, nic: NicId, fixed: bool, slot: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, fixed) {
            self.links.unlink(list, slot.0);
        }
    }

    /// A record of a list lies at another place.
    pub(crate) fn relocate(&mut self, nic: NicId, fixed: bool, from: Slot, to: Slot) {
        if let Some(list) = list_mut(&mut self.nics, nic, fixed) {
            self.links.relocate(list, from.0, to.0);
        }
    }

    fn list(&self, nic: NicId, fixed: bool) -> Option<&List> {
        let [learnt, statics] = self.nics.get(nic)?;
        Some(if fixed { statics } else { learnt })
    }
}

fn list_mut(nics: &mut ByNic<Lists>, nic: NicId, fixed: bool) -> Option<&mut List> {
    let [learnt, statics] = nics.get_mut(nic)?;
    Some(if fixed { statics } else { learnt })
}
