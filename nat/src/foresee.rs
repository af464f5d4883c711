//! [`NatTable::foresee`]: the memory that a burst is going to need is asked for before the first of its packets is decided.
//!
//! Invariant: nothing changes but what is in the caches; what is foreseen wrongly costs time only.
//!
//! Theory of operation: a look-up in a table larger than the caches waits for memory twice, for a bucket and for a record (for TCP from outside,
//! twice). Packets of a burst are independent, so all buckets are asked for first and then all records: the waits overlap. A small table
//! is in the caches anyway.

use std::net::Ipv4Addr;

use wire::{BURST, Context, Frame};

use crate::{
    index::Hash,
    known::Flow,
    record::{Endpoint, Protocol, Side, Slot},
    table::NatTable,
};

/// Records of a table that stays in the caches by itself.
const SMALL: usize = 4096;

/// Where a packet's record will be looked for.
#[derive(Clone, Copy)]
enum Place {
    Hash(Hash),
    /// The outside endpoint, and who sent to it.
    Outside(Protocol, Endpoint, Endpoint),
}

impl NatTable<Ipv4Addr> {
    /// Asks for what deciding about these frames, which came in on `side`, will read.
    pub(crate) fn foresee<'f>(&self, side: Side, cx: &Context, frames: impl Iterator<Item = &'f Frame>) {
        if self.len() < SMALL {
            return;
        }
        let mut places = [None; BURST];
        for (place, frame) in places.iter_mut().zip(frames) {
            *place = self.place_of(side, cx, frame);
            match *place {
                Some(Place::Hash(hash)) => self.index.foresee(hash),
                Some(Place::Outside(protocol, outside, _)) => self.ports.foresee(protocol, outside),
                None => {}
            }
        }
        for place in places.into_iter().flatten() {
            match place {
                Place::Hash(hash) => {
                    let _ = self.index.find(hash, |slot| self.ask_for(slot));
                }
                Place::Outside(protocol, outside, _) => {
                    self.ports.owner(protocol, outside).map(|slot| self.ask_for(slot));
                }
            }
        }
        // From outside, a TCP session is found by what its mapping says.
        let mut sessions = [None; BURST];
        for (session, place) in sessions.iter_mut().zip(places.into_iter().flatten()) {
            if let Place::Outside(Protocol::Tcp, outside, remote) = place
                && let Some((_, mapping)) = self.owner(Protocol::Tcp, outside)
            {
                let hash = self.index.hash(mapping.key.session(remote));
                self.index.foresee(hash);
                *session = Some(hash);
            }
        }
        for hash in sessions.into_iter().flatten() {
            let _ = self.index.find(hash, |slot| self.ask_for(slot));
        }
    }

    #[inline]
    fn ask_for(&self, slot: Slot) -> bool {
        self.record(slot).map(sys::prefetch).is_some()
    }

    #[inline]
    fn place_of(&self, side: Side, cx: &Context, frame: &Frame) -> Option<Place> {
        let head = cx.heads.get(frame);
        let flow = Flow::of(head)?;
        Some(match side {
            Side::Outside => Place::Outside(flow.protocol, flow.destination, flow.source),
            Side::Inside => Place::Hash(self.index.hash(flow.key(head.origin.nic))),
        })
    }
}
