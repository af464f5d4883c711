//! [`Holders`]: which records belong to which NIC, in the order they were last heard.
//!
//! Invariant: a record that is used is in exactly one list, that of its NIC's learnt or of its static entries. A list of learnt entries is
//! ordered by stamp, oldest first, so the entry to evict or to expire is always its first. Lists are threaded through one array as long as
//! the table; nothing is allocated but in [`Holders::add`].

use crate::{ByNic, NicId};

use super::table::Slot;

const END: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

#[derive(Clone, Copy)]
struct List {
    count: u32,
    first: u32,
    last: u32,
}

impl List {
    const EMPTY: List = List { count: 0, first: END, last: END };
}

/// The two lists of a NIC: learnt, static.
type Lists = [List; 2];

/// See the module's documentation.
pub(crate) struct Holders {
    links: Box<[Link]>,
    nics: ByNic<Lists>,
}

impl Holders {
    pub(crate) fn new(slots: usize) -> Holders {
        Holders { links: vec![Link { before: END, after: END }; slots].into(), nics: ByNic::default() }
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
        self.list(nic, fixed).map_or(0, |list| list.count)
    }

    /// The record a NIC has not heard from for longest.
    pub(crate) fn first(&self, nic: NicId, fixed: bool) -> Option<Slot> {
        let first = self.list(nic, fixed)?.first;
        (first != END).then_some(Slot(first))
    }

    /// The record a NIC heard from last.
    pub(crate) fn last(&self, nic: NicId) -> Option<Slot> {
        let last = self.list(nic, false)?.last;
        (last != END).then_some(Slot(last))
    }

    /// The NIC with most learnt records. Looks at every NIC's count, in one array.
    pub(crate) fn heaviest(&self) -> Option<NicId> {
        let counts = self.nics.iter().map(|(nic, [learnt, _])| (nic, learnt.count));
        counts.filter(|(_, count)| *count > 0).max_by_key(|(_, count)| *count).map(|(nic, _)| nic)
    }

    /// Puts a record at the end of a list.
    pub(crate) fn append(&mut self, nic: NicId, fixed: bool, slot: Slot) {
        let Some(list) = self.list_mut(nic, fixed) else { return };
        let before = list.last;
        list.last = slot.0;
        list.count += 1;
        if before == END {
            list.first = slot.0;
        }
        self.set(slot.0, Link { before, after: END });
        self.change(before, |link| link.after = slot.0);
    }

    /// Takes a record out of its list.
    pub(crate) fn unlink(&mut self, nic: NicId, fixed: bool, slot: Slot) {
        let Some(Link { before, after }) = self.links.get(slot.0 as usize).copied() else { return };
        let Some(list) = self.list_mut(nic, fixed) else { return };
        list.count = list.count.saturating_sub(1);
        if before == END {
            list.first = after;
        }
        if after == END {
            list.last = before;
        }
        self.change(before, |link| link.after = after);
        self.change(after, |link| link.before = before);
    }

    /// A record of a list lies at another place.
    pub(crate) fn relocate(&mut self, nic: NicId, fixed: bool, from: Slot, to: Slot) {
        let Some(link) = self.links.get(from.0 as usize).copied() else { return };
        let Some(list) = self.list_mut(nic, fixed) else { return };
        if link.before == END {
            list.first = to.0;
        }
        if link.after == END {
            list.last = to.0;
        }
        self.set(to.0, link);
        self.change(link.before, |link| link.after = to.0);
        self.change(link.after, |link| link.before = to.0);
    }

    fn list(&self, nic: NicId, fixed: bool) -> Option<&List> {
        let [learnt, statics] = self.nics.get(nic)?;
        Some(if fixed { statics } else { learnt })
    }

    fn list_mut(&mut self, nic: NicId, fixed: bool) -> Option<&mut List> {
        let [learnt, statics] = self.nics.get_mut(nic)?;
        Some(if fixed { statics } else { learnt })
    }

    fn set(&mut self, slot: u32, link: Link) {
        self.change(slot, |place| *place = link);
    }

    /// Changes the link of a place; the ends of a list have none.
    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(slot as usize) {
            change(link);
        }
    }
}
