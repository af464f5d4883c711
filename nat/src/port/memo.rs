//! [`Memo`]: what was found for a frame, kept for those of the same flow that follow it in a burst.
//!
//! Invariant: a frame passes by a memo only if looking everything up anew would find the same: same NIC, sender, flow and TCP flags, in the same
//! burst, and nothing has gone the long way in between. What may differ from packet to packet (length, fragmenting allowed, what is owed) is
//! looked at in each. Read first: [`crate::known`].

use wire::{Head, NicId};

use crate::{
    known::{Flow, Known},
    record::Side,
};

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memo {
    side: Side,
    nic: NicId,
    /// The source's MAC address ([`wire::Mac::to_bits`]), which is learnt of guests.
    from: u64,
    flow: Flow,
    known: Known,
    /// Where the frame goes.
    pub(super) mac: u64,
}

impl Memo {
    /// Of a frame, before it passes.
    #[inline]
    pub(super) fn new(side: Side, head: &Head, flow: Flow, known: Known, mac: u64) -> Memo {
        Memo { side, nic: head.origin.nic, from: head.macs().1, flow, known, mac }
    }

    /// What is known of another frame of the flow.
    #[inline]
    pub(super) fn covers(&self, side: Side, head: &Head, flow: &Flow) -> Option<Known> {
        let same = self.side == side && self.nic == head.origin.nic && self.from == head.macs().1;
        (same && self.flow.is_like(flow) && flow.owes_its_own(head)).then(|| self.known.of_another(flow))
    }
}
