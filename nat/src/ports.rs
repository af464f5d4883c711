//! [`Ports`]: which mapping has which port of which outside address.
//!
//! Invariant: a port of an address and a protocol belongs to one mapping at most (no port overloading, RFC 4787 REQ-1 to REQ-3). Choosing
//! one is bounded work: at most every word of a bitmap of 1,024, four times.
//!
//! Theory of operation: three planes (protocols) of 65,536 owners for every address, so that a packet from outside finds its mapping without
//! a hash; a bitmap of the same says quickly what is free. A port given back rests for a while (RFC 6888 REQ-8): its owner's place holds when
//! that was. Read first: RFC 4787 section 4.2, RFC 6056 section 3.

use std::net::Ipv4Addr;

use crate::{
    family::Family,
    record::{Endpoint, Protocol, Slot},
};

const PORTS: usize = 65_536;
const WORDS: usize = PORTS / 64;
const RESTING: u32 = 1 << 31;
const EVEN: u64 = 0x5555_5555_5555_5555;
/// Resting ports that are passed over in one search before the first of them is taken.
const PATIENCE: usize = 64;

/// What is asked of a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) protocol: Protocol,
    /// The port inside, which says range and parity.
    pub(crate) inside: u16,
    /// Taken when free, in this order.
    pub(crate) first: [Option<u16>; 2],
    pub(crate) parity: bool,
    /// Where the search begins.
    pub(crate) random: u64,
    pub(crate) now: u32,
}

/// See the module's documentation.
pub(crate) struct Ports<A = Ipv4Addr> {
    addresses: Box<[A]>,
    owners: Box<[u32]>,
    used: Box<[u64]>,
    rest: u32,
}

impl<A: Family> Ports<A> {
    pub(crate) fn new(addresses: &[A], rest: u32) -> Ports<A> {
        let planes = addresses.len() * Protocol::ALL.len();
        Ports {
            addresses: addresses.into(),
            owners: sys::huge::filled(planes * PORTS, 0),
            used: vec![0; planes * WORDS].into(),
            rest,
        }
    }

    pub(crate) fn addresses(&self) -> &[A] {
        &self.addresses
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        size_of_val(&*self.owners) + size_of_val(&*self.used)
    }

    #[inline]
    pub(crate) fn has(&self, address: A) -> bool {
        self.addresses.contains(&address)
    }

    /// The mapping that an outside endpoint belongs to.
    #[inline]
    pub(crate) fn owner(&self, protocol: Protocol, outside: Endpoint<A>) -> Option<Slot> {
        let owner = *self.owners.get(self.place(protocol, outside)?)?;
        (owner != 0 && owner & RESTING == 0).then(|| Slot(owner - 1))
    }

    /// Asks for what [`Ports::owner`] will read.
    #[inline]
    pub(crate) fn foresee(&self, protocol: Protocol, outside: Endpoint<A>) {
        if let Some(owner) = self.place(protocol, outside).and_then(|place| self.owners.get(place)) {
            sys::prefetch(owner);
        }
    }

    /// The outside address of an inside one, and, for arbitrary pooling, those after it.
    pub(crate) fn paired(&self, inside: A) -> impl Iterator<Item = A> {
        let first = ((inside.spread() * self.addresses.len() as u64) >> 32) as usize;
        self.addresses.iter().cycle().skip(first).take(self.addresses.len()).copied()
    }

    /// A free port of an address, as near to the wish as there is.
    pub(crate) fn choose(&self, address: A, wish: Wish) -> Option<u16> {
        let ready = |port: &u16| self.is_ready(wish.protocol, Endpoint::new(address, *port), wish.now);
        if let Some(port) = wish.first.into_iter().flatten().find(ready) {
            return Some(port);
        }
        let own = if wish.inside.is_multiple_of(2) { EVEN } else { !EVEN };
        let ranges = match wish.protocol {
            Protocol::Icmp => [Some((0, u16::MAX)), None],
            _ if (1..1024).contains(&wish.inside) => [Some((1, 1023)), Some((1024, u16::MAX))],
            _ => [Some((1024, u16::MAX)), None],
        };
        let parity = wish.parity && wish.protocol != Protocol::Icmp;
        let masks = [parity.then_some(own), Some(u64::MAX)];
        let ways =
            ranges.into_iter().flatten().flat_map(|range| masks.into_iter().flatten().map(move |mask| (range, mask)));
        ways.into_iter().find_map(|(range, mask)| self.scan(address, wish, range, mask))
    }

