//! [`Offers`]: DHCP offers that wait until somebody who uses the address could have said so.
//!
//! Invariant: at most [`ROOM`] of them, at most [`EACH`] for one NIC, one for an address, none for longer than [`WAIT`].
//!
//! Theory of operation: when an address is offered to a client that does not have it, the router asks by ARP who has it, and lets the offer go
//! a moment later. An answer puts the address aside, and the offer is forgotten; the client asks again and is offered another. Who finds no room
//! is offered the address at once: then an answer that comes before the client's request still makes that be refused.
//! Read first: RFC 2131 section 3.1 (a server should look whether an address is in use), RFC 5227.

use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

use wire::{Instant, NicId};

const ROOM: usize = 64;
const EACH: usize = 4;
/// Guests answer within a few milliseconds.
const WAIT: Duration = Duration::from_millis(50);

struct Offer {
    address: Ipv4Addr,
    nic: NicId,
    due: Instant,
    frame: Vec<u8>,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Offers {
    /// The oldest first, which is due first.
    waiting: VecDeque<Offer>,
}

impl Offers {
    /// Whether an offer of `address` waits; `frame` takes its place.
    pub(crate) fn replace(&mut self, address: Ipv4Addr, frame: &[u8]) -> bool {
        let same = self.waiting.iter_mut().find(|offer| offer.address == address);
        same.map(|offer| offer.frame = frame.to_vec()).is_some()
    }

    /// Whether one more to a client on `nic` may wait.
    pub(crate) fn has_room(&self, nic: NicId) -> bool {
        self.waiting.len() < ROOM && self.waiting.iter().filter(|offer| offer.nic == nic).count() < EACH
    }

    /// Has an offer wait.
    pub(crate) fn keep(&mut self, address: Ipv4Addr, nic: NicId, now: Instant, frame: &[u8]) {
        self.waiting.push_back(Offer { address, nic, due: now + WAIT, frame: frame.to_vec() });
    }

    /// `address` is not to be offered.
    pub(crate) fn forget(&mut self, address: Ipv4Addr) {
        self.waiting.retain(|offer| offer.address != address);
    }

    /// When the next one is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|offer| offer.due)
    }

    /// The next frame that has waited for long enough.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.deadline().filter(|due| *due <= now)?;
        self.waiting.pop_front().map(|offer| offer.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_wait_once_for_an_address_and_no_nic_fills_the_room() {
        let (mut offers, now) = (Offers::default(), Instant::START);
        let address = |n: u32| Ipv4Addr::from(0x0a00_0000 + n);
        for n in 0..EACH as u32 {
            assert!(offers.has_room(NicId(1)) && !offers.replace(address(n), b"again"));
            offers.keep(address(n), NicId(1), now, b"first");
        }
        assert!(!offers.has_room(NicId(1)) && offers.has_room(NicId(2)));
        assert!(offers.replace(address(0), b"again"));
        offers.forget(address(1));
        assert_eq!(offers.due(now), None);
        let later = now + WAIT;
        assert_eq!(offers.due(later).as_deref(), Some(&b"again"[..]));
        assert_eq!(offers.due(later).as_deref(), Some(&b"first"[..]));
        assert!(offers.due(later).is_some() && offers.due(later).is_none(), "the forgotten one is not among them");
    }
}
