//! [`Links`]: entries of a table in doubly linked lists, threaded through one array as long as the table.
//!
//! Invariant: an entry that is used is in one [`List`] at most, and whoever appends and unlinks names the list that it is in. Nothing is allocated after
//! [`Links::new`]. Which list belongs to whom is for the owner to know. Read first: [`crate::fdb`], where it says who gives way.

const END: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

/// A list: how long it is, and its ends.
#[derive(Clone, Copy)]
pub struct List {
    count: u32,
    first: u32,
    last: u32,
}

impl List {
    /// The list of nothing.
    pub const EMPTY: List = List { count: 0, first: END, last: END };

    /// Entries in it.
    #[inline]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The entry that was appended first, of those that are in it.
    #[inline]
    pub fn first(&self) -> Option<u32> {
        Some(self.first).filter(|first| *first != END)
    }

    /// The entry that was appended last.
    #[inline]
    pub fn last(&self) -> Option<u32> {
        Some(self.last).filter(|last| *last != END)
    }
}

/// See the module's documentation.
pub struct Links(Box<[Link]>);

impl Links {
    /// For entries 0 to `entries` - 1, below 2^32 - 1.
    pub fn new(entries: usize) -> Links {
        Links(vec![Link { before: END, after: END }; entries].into())
    }

    /// Puts an entry at the end of a list.
    pub fn append(&mut self, list: &mut List, entry: u32) {
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
    pub fn unlink(&mut self, list: &mut List, entry: u32) {
        let Some(Link { before, after }) = self.0.get(entry as usize).copied() else { return };
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

    /// An entry of a list lies at another place.
    pub fn relocate(&mut self, list: &mut List, from: u32, to: u32) {
        let Some(link) = self.0.get(from as usize).copied() else { return };
        if link.before == END {
            list.first = to;
        }
        if link.after == END {
            list.last = to;
        }
        self.change(to, |place| *place = link);
        self.change(link.before, |link| link.after = to);
        self.change(link.after, |link| link.before = to);
    }

    /// Changes the link of an entry; the ends of a list have none.
    fn change(&mut self, entry: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.0.get_mut(entry as usize) {
            change(link);
        }
    }
}
