//! [`Holders`]: which records belong to which NIC, one list per state, in the order they were last renewed.
//!
//! Invariant: a record that is used is in exactly one list, that of its NIC and its state. A list whose records expire is ordered by stamp,
//! oldest first, so what is next to expire or to give way is always its first. Lists are threaded through the records; nothing is
//! allocated but in [`Holders::add`].

use wire::NicId;

use crate::{
    family::Family,
    record::{Record, Slot, State},
};

#[derive(Clone, Copy)]
struct List {
    first: Slot,
    last: Slot,
}

#[derive(Clone, Copy)]
struct Holder {
    lists: [List; State::ALL.len()],
    count: u32,
    /// Of these, records that may give way.
    mortal: u32,
}

const NOBODY: Holder =
    Holder { lists: [List { first: Slot::NONE, last: Slot::NONE }; State::ALL.len()], count: 0, mortal: 0 };

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Holders(Vec<Holder>);

impl Holders {
    /// NICs up to `nic` may hold records from here on. Allocates.
    pub(crate) fn add(&mut self, nic: NicId) {
        if self.0.len() <= nic.index() {
            self.0.resize(nic.index() + 1, NOBODY);
        }
    }

    #[inline]
    pub(crate) fn knows(&self, nic: NicId) -> bool {
        nic.index() < self.0.len()
    }

    pub(crate) fn nics(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn count(&self, nic: NicId) -> usize {
        self.0.get(nic.index()).map_or(0, |holder| holder.count as usize)
    }

    /// The record of a list that was not renewed for longest.
    #[inline]
    pub(crate) fn first(&self, nic: NicId, state: State) -> Option<Slot> {
        let first = self.0.get(nic.index())?.lists.get(state as usize)?.first;
        (first != Slot::NONE).then_some(first)
    }

    /// What a NIC can do without best, of the states before `before`.
    pub(crate) fn least(&self, nic: NicId, before: State) -> Option<Slot> {
        State::ALL.into_iter().take(before as usize).find_map(|state| self.first(nic, state))
    }

    /// The NIC with most records that may give way.
    pub(crate) fn heaviest(&self) -> Option<NicId> {
        let counts = self.0.iter().enumerate().filter(|(_, holder)| holder.mortal > 0);
        counts.max_by_key(|(_, holder)| holder.mortal).map(|(nic, _)| NicId(nic as u16))
    }

    /// Puts a record, whose stamp is set, at the end of its list, no older than the one before it.
    pub(crate) fn append<A: Family>(&mut self, records: &mut [Record<A>], slot: Slot) {
        let Some((nic, state)) = records.get(slot.0 as usize).map(|record| (record.key.nic(), record.state)) else {
            return;
        };
        let Some(holder) = self.0.get_mut(nic.index()) else { return };
        holder.count += 1;
        holder.mortal += u32::from((state as usize) < State::MORTAL);
        let Some(list) = holder.lists.get_mut(state as usize) else { return };
        let before = std::mem::replace(&mut list.last, slot);
        if before == Slot::NONE {
            list.first = slot;
        }
        let mut stamp = 0;
        if let Some(neighbour) = records.get_mut(before.0 as usize) {
            neighbour.after = slot;
            stamp = neighbour.stamp;
        }
        if let Some(record) = records.get_mut(slot.0 as usize) {
            record.before = before;
            record.after = Slot::NONE;
            record.stamp = record.stamp.max(stamp);
        }
    }

    /// Takes a record out of its list.
    pub(crate) fn unlink<A: Family>(&mut self, records: &mut [Record<A>], slot: Slot) {
        let Some(Record { key, state, before, after, .. }) = records.get(slot.0 as usize).copied() else { return };
        let Some(holder) = self.0.get_mut(key.nic().index()) else { return };
        holder.count = holder.count.saturating_sub(1);
        holder.mortal = holder.mortal.saturating_sub(u32::from((state as usize) < State::MORTAL));
        let Some(list) = holder.lists.get_mut(state as usize) else { return };
        if before == Slot::NONE {
            list.first = after;
        }
        if after == Slot::NONE {
            list.last = before;
        }
        if let Some(neighbour) = records.get_mut(before.0 as usize) {
            neighbour.after = after;
        }
        if let Some(neighbour) = records.get_mut(after.0 as usize) {
            neighbour.before = before;
        }
    }
}