    /// Whether an endpoint is free.
    pub(crate) fn is_free(&self, protocol: Protocol, outside: Endpoint<A>) -> bool {
        let Some(place) = self.place(protocol, outside) else { return false };
        self.used.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 0)
    }

    /// Gives an endpoint to a mapping; false when it is not free.
    #[must_use]
    pub(crate) fn take(&mut self, protocol: Protocol, outside: Endpoint<A>, slot: Slot) -> bool {
        let Some(place) = self.place(protocol, outside).filter(|_| self.is_free(protocol, outside)) else {
            return false;
        };
        let (Some(owner), Some(word)) = (self.owners.get_mut(place), self.used.get_mut(place / 64)) else {
            return false;
        };
        *owner = slot.0 + 1;
        *word |= 1 << (place % 64);
        true
    }

    /// Takes an endpoint back. It rests, but not if what it was used for was tracked to its end.
    pub(crate) fn give_back(&mut self, protocol: Protocol, outside: Endpoint<A>, now: u32) {
        let Some(place) = self.place(protocol, outside) else { return };
        if let (Some(owner), Some(word)) = (self.owners.get_mut(place), self.used.get_mut(place / 64)) {
            *owner = if protocol == Protocol::Tcp || self.rest == 0 { 0 } else { RESTING | now };
            *word &= !(1 << (place % 64));
        }
    }

    fn is_ready(&self, protocol: Protocol, outside: Endpoint<A>, now: u32) -> bool {
        self.is_free(protocol, outside) && !self.rests(protocol, outside, now)
    }

    fn rests(&self, protocol: Protocol, outside: Endpoint<A>, now: u32) -> bool {
        let owner = self.place(protocol, outside).and_then(|place| self.owners.get(place)).copied().unwrap_or(0);
        owner & RESTING != 0 && now.saturating_sub(owner & !RESTING) < self.rest
    }

    fn scan(&self, address: A, wish: Wish, range: (u16, u16), mask: u64) -> Option<u16> {
        let plane = self.place(wish.protocol, Endpoint::new(address, 0))? / 64;
        let words = self.used.get(plane..plane + WORDS)?;
        let (first, last) = (usize::from(range.0) / 64, usize::from(range.1) / 64);
        let count = last - first + 1;
        let start = (wish.random >> 32) as usize % count;
        let below = u64::MAX << (wish.random % 64);
        let (mut resting, mut patience) = (None, PATIENCE);
        for step in 0..=count {
            let at = first + (start + step) % count;
            let mut free = !words.get(at).copied()? & mask;
            // The word it begins in is looked at twice: from the middle on, and last of all.
            if step == 0 {
                free &= below;
            }
            while free != 0 {
                let port = (at * 64) as u16 + free.trailing_zeros() as u16;
                free &= free - 1;
                if port < range.0 {
                    continue;
                }
                if !self.rests(wish.protocol, Endpoint::new(address, port), wish.now) {
                    return Some(port);
                }
                resting = resting.or(Some(port));
                patience -= 1;
                if patience == 0 {
                    return resting;
                }
            }
        }
        resting
    }

    #[inline]
    fn place(&self, protocol: Protocol, outside: Endpoint<A>) -> Option<usize> {
        let n = self.addresses.iter().position(|address| *address == outside.address)?;
        Some((n * Protocol::ALL.len() + protocol as usize) * PORTS + usize::from(outside.port))
    }
}
