//! [`Lists`]: which entries were heard from whom, in the order in which they were last heard.
//!
//! Invariant: an entry that is used is in exactly one list, an unused one in none; the first of a list is the one heard longest ago. Memory is taken
//! when the table is made, and once for a holder that was never seen. Read first: [`super`].

use super::Whence;

const END: u32 = u32::MAX;

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

/// See the module's documentation.
pub(super) struct Lists {
    links: Box<[Link]>,
    lists: Vec<List>,
}

impl Lists {
    pub(super) fn new(entries: usize) -> Lists {
        Lists { links: vec![Link { before: END, after: END }; entries].into(), lists: Vec::new() }
    }

    /// Lists there are.
    pub(super) fn holders(&self) -> usize {
        self.lists.len()
    }

    /// Entries in a list.
    pub(super) fn count(&self, Holder(at): Holder) -> usize {
        self.lists.get(at).map_or(0, |list| list.count as usize)
    }

    /// The entry that a holder has not said for longest.
    pub(super) fn oldest(&self, Holder(at): Holder) -> Option<u32> {
        self.first(at)
    }

    /// As [`Lists::oldest`], of the list at a place.
    pub(super) fn first(&self, at: usize) -> Option<u32> {
        self.lists.get(at).map(|list| list.first).filter(|first| *first != END)
    }

    /// Of whoever holds most, control left out, the oldest entry. Looks at every holder's count.
    pub(super) fn oldest_of_heaviest(&self) -> Option<u32> {
        let heaviest = self.lists.iter().skip(1).max_by_key(|list| list.count)?;
        (heaviest.first != END).then_some(heaviest.first)
    }

    /// Puts an entry at the end of a list.
    pub(super) fn append(&mut self, Holder(at): Holder, entry: u32) {
        if self.lists.len() <= at {
            self.lists.resize(at + 1, List { count: 0, first: END, last: END });
        }
        let Some(list) = self.lists.get_mut(at) else { return };
        let before = list.last;
        list.last = entry;
        list.count += 1;
        if before == END {
            list.first = entry;
        }
        self.change(entry, |link| *link = Link { before, after: END });
        self.change(before, |link| link.after = entry);
    }

    /// Takes an entry out of its list.
    pub(super) fn unlink(&mut self, Holder(at): Holder, entry: u32) {
        let Some(Link { before, after }) = self.links.get(entry as usize).copied() else { return };
        let Some(list) = self.lists.get_mut(at) else { return };
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

    /// Changes the link of an entry; the ends of a list have none.
    fn change(&mut self, entry: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(entry as usize) {
            change(link);
        }
    }
}
