//! [`Guests`]: behind which MAC address a guest's address was seen last.
//!
//! Invariant: bounded: a NIC has [`PLACES`] addresses of each family, and what it claims is believed for its own packets only. What is not
//! known here the router finds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::NicId;

/// Addresses remembered of a NIC.
const PLACES: usize = 8;

#[derive(Clone, Copy)]
struct Places<A> {
    known: [(A, u64); PLACES],
    next: usize,
}

impl<A: Copy + PartialEq> Places<A> {
    #[inline]
    fn learn(&mut self, address: A, mac: u64) {
        match self.known.iter_mut().find(|(of, mac)| *of == address && *mac != 0) {
            Some((_, known)) => *known = mac,
            None => {
                if let Some(place) = self.known.get_mut(self.next) {
                    *place = (address, mac);
                }
                self.next = (self.next + 1) % PLACES;
            }
        }
    }

    #[inline]
    fn find(&self, address: A) -> u64 {
        self.known.iter().find(|(of, _)| *of == address).map_or(0, |(_, mac)| *mac)
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Guests {
    v4: Vec<Places<Ipv4Addr>>,
    v6: Vec<Places<Ipv6Addr>>,
}

impl Guests {
    /// NICs up to `nic` may be heard of from here on. Allocates.
    pub(super) fn add(&mut self, nic: NicId) {
        let empty = Places { known: [(Ipv4Addr::UNSPECIFIED, 0); PLACES], next: 0 };
        let empty6 = Places { known: [(Ipv6Addr::UNSPECIFIED, 0); PLACES], next: 0 };
        if self.v4.len() <= nic.index() {
            self.v4.resize(nic.index() + 1, empty);
            self.v6.resize(nic.index() + 1, empty6);
        }
    }

    /// The address is behind this MAC address ([`wire::Mac::to_bits`]); false when the NIC was not added.
    #[inline]
    pub(super) fn learn(&mut self, nic: NicId, address: Ipv4Addr, mac: u64) -> bool {
        self.v4.get_mut(nic.index()).map(|places| places.learn(address, mac)).is_some()
    }

    /// As [`Guests::learn`].
    pub(super) fn learn6(&mut self, nic: NicId, address: Ipv6Addr, mac: u64) -> bool {
        self.v6.get_mut(nic.index()).map(|places| places.learn(address, mac)).is_some()
    }

    /// The MAC address of an address, or zero.
    #[inline]
    pub(super) fn find(&self, nic: NicId, address: Ipv4Addr) -> u64 {
        self.v4.get(nic.index()).map_or(0, |places| places.find(address))
    }

    /// As [`Guests::find`].
    pub(super) fn find6(&self, nic: NicId, address: Ipv6Addr) -> u64 {
        self.v6.get(nic.index()).map_or(0, |places| places.find(address))
    }

    /// The one NIC that has an address; nothing when there are none or several.
    pub(super) fn whose(&self, address: IpAddr) -> Option<NicId> {
        match address {
            IpAddr::V4(address) => only(&self.v4, address),
            IpAddr::V6(address) => only(&self.v6, address),
        }
    }
}

fn only<A: Copy + PartialEq>(all: &[Places<A>], address: A) -> Option<NicId> {
    let mut whose = all.iter().enumerate().filter(|(_, places)| places.find(address) != 0);
    let (nic, _) = whose.next()?;
    whose.next().is_none().then_some(NicId(nic as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_remembers_a_few_and_not_those_of_others() {
        let mut guests = Guests::default();
        let address = |n| Ipv4Addr::new(10, 0, 0, n);
        assert!(!guests.learn(NicId(1), address(2), 7));
        guests.add(NicId(1));
        for n in 2..30 {
            assert!(guests.learn(NicId(1), address(n), u64::from(n)));
            assert_eq!(guests.find(NicId(1), address(n)), u64::from(n));
        }
        assert_eq!((guests.find(NicId(1), address(2)), guests.find(NicId(0), address(29))), (0, 0));
        assert!(guests.learn(NicId(0), address(29), 5));
        assert_eq!((guests.find(NicId(1), address(29)), guests.find(NicId(0), address(29))), (29, 5));
        assert_eq!((guests.whose(address(28).into()), guests.whose(address(29).into())), (Some(NicId(1)), None));
    }
}
