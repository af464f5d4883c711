//! [`Outstanding`]: the chains that a driver gave to the device and has not taken back.
//!
//! Invariant: an id is here from the moment its chain was added until it was handed back once; what a device claims to have used is
//! checked against it. With `VIRTIO_F_IN_ORDER` the order of adding is kept, and one element may stand for a batch (virtio 1.2 section
//! 2.7.9 and 2.8.9): all chains up to the one it names.
//!
//! Theory of operation: in order, every chain knows how many chains and ring entries were added up to its own end, so how much a batch stands
//! for is a subtraction, and a whole batch is handed back by moving one position. A chain is outstanding then if it is younger than that
//! position and the order has its id in its place. Counts wrap at 2^16; at most 2^15 chains and entries are outstanding.

use super::{Used, UsedError};

/// What the driver remembers of a chain.
#[derive(Clone, Copy, Default)]
struct Chain {
    /// Ring entries; without order, 0 where no chain is outstanding.
    entries: u16,
    /// Chains added up to this one and with it.
    chains_to: u16,
    /// Ring entries added up to the end of this one.
    entries_to: u16,
    /// Bytes of the writable part.
    room: u32,
}

/// Ids in the order of adding, where the device uses them in order.
struct Order {
    ids: Box<[u16]>,
    /// Chains and entries added in all, and handed back in all.
    added: (u16, u16),
    returned: (u16, u16),
}

impl Order {
    #[inline]
    fn place(&self, chains: u16) -> usize {
        usize::from(chains) & (self.ids.len() - 1)
    }

    /// How many chains were added since those handed back, up to this one; nothing when it is not outstanding.
    #[inline]
    fn age(&self, id: u16, chain: Chain) -> Option<u16> {
        let age = chain.chains_to.wrapping_sub(self.returned.0);
        let outstanding = self.added.0.wrapping_sub(self.returned.0);
        let in_place = self.ids.get(self.place(chain.chains_to.wrapping_sub(1))) == Some(&id);
        (in_place && (1..=outstanding).contains(&age)).then_some(age)
    }
}

/// See the module's documentation.
pub(super) struct Outstanding {
    chains: Box<[Chain]>,
    count: u16,
    order: Option<Order>,
    /// The chains used by the element read last and not yet handed back.
    batch: u16,
    last: Used,
}

impl Outstanding {
    /// Nothing outstanding of a ring of `size` entries.
    pub(super) fn new(size: u16, in_order: bool) -> Self {
        let size = usize::from(size);
        let ids = || vec![0; size.next_power_of_two()].into();
        Outstanding {
            chains: vec![Chain::default(); size].into(),
            count: 0,
            order: in_order.then(|| Order { ids: ids(), added: (0, 0), returned: (0, 0) }),
            batch: 0,
            last: Used { id: 0, written: 0 },
        }
    }

    /// The device is given chain `id`.
    #[inline]
    pub(super) fn add(&mut self, id: u16, entries: u16, room: u32) {
        let (mut chains_to, mut entries_to) = (0, 0);
        if let Some(order) = &mut self.order {
            let (chains, before) = order.added;
            let place = order.place(chains);
            if let Some(slot) = order.ids.get_mut(place) {
                *slot = id;
            }
            (chains_to, entries_to) = (chains.wrapping_add(1), before.wrapping_add(entries));
            order.added = (chains_to, entries_to);
        }
        if let Some(chain) = self.chains.get_mut(usize::from(id)) {
            *chain = Chain { entries, chains_to, entries_to, room };
            self.count += 1;
        }
    }

    /// Chains that the device has, or had and that were not handed back.
    #[inline]
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Whether chains wait to be handed back.
    #[inline]
    pub(super) fn has_used(&self) -> bool {
        self.batch > 0
    }

