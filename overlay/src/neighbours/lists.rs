//! [`Lists`]: which entries were heard from whom, in the order in which they were last heard.
//!
//! Invariant: an entry that is used is in exactly one list, an unused one in none; the first of a list is the one heard longest ago. Memory is taken
//! when the table is made, for every holder that there may be. Read first: [`super`].

use wire::{
    heaviest::Heaviest,
    lists::{Links, List},
};

use super::Whence;

/// Whose list, by its place: control's, then those of local NICs and of endpoints in turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder(usize);

impl From<Whence> for Holder {
    fn from(whence: Whence) -> Holder {
        Holder(match whence {
            Whence::Placed => 0,
            Whence::Local(nic) => 1 + 2 * usize::from(nic.0),
            Whence::Remote(remote) => 2 + 2 * usize::from(remote.0),
        })
    }
}

/// Holders at most: control, every NIC, every endpoint.
const MOST: usize = 1 + 2 * (u16::MAX as usize + 1);

/// See the module's documentation.
pub(super) struct Lists {
    links: Links,
    /// Each with its place among all by weight.
    lists: Vec<(List, usize)>,
    heaviest: Heaviest<usize>,
}

impl Lists {
    pub(super) fn new(entries: usize) -> Lists {
        // Room that is not touched costs address space alone.
        Lists { links: Links::new(entries), lists: Vec::with_capacity(MOST), heaviest: Heaviest::new(MOST) }
    }

    /// Lists there are.
    pub(super) fn holders(&self) -> usize {
        self.lists.len()
    }

    /// Entries in a list.
    pub(super) fn count(&self, Holder(at): Holder) -> usize {
        self.lists.get(at).map_or(0, |(list, _)| list.count() as usize)
    }

    /// The entry that a holder has not said for longest.
    pub(super) fn oldest(&self, Holder(at): Holder) -> Option<u32> {
        self.first(at)
    }

    /// As [`Lists::oldest`], of the list at a place.
    pub(super) fn first(&self, at: usize) -> Option<u32> {
        self.lists.get(at)?.0.first()
    }

    /// Of whoever holds most, control left out, the oldest entry.
    pub(super) fn oldest_of_heaviest(&self) -> Option<u32> {
        self.first(self.heaviest.first()?)
    }

    /// Puts an entry at the end of a list.
    pub(super) fn append(&mut self, Holder(at): Holder, entry: u32) {
        while self.lists.len() <= at {
            let place = self.heaviest.add(self.lists.len());
            self.lists.push((List::EMPTY, place));
        }
        if let Some((list, _)) = self.lists.get_mut(at) {
            self.links.append(list, entry);
            self.weigh(at);
        }
    }

    /// Takes an entry out of its list.
    pub(super) fn unlink(&mut self, Holder(at): Holder, entry: u32) {
        if let Some((list, _)) = self.lists.get_mut(at) {
            self.links.unlink(list, entry);
            self.weigh(at);
        }
    }

    /// A list has become longer or shorter. What control has placed weighs nothing: it does not give way.
    fn weigh(&mut self, at: usize) {
        let Lists { lists, heaviest, .. } = self;
        let Some((list, place)) = lists.get(at).filter(|_| at > 0) else { return };
        heaviest.weigh(*place, list.count(), |at, place| {
            if let Some((_, known)) = lists.get_mut(at) {
                *known = place;
            }
        });
    }
}
