//! What the configuration says about names, as the service takes it.
//!
//! Invariant: a guest of the configuration is known by its name wherever DHCP puts it; what a guest calls itself comes after that.
//! Read first: [`gateway::dns::NetworkNames`].

use std::{collections::HashMap, io, net::IpAddr};

use gateway::dns::{LeasedName, NetworkId, NetworkNames};
use vswitch::LinkPort;
use wire::{Mac, NicId, Vid};

use super::{LeasedNames, Served, link};
use crate::{
    config::{Config, Mode, Nat, NatEngine, Network, Segment, Subnet},
    gateways::{self, Leases},
    place::Places,
};

/// The networks whose routers serve DNS, as they are made.
#[derive(Default)]
pub struct Networks {
    served: Vec<Served>,
    guests: Vec<Guests>,
}

/// Whose card is whose in a segment.
struct Guests {
    network: String,
    vlan: Option<Vid>,
    by_nic: HashMap<NicId, String>,
    by_mac: HashMap<Mac, String>,
}

impl Networks {
    /// One more segment, in which the router has these addresses; the router's end of its link.
    ///
    /// # Errors
    /// Too many open files.
    pub fn add(
        &mut self,
        config: &Config,
        places: &Places,
        segment: Segment<'_>,
        router: Vec<IpAddr>,
    ) -> io::Result<LinkPort> {
        let network = segment.network;
        let mtu = gateways::mtu(network);
        let (port, end) = link(mtu)?;
        let (by_nic, by_mac) = (HashMap::new(), HashMap::new());
        let mut guests = Guests { network: network.name.to_string(), vlan: segment.vid(), by_nic, by_mac };
        let (mut fixed, mut elsewhere) = (Vec::new(), Vec::new());
        for (port, (_, nic)) in config.ports.iter().zip(&places.ports) {
            if port.network != network.name || network.host_port().is_some_and(|host| host.name == port.name) {
                continue;
            }
            let guest = port.guest.to_string();
            if !segment.carries(port) {
                elsewhere.push(guest);
                continue;
            }
            guests.by_nic.insert(*nic, guest.clone());
            guests.by_mac.extend(port.mac.map(|mac| (mac, guest.clone())));
            let here = |address: &&IpAddr| network.segments().all(|other| is_of(&segment, &other, **address));
            fixed.push((guest, port.addresses.iter().filter(here).copied().collect()));
        }
        let names = NetworkNames {
            domain: Some(segment.search_domain()),
            host: host(network),
            forwards: network.mode == Mode::Nat,
            subnets: segment.subnets().filter_map(|subnet| Some((subnet.host(0)?, subnet.length()))).collect(),
            fixed,
            elsewhere,
            sees: Vec::new(),
            router: router.clone(),
        };
        self.served.push(Served { router, names, mtu, link: end });
        self.guests.push(guests);
        Ok(port)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.served.len()
    }

    /// Those from `first` on are routed to each other: names of one are told in the others.
    pub fn join(&mut self, first: usize) {
        let all: Vec<NetworkId> = (first..self.served.len()).map(|at| NetworkId(at as u16)).collect();
        for (at, served) in self.served.iter_mut().enumerate().skip(first) {
            served.names.sees = all.iter().copied().filter(|other| usize::from(other.0) != at).collect();
        }
    }

    /// What the service is started with.
    pub fn finish(self, leases: Leases) -> (Vec<Served>, LeasedNames) {
        let guests = self.guests;
        let names = move |at: usize| {
            let Some(guests) = guests.get(at) else { return Vec::new() };
            let mut names = Vec::new();
            for leased in leases.of_segment(&guests.network, guests.vlan) {
                let by_nic = leased.nic.and_then(|nic| guests.by_nic.get(&nic));
                let (address, holder) = (leased.address, leased.mac);
                if let Some(guest) = by_nic.or_else(|| guests.by_mac.get(&leased.mac)) {
                    names.push(LeasedName { name: guest.clone(), address, holder, declared: true });
                }
                if let Some(name) = &leased.name {
                    names.push(LeasedName { name: name.to_string(), address, holder, declared: false });
                }
            }
            names
        };
        (self.served, Box::new(names))
    }
}

/// Whether a guest that is in `segment` has `address` there, as far as subnets tell: it is not of that of `other`, which a trunk may carry, too.
fn is_of(segment: &Segment<'_>, other: &Segment<'_>, address: IpAddr) -> bool {
    let one = Subnet::of(address, if address.is_ipv4() { 32 } else { 128 });
    other.vid() == segment.vid() || !other.subnets().any(|subnet| subnet.overlaps(one))
}

/// Where guests reach the host, from every segment: by the router's addresses in the untagged one, or by its own.
fn host(network: &Network) -> Vec<IpAddr> {
    let untagged = Segment { network, vlan: None };
    match (network.mode, &network.nat) {
        (Mode::Nat, Some(Nat { engine: NatEngine::Sockets { host_access: true }, .. })) => untagged.router().collect(),
        (Mode::HostOnly, _) => network.subnet.and_then(|subnet| subnet.host(1)).into_iter().collect(),
        _ => Vec::new(),
    }
}
