//! [`Asked`]: guests that asked for an address by DHCP; [`given`]: what a server gave one.
//!
//! Invariant: at most [`MOST`] guests are remembered, the latest. So an address is known from the moment at which its guest has it, though the guest
//! has not spoken with it yet. Read first: RFC 2131 section 2 (format), RFC 2132 section 9.6 (message type).

use std::net::Ipv4Addr;

use wire::{Mac, NicId};

/// Guests that are remembered.
pub const MOST: usize = 64;

/// From the UDP header.
const MESSAGE: usize = 8;
const GIVEN: usize = MESSAGE + 16;
const CLIENT: usize = MESSAGE + 28;
const OPTIONS: usize = MESSAGE + 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Asked {
    guests: Vec<(Mac, NicId)>,
    next: usize,
}

impl Asked {
    /// A guest asks.
    pub(super) fn put(&mut self, mac: Mac, nic: NicId) {
        if self.guests.contains(&(mac, nic)) {
            return;
        }
        match self.guests.get_mut(self.next) {
            Some(place) => *place = (mac, nic),
            None => self.guests.push((mac, nic)),
        }
        self.next = (self.next + 1) % MOST;
    }

    /// The NIC that a guest asked from; none where two say that they are this one.
    pub(super) fn nic_of(&self, mac: Mac) -> Option<NicId> {
        let mut found = self.guests.iter().filter(|(asked, _)| *asked == mac);
        let first = found.next().map(|(_, nic)| *nic);
        first.filter(|_| found.next().is_none())
    }
}

/// The address that a server's acknowledgement, a datagram that begins with its UDP header, gives, and to whom.
pub(super) fn given(datagram: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let part = |at: usize| datagram.get(at..);
    if part(MESSAGE)?.get(..3)? != [2, 1, 6] || part(OPTIONS)?.get(..4)? != COOKIE {
        return None;
    }
    let mut options = part(OPTIONS + 4)?;
    loop {
        match options {
            [0, rest @ ..] => options = rest,
            [53, 1, 5, ..] => break,
            [255, ..] | [53, ..] => return None,
            [_, length, rest @ ..] => options = rest.get(usize::from(*length)..)?,
            _ => return None,
        }
    }
    let address = Ipv4Addr::from(*part(GIVEN)?.first_chunk::<4>()?);
    let client = Mac::new(*part(CLIENT)?.first_chunk::<6>()?);
    (!address.is_unspecified()).then_some((address, client))
}