    /// The device wrote the element (`id`, `written`): returns how many chains and how many ring entries it stands for. They are to be
    /// handed back by [`Outstanding::next`] before the next element is read.
    #[inline]
    pub(super) fn used(&mut self, id: u32, written: u32) -> Result<(u16, u16), UsedError> {
        let unknown = UsedError::Id(id);
        let chain = *self.chains.get(id as usize).ok_or(unknown)?;
        // The ring has at most 2^15 entries, and as many chains.
        let short = id as u16;
        let (chains, entries) = match &self.order {
            None if chain.entries == 0 => return Err(unknown),
            None => (1, chain.entries),
            Some(order) => {
                let age = order.age(short, chain).ok_or(unknown)?;
                (age, chain.entries_to.wrapping_sub(order.returned.1))
            }
        };
        if written > chain.room {
            return Err(UsedError::Written { id: short, written, room: chain.room });
        }
        self.batch = chains;
        self.last = Used { id: short, written };
        Ok((chains, entries))
    }

    /// The next chain to hand back and its ring entries.
    #[inline]
    pub(super) fn next(&mut self) -> Option<(Used, u16)> {
        self.batch = self.batch.checked_sub(1)?;
        let (id, chain) = match &mut self.order {
            Some(order) => {
                let id = *order.ids.get(order.place(order.returned.0))?;
                let chain = *self.chains.get(usize::from(id))?;
                order.returned = (chain.chains_to, chain.entries_to);
                (id, chain)
            }
            None => (self.last.id, std::mem::take(self.chains.get_mut(usize::from(self.last.id))?)),
        };
        self.count = self.count.saturating_sub(1);
        let written = if id == self.last.id { self.last.written } else { chain.room };
        Some((Used { id, written }, chain.entries))
    }

    /// Hands back all chains of a batch at once, where there is an order; returns the ring entries of those that were left of it.
    #[inline]
    pub(super) fn rest_of_batch(&mut self) -> Option<u16> {
        let order = self.order.as_mut()?;
        let last = self.chains.get(usize::from(self.last.id)).filter(|_| self.batch > 0)?;
        let entries = last.entries_to.wrapping_sub(order.returned.1);
        order.returned = (last.chains_to, last.entries_to);
        self.count = self.count.saturating_sub(std::mem::take(&mut self.batch));
        Some(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(outstanding: &mut Outstanding) -> Vec<u16> {
        std::iter::from_fn(|| outstanding.next()).map(|(used, _)| used.id).collect()
    }

    #[test]
    fn an_element_stands_for_all_chains_up_to_its_own() {
        let mut outstanding = Outstanding::new(8, true);
        for (id, entries) in [(3, 1), (0, 3), (5, 2)] {
            outstanding.add(id, entries, 100);
        }
        assert_eq!(outstanding.used(0, 40), Ok((2, 4)));
        assert_eq!(outstanding.next(), Some((Used { id: 3, written: 100 }, 1)));
        assert_eq!(outstanding.next(), Some((Used { id: 0, written: 40 }, 3)));
        assert_eq!((outstanding.next(), outstanding.count()), (None, 1));
        outstanding.add(3, 4, 0);
        assert_eq!((outstanding.used(3, 0), outstanding.next().map(|(used, _)| used.id)), (Ok((2, 6)), Some(5)));
        assert_eq!((outstanding.rest_of_batch(), outstanding.count()), (Some(4), 0));
        assert_eq!(outstanding.rest_of_batch(), None);
    }

    #[test]
    fn what_the_device_does_not_have_is_refused_also_after_the_counts_wrapped() {
        for in_order in [true, false] {
            let mut outstanding = Outstanding::new(4, in_order);
            outstanding.add(2, 1, 10);
            assert_eq!(outstanding.used(2, 10), Ok((1, 1)));
            assert_eq!(all(&mut outstanding), [2]);
            // Chain 2 stays behind while the counts go round once and come back to where they were.
            for turn in 0..0x1_0000u32 {
                let id = if turn % 2 == 0 { 0 } else { 1 };
                outstanding.add(id, 1, 10);
                assert_eq!(outstanding.used(2, 0), Err(UsedError::Id(2)), "turn {turn}");
                assert_eq!(outstanding.used(7, 0), Err(UsedError::Id(7)));
                let written = UsedError::Written { id, written: 11, room: 10 };
                assert_eq!(outstanding.used(u32::from(id), 11), Err(written));
                assert_eq!(outstanding.used(u32::from(id), 10), Ok((1, 1)));
                assert_eq!(all(&mut outstanding), [id]);
                assert_eq!(outstanding.used(u32::from(id), 10), Err(UsedError::Id(u32::from(id))), "used twice");
            }
        }
    }
}
