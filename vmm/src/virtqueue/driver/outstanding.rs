//! [`Outstanding`]: the chains that a driver gave to the device and has not taken back.
//!
//! Invariant: an id is here from the moment its chain was added until it was handed back once; what a device claims to have used is
//! checked against it. With `VIRTIO_F_IN_ORDER` the order of adding is kept, and one element may stand for a batch (virtio 1.2 section
//! 2.7.9 and 2.8.9): all chains up to the one it names.

use std::collections::VecDeque;

use super::{Used, UsedError};

/// What the driver remembers of a chain.
#[derive(Clone, Copy, Default)]
struct Chain {
    /// Ring entries, 0 where no chain is outstanding.
    entries: u16,
    /// Bytes of the writable part.
    room: u32,
}

/// See the module's documentation.
pub(super) struct Outstanding {
    chains: Box<[Chain]>,
    count: u16,
    /// Ids in the order of adding, where the device uses them in order.
    order: Option<VecDeque<u16>>,
    /// The chains used by the element read last and not yet handed back: how many, or which one where there is no order.
    batch: u16,
    last: Used,
}

impl Outstanding {
    /// Nothing outstanding of a ring of `size` entries.
    pub(super) fn new(size: u16, in_order: bool) -> Self {
        Outstanding {
            chains: vec![Chain::default(); usize::from(size)].into(),
            count: 0,
            order: in_order.then(|| VecDeque::with_capacity(usize::from(size))),
            batch: 0,
            last: Used { id: 0, written: 0 },
        }
    }

    /// The device is given chain `id`.
    pub(super) fn add(&mut self, id: u16, entries: u16, room: u32) {
        if let Some(chain) = self.chains.get_mut(usize::from(id)) {
            *chain = Chain { entries, room };
            self.count += 1;
        }
        if let Some(order) = &mut self.order {
            order.push_back(id);
        }
    }

    /// Chains that the device has, or had and that were not handed back.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Whether chains wait to be handed back.
    pub(super) fn has_used(&self) -> bool {
        self.batch > 0
    }

    fn chain(&self, id: u16) -> Option<Chain> {
        self.chains.get(usize::from(id)).copied().filter(|chain| chain.entries > 0)
    }

    /// The device wrote the element (`id`, `written`): returns how many chains and how many ring entries it stands for. They are to be
    /// handed back by [`Outstanding::next`] before the next element is read.
    pub(super) fn used(&mut self, id: u32, written: u32) -> Result<(u16, u16), UsedError> {
        let known = u16::try_from(id).ok().and_then(|id| Some((id, self.chain(id)?)));
        let (short, chain) = known.ok_or(UsedError::Id(id))?;
        if written > chain.room {
            return Err(UsedError::Written { id: short, written, room: chain.room });
        }
        let (chains, entries) = match &self.order {
            None => (1, chain.entries),
            Some(order) => {
                let place = order.iter().position(|other| *other == short).ok_or(UsedError::Id(id))?;
                let entries = order.iter().take(place + 1).filter_map(|id| self.chain(*id)).map(|c| c.entries).sum();
                (place as u16 + 1, entries)
            }
        };
        self.batch = chains;
        self.last = Used { id: short, written };
        Ok((chains, entries))
    }

    /// The next chain to hand back and its ring entries.
    pub(super) fn next(&mut self) -> Option<(Used, u16)> {
        self.batch = self.batch.checked_sub(1)?;
        let id = match &mut self.order {
            Some(order) => order.pop_front()?,
            None => self.last.id,
        };
        let chain = std::mem::take(self.chains.get_mut(usize::from(id))?);
        self.count = self.count.saturating_sub(1);
        let written = if id == self.last.id { self.last.written } else { chain.room };
        Some((Used { id, written }, chain.entries))
    }
}
