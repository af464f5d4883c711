//! What ports are declared with: [`Claims`] of addresses, [`Addresses`] of one NIC, its [`Role`].
//!
//! Invariant: an address that an attached NIC was declared with is never learnt behind another NIC of the same segment, and nobody else speaks
//! for it by ARP or neighbour discovery, guarded or not. The check that a guarded port sends from its own MAC alone is one comparison
//! on the data path; these tables are asked only when an address is about to be learnt anew, and for ARP and neighbour discovery.
//! Read first: [`crate::decide`], then `inspect.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{Mac, NicId};

/// What may be expected of a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// No router advertisements, redirects or words of a DHCP server: from a guarded port, and from any where the segment has a router.
    #[default]
    Guest,
    /// Trusted with these, as the host is; others are not kept from them for its sake.
    Host,
    /// The segment's router, the only one to send these there. It passes packets of others on, so its IP sources are not checked.
    Router,
}

/// The addresses of one NIC.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) v4: Vec<Ipv4Addr>,
    /// Without the link-local ones; with a guard also those that are made of the MAC in the same prefixes.
    pub(crate) v6: Vec<Ipv6Addr>,
    /// The declared ones, and with a guard the one that is made of the MAC.
    pub(crate) link_local: Vec<Ipv6Addr>,
    /// Link-local addresses are declared, so no others are allowed.
    pub(crate) fixed_link_local: bool,
}

impl Addresses {
    pub(crate) fn new(declared: &[IpAddr], guard: Option<Mac>) -> Addresses {
        let mut all = Addresses::default();
        for address in declared {
            match address {
                IpAddr::V4(address) => all.v4.push(*address),
                IpAddr::V6(address) if address.is_unicast_link_local() => all.link_local.push(*address),
                IpAddr::V6(address) => all.v6.push(*address),
            }
        }
        all.fixed_link_local = !all.link_local.is_empty();
        if let Some(mac) = guard {
            all.link_local.push(mac.link_local());
            // Where a router tells guests to make addresses, they do so besides what they were given.
            let own: Vec<Ipv6Addr> = all.v6.iter().map(|address| mac.in_prefix(*address)).collect();
            own.into_iter().for_each(|address| {
                if !all.v6.contains(&address) {
                    all.v6.push(address)
                }
            });
        }
        all
    }

    fn all(&self) -> impl Iterator<Item = IpAddr> {
        let v6 = self.v6.iter().chain(&self.link_local).map(|address| IpAddr::V6(*address));
        self.v4.iter().map(|address| IpAddr::V4(*address)).chain(v6)
    }
}

/// Addresses and the NICs declared with them, ordered.
#[derive(Default)]
pub(crate) struct Claims {
    macs: Vec<(u64, NicId)>,
    addresses: Vec<(IpAddr, NicId)>,
}

impl Claims {
    /// `nic` was declared with `mac`.
    pub(crate) fn add(&mut self, mac: Mac, nic: NicId) {
        self.macs.push((mac.to_bits(), nic));
        self.macs.sort_unstable();
    }

    /// `nic` was declared with `addresses`.
    pub(crate) fn add_addresses(&mut self, addresses: &Addresses, nic: NicId) {
        self.addresses.extend(addresses.all().map(|address| (address, nic)));
        self.addresses.sort_unstable();
        self.addresses.dedup();
    }

    /// `nic` is gone.
    pub(crate) fn remove(&mut self, nic: NicId) {
        self.macs.retain(|(_, claimant)| *claimant != nic);
        self.remove_addresses(nic);
    }

    /// `nic` is declared with no IP address any more.
    pub(crate) fn remove_addresses(&mut self, nic: NicId) {
        self.addresses.retain(|(_, claimant)| *claimant != nic);
    }

    /// The NICs declared with an address, as [`Mac::to_bits`] has it.
    pub(crate) fn claimants(&self, mac: u64) -> impl Iterator<Item = NicId> {
        let from = self.macs.partition_point(|(claimed, _)| *claimed < mac);
        self.macs.iter().skip(from).take_while(move |(claimed, _)| *claimed == mac).map(|(_, nic)| *nic)
    }

    /// The NICs declared with an IP address.
    pub(crate) fn claimants_of(&self, address: IpAddr) -> impl Iterator<Item = NicId> {
        let from = self.addresses.partition_point(|(claimed, _)| *claimed < address);
        self.addresses.iter().skip(from).take_while(move |(claimed, _)| *claimed == address).map(|(_, nic)| *nic)
    }

    /// Whether anybody was declared with an IP address.
    pub(crate) fn has_addresses(&self) -> bool {
        !self.addresses.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_claimed_in_several_vlans() {
        let mac = |last| Mac::new([2, 0, 0, 0, 0, last]);
        let mut claims = Claims::default();
        for (last, nic) in [(3, 1), (1, 7), (3, 9), (2, 4)] {
            claims.add(mac(last), NicId(nic));
        }
        assert_eq!(claims.claimants(mac(3).to_bits()).collect::<Vec<_>>(), [NicId(1), NicId(9)]);
        claims.remove(NicId(1));
        assert_eq!(claims.claimants(mac(3).to_bits()).collect::<Vec<_>>(), [NicId(9)]);
        assert_eq!(claims.claimants(mac(4).to_bits()).count(), 0);
    }
}
