//! [`Fragments`]: what later fragments need of the first one of their packet.
//!
//! Invariant: bounded and taken at creation. A packet's place is in one set of eight; who holds most of a set gives up its oldest there.
//! Read first: RFC 4787 REQ-14; RFC 791 section 3.2 (a packet's fragments share addresses, protocol and identification), RFC 8200 section 4.5 (addresses
//! and identification).

use std::net::Ipv4Addr;

use wire::NicId;

use crate::{
    family::Family,
    record::{Endpoint, Side},
};

const SETS: usize = 256;
const WAYS: usize = 8;

/// Which packet a fragment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Which<A = Ipv4Addr> {
    pub(crate) from: Side,
    /// Whose, when it comes from inside.
    pub(crate) nic: NicId,
    pub(crate) source: A,
    pub(crate) destination: A,
    /// The protocol's number, where that counts.
    pub(crate) number: u8,
    pub(crate) id: u32,
}

/// What was done to its first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fate<A = Ipv4Addr> {
    pub(crate) to: Side,
    /// Whose mapping it was.
    pub(crate) holder: NicId,
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) id: u32,
}

type Entry<A> = Option<(Which<A>, Fate<A>, u32)>;

/// See the module's documentation.
pub(crate) struct Fragments<A = Ipv4Addr> {
    sets: Box<[[Entry<A>; WAYS]]>,
    secret: [u64; 2],
    lifetime: u32,
}

impl<A: Family> Fragments<A> {
    pub(crate) fn new(secret: [u64; 2], lifetime: u32) -> Fragments<A> {
        Fragments { sets: vec![[None; WAYS]; SETS].into(), secret, lifetime }
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        size_of_val(&*self.sets)
    }

    pub(crate) fn find(&self, which: Which<A>, now: u32) -> Option<Fate<A>> {
        let set = self.sets.get(self.home(which))?;
        let mut fates = set.iter().flatten().filter(|(_, _, stamp)| now.saturating_sub(*stamp) < self.lifetime);
        fates.find(|(of, ..)| *of == which).map(|(_, fate, _)| *fate)
    }

    pub(crate) fn remember(&mut self, which: Which<A>, fate: Fate<A>, now: u32) {
        let (home, lifetime) = (self.home(which), self.lifetime);
        let Some(set) = self.sets.get_mut(home) else { return };
        let held = set.map(|entry| entry.map(|(_, fate, _)| fate.holder));
        let weigh = |entry: &Entry<A>| match entry {
            None => (4, 0, 0),
            Some((of, ..)) if *of == which => (5, 0, 0),
            Some((_, _, stamp)) if now.saturating_sub(*stamp) >= lifetime => (3, 0, 0),
            Some((_, fate, stamp)) => {
                let holds = held.iter().flatten().filter(|holder| **holder == fate.holder).count();
                (1, holds, now.saturating_sub(*stamp))
            }
        };
        if let Some(place) = set.iter_mut().max_by_key(|entry| weigh(entry)) {
            *place = Some((which, fate, now));
        }
    }

    fn home(&self, which: Which<A>) -> usize {
        let [a, b] = self.secret;
        let low = A::half(u16::from(which.number), Endpoint::new(which.source, which.id as u16));
        let high = A::half(which.nic.0, Endpoint::new(which.destination, (which.id >> 16) as u16));
        A::mix(low, high, [a, b, a ^ b, b]) as usize % SETS
    }
}
