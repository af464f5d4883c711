//! [`Offers`]: DHCP offers, and acknowledgements that no offer went before, that wait until somebody who uses the address could have said so.
//!
//! Invariant: at most [`ROOM`] of them, at most [`EACH`] for one NIC, one for an address, none for longer than [`WAIT`].
//!
//! Theory of operation: when an address is offered to a client that does not have it, the router asks by ARP who has it, and lets the offer go
//! a moment later. An answer puts the address aside, and the offer is forgotten; the client asks again and is offered another. Who finds no room
//! is offered the address at once: then an answer that comes before the client's request still makes that be refused. An acknowledgement
//! that waits brings its lease along, which begins when it goes.
//! Read first: RFC 2131 section 3.1 (a server should look whether an address is in use), RFC 5227.

use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

use wire::{Instant, NicId};

use crate::dhcp::Lease;

const ROOM: usize = 64;
const EACH: usize = 4;
/// Guests answer within a few milliseconds.
const WAIT: Duration = Duration::from_millis(50);

struct Offer {
    address: Ipv4Addr,
    nic: NicId,
    due: Instant,
    frame: Vec<u8>,
    lease: Option<Box<Lease>>,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Offers {
    /// The oldest first, which is due first.
    waiting: VecDeque<Offer>,
}

impl Offers {
    /// Whether an offer of `address` waits.
    pub(crate) fn waits(&self, address: Ipv4Addr) -> bool {
        self.waiting.iter().any(|offer| offer.address == address)
    }

    /// `frame` takes the place of the offer of `address` that waits, and brings `lease` along.
    pub(crate) fn replace(&mut self, address: Ipv4Addr, frame: &[u8], lease: Option<Box<Lease>>) {
        if let Some(offer) = self.waiting.iter_mut().find(|offer| offer.address == address) {
            (offer.frame, offer.lease) = (frame.to_vec(), lease);
        }
    }

    /// Whether one more to a client on `nic` may wait.
    pub(crate) fn has_room(&self, nic: NicId) -> bool {
        self.waiting.len() < ROOM && self.waiting.iter().filter(|offer| offer.nic == nic).count() < EACH
    }

    /// Has an offer wait, or an acknowledgement with its lease.
    pub(crate) fn keep(
        &mut self,
        address: Ipv4Addr,
        nic: NicId,
        now: Instant,
        frame: &[u8],
        lease: Option<Box<Lease>>,
    ) {
        self.waiting.push_back(Offer { address, nic, due: now + WAIT, frame: frame.to_vec(), lease });
    }

    /// `address` is not to be offered.
    pub(crate) fn forget(&mut self, address: Ipv4Addr) {
        self.waiting.retain(|offer| offer.address != address);
    }

    /// When the next one is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|offer| offer.due)
    }

    /// The next frame that has waited for long enough, and the lease that begins with it.
    pub(crate) fn due(&mut self, now: Instant) -> Option<(Vec<u8>, Option<Box<Lease>>)> {
        self.deadline().filter(|due| *due <= now)?;
        self.waiting.pop_front().map(|offer| (offer.frame, offer.lease))
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
            assert!(offers.has_room(NicId(1)) && !offers.waits(address(n)));
            offers.keep(address(n), NicId(1), now, b"first", None);
        }
        assert!(!offers.has_room(NicId(1)) && offers.has_room(NicId(2)));
        assert!(offers.waits(address(0)));
        offers.replace(address(0), b"again", None);
        offers.forget(address(1));
        assert_eq!(offers.due(now), None);
        let later = now + WAIT;
        assert_eq!(offers.due(later), Some((b"again".to_vec(), None)));
        assert_eq!(offers.due(later), Some((b"first".to_vec(), None)));
        assert!(offers.due(later).is_some() && offers.due(later).is_none(), "the forgotten one is not among them");
    }
}
