//! [`NatTable::foresee`]: the memory that a burst is going to need is asked for before the first of its packets is decided.
//!
//! Invariant: nothing changes but what is in the caches; what is foreseen wrongly costs time only.
//!
//! Theory of operation: a look-up in a table larger than the caches waits for memory twice, for a bucket and for a record. Packets of a burst
//! are independent, so all buckets are asked for first and then all records: the waits overlap. A small table is in the caches anyway.

use std::net::Ipv4Addr;

use wire::{BURST, Context, Frame, layers::ETHERTYPE_IPV4};

use crate::{
    index::Hash,
    record::{Endpoint, Key, Protocol, Side, Slot},
    table::NatTable,
};

/// Records of a table that stays in the caches by itself.
const SMALL: usize = 4096;

/// Where a packet's record will be looked for.
#[derive(Clone, Copy)]
enum Place {
    Hash(Hash),
    Outside(Protocol, Endpoint),
}

impl NatTable {
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
                Some(Place::Outside(protocol, outside)) => self.ports.foresee(protocol, outside),
                None => {}
            }
        }
        for place in places.into_iter().flatten() {
            match place {
                Place::Hash(hash) => {
                    let _ = self.index.find(hash, |slot| self.ask_for(slot));
                }
                Place::Outside(protocol, outside) => {
                    self.ports.owner(protocol, outside).map(|slot| self.ask_for(slot));
                }
            }
        }
    }

    #[inline]
    fn ask_for(&self, slot: Slot) -> bool {
        self.record(slot).map(sys::prefetch).is_some()
    }

    /// Of whole packets without IP options, which is most.
    #[inline]
    fn place_of(&self, side: Side, cx: &Context, frame: &Frame) -> Option<Place> {
        let head = cx.heads.get(frame);
        if head.ethertype() != ETHERTYPE_IPV4 {
            return None;
        }
        let packet: &[u8; 24] = head.bytes().get(14..)?.first_chunk()?;
        let [0x45, _, _, _, _, _, _, _, _, number, _, _, a, b, c, d, e, f, g, h, i, j, k, l] = *packet else {
            return None;
        };
        let protocol = Protocol::from_number(number).filter(|protocol| *protocol != Protocol::Icmp)?;
        let source = Endpoint::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([i, j]));
        let destination = Endpoint::new(Ipv4Addr::new(e, f, g, h), u16::from_be_bytes([k, l]));
        if side == Side::Outside {
            return Some(Place::Outside(protocol, destination));
        }
        let mapping = Key::mapping(protocol, head.origin.nic, source);
        let key = if protocol == Protocol::Tcp { mapping.session(destination) } else { mapping };
        Some(Place::Hash(self.index.hash(key)))
    }
}
