//! What the configuration says about names, as the service takes it.
//!
//! Invariant: a guest of the configuration is known by its name wherever DHCP puts it; what a guest calls itself comes after that.
//! Read first: [`gateway::dns::NetworkNames`].

use std::{collections::HashMap, io, net::IpAddr};

use gateway::dns::{LeasedName, NetworkId, NetworkNames};
use vswitch::LinkPort;
use wire::{Mac, NicId};

use super::{LeasedNames, Served, link};
use crate::{
    config::{Config, Mode, Nat, NatEngine, Network},
    gateways::{self, Leases},
    place::Places,
};

/// The networks whose routers serve DNS, as they are made.
#[derive(Default)]
pub struct Networks {
    served: Vec<Served>,
    guests: Vec<Guests>,
}

/// Whose card is whose in a network.
struct Guests {
    network: String,
    by_nic: HashMap<NicId, String>,
    by_mac: HashMap<Mac, String>,
}

impl Networks {
    /// One more, whose router has these addresses; the router's end of its link.
    ///
    /// # Errors
    /// Too many open files.
    pub fn add(
        &mut self,
        config: &Config,
        places: &Places,
        network: &Network,
        router: Vec<IpAddr>,
    ) -> io::Result<LinkPort> {
        let mtu = gateways::mtu(network);
        let (port, end) = link(mtu)?;
        let mut guests = Guests { network: network.name.to_string(), by_nic: HashMap::new(), by_mac: HashMap::new() };
        let mut fixed = Vec::new();
        for (port, (_, nic)) in config.ports.iter().zip(&places.ports) {
            if port.network != network.name || network.host_port().is_some_and(|host| host.name == port.name) {
                continue;
            }
            let guest = port.guest.to_string();
            guests.by_nic.insert(*nic, guest.clone());
            guests.by_mac.extend(port.mac.map(|mac| (mac, guest.clone())));
            fixed.push((guest, port.addresses.clone()));
        }
        let names = NetworkNames {
            domain: Some(network.search_domain()),
            host: host(network, &router),
            forwards: network.mode == Mode::Nat,
            subnets: [network.subnet, network.subnet6]
                .into_iter()
                .flatten()
                .filter_map(|subnet| Some((subnet.host(0)?, subnet.length())))
                .collect(),
            fixed,
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
            for leased in leases.of(&guests.network) {
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

/// Where guests reach the host.
fn host(network: &Network, router: &[IpAddr]) -> Vec<IpAddr> {
    match (network.mode, &network.nat) {
        (Mode::Nat, Some(Nat { engine: NatEngine::Sockets { host_access: true }, .. })) => {
            let link_local =
                |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
            router.iter().copied().filter(|address| !link_local(address)).collect()
        }
        (Mode::HostOnly, _) => network.subnet.and_then(|subnet| subnet.host(1)).into_iter().collect(),
        _ => Vec::new(),
    }
}
