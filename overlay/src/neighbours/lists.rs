//! [`Lists`]: which entries were heard from whom, in the order in which they were last heard.
//!
//! Invariant: an entry that is used is in exactly one list, an unused one in none; the first of a list is the one heard longest ago. Memory is taken
//! when the table is made, for every holder that there may be. Read first: [`super`].

use wire::lists::{Links, List};

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
    lists: Vec<List>,
}

impl Lists {
    pub(super) fn new(entries: usize) -> Lists {
        // Room that is not touched costs address space alone.
        Lists { links: Links::new(entries), lists: Vec::with_capacity(MOST) }
    }

    /// Lists there are.
    pub(super) fn holders(&self) -> usize {
        self.lists.len()
    }

    /// Entries in a list.
    pub(super) fn count(&self, Holder(at): Holder) -> usize {
        self.lists.get(at).map_or(0, |list| list.count() as usize)
    }

    /// The entry that a holder has not said for longest.
    pub(super) fn oldest(&self, Holder(at): Holder) -> Option<u32> {
        self.first(at)
    }

    /// As [`Lists::oldest`], of the list at a place.
    pub(super) fn first(&self, at: usize) -> Option<u32> {
        self.lists.get(at)?.first()
    }

    /// Of whoever holds most, control left out, the oldest entry. Looks at every holder's count.
    pub(super) fn oldest_of_heaviest(&self) -> Option<u32> {
        self.lists.iter().skip(1).max_by_key(|list| list.count())?.first()
    }

    /// Puts an entry at the end of a list.
    pub(super) fn append(&mut self, Holder(at): Holder, entry: u32) {
        if self.lists.len() <= at {
            self.lists.resize(at + 1, List::EMPTY);
        }
        if let Some(list) = self.lists.get_mut(at) {
            self.links.append(list, entry);
        }
    }

    /// Takes an entry out of its list.
    pub(super) fn unlink(&mut self, Holder(at): Holder, entry: u32) {
        if let Some(list) = self.lists.get_mut(at) {
            self.links.unlink(list, entry);
        }
    }
}
