//! The engines of address translation, made of the configuration.
//!
//! Invariant: an engine is made whole or not at all. Read first: `nat`'s crate page.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nat::{
    Family, Inbox,
    port::{PacketPort, PortConfig, PortConfigV6},
    sockets::{SocketsConfig, SocketsPort},
};
use sys::{
    packet::{PacketSocket, Takes},
    tap::Tap,
};
use vswitch::host::{tap::TapPort, uplink::UplinkPort};
use wire::{Mac, Port};

use crate::{
    config::{Config, Mode, Name, Nat, NatEngine, Network, Subnet, Via},
    gateways, host, mtu,
    nat::{Outside, WayOut},
    own_mac, seed,
};

/// Descriptors that the rest of the process needs.
const RESERVE: usize = 512;

/// The engine that `nat` asks for.
///
/// # Errors
/// What it needs cannot be had.
pub fn make(config: &Config, network: &Network, nat: &Nat, inbox: Inbox) -> io::Result<WayOut> {
    match &nat.engine {
        NatEngine::Sockets { host_access } => sockets(config, network, *host_access, inbox),
        NatEngine::Packet { via, outside, prefix6, next_hop, mappings } => {
            let hops = (next_hop.iter().find_map(v4), next_hop.iter().find_map(v6));
            let mac = outside_mac(&config.host.name, network);
            let port = packet(config, network, mac, (outside, *prefix6), hops, *mappings, inbox)?;
            Ok(WayOut { port: Box::new(port), outside: Some(self::outside(mac, via, outside)) })
        }
    }
}

/// The address that a network's engine has outside. Other hosts there may have networks of the same name.
fn outside_mac(host: &str, network: &Network) -> Mac {
    own_mac::of(own_mac::For::Outside, &format!("{host}/{}", network.name))
}

fn packet(
    config: &Config,
    network: &Network,
    mac: Mac,
    (pool, prefix6): (&[IpAddr], Option<Subnet>),
    (hop, hop6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
    mappings: u32,
    inbox: Inbox,
) -> io::Result<PacketPort> {
    let (router4, router6) = routers(network);
    let guests = config.ports_of(&network.name).count().max(1);
    let table = table(pool.iter().filter_map(v4).collect(), mappings, guests)?;
    // Without a router outside, everything there is a neighbour.
    let prefix = if hop.is_some() { 32 } else { 0 };
    let mut made = PortConfig::new(mac, table, prefix, hop, router4.unwrap_or(Ipv4Addr::UNSPECIFIED));
    made.inside_mtu = gateways::mtu(network);
    made.mtu = outside_mtu(config, network);
    made.inside = network.segments().filter_map(|segment| inside(segment.subnet()?, v4)).collect();
    let pool6: Vec<Ipv6Addr> = pool.iter().filter_map(v6).collect();
    let mut inside6 = network.segments().filter_map(|segment| inside(segment.subnet6()?, v6));
    if let (Some(router), Some(first)) = (router6, inside6.next()) {
        let outside = prefix6.and_then(|prefix| v6(&prefix.host(0)?));
        if !pool6.is_empty() {
            let mut shared = PortConfigV6::shared(self::table(pool6, mappings, guests)?, hop6, router);
            shared.inside.push(first);
            shared.inside.extend(inside6);
            made.v6 = Some(shared);
        } else if let Some(outside) = outside {
            let ends = (first.0, outside, first.1.into());
            made.v6 = Some(PortConfigV6::new(mac, ends, hop6, router).map_err(io::Error::other)?);
        }
    }
    Ok(PacketPort::new(made).map_err(io::Error::other)?.with_inbox(inbox))
}

/// The longest packet that a packet engine sends outside.
fn outside_mtu(config: &Config, network: &Network) -> u16 {
    let Some(nat) = &network.nat else { return gateways::MTU };
    let outside = match &nat.engine {
        NatEngine::Packet { via: Via::Network(name), .. } => {
            config.networks.iter().find(|network| network.name == *name).map(gateways::mtu)
        }
        _ => mtu::of_way_out(nat),
    };
    outside.unwrap_or(gateways::MTU)
}

/// A subnet of one version of IP: its first address, and the bits that are the same in all.
fn inside<A>(subnet: Subnet, of: fn(&IpAddr) -> Option<A>) -> Option<(A, u8)> {
    Some((of(&subnet.host(0)?)?, subnet.length()))
}

/// The configuration of a table that `guests` ports share.
fn table<A: Family>(pool: Vec<A>, mappings: u32, guests: usize) -> io::Result<nat::Config<A>> {
    let table = nat::Config::new(pool, seed::random()?);
    let mappings = mappings as usize;
    Ok(nat::Config { mappings, quota: mappings / guests, ..table })
}

fn v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    }
}

/// What the outside of a network's packet engine is made of.
fn outside(mac: Mac, via: &Via, pool: &[IpAddr]) -> Outside {
    let (of, uplink): (Option<Name>, Option<Via>) = match via {
        Via::Network(name) => (Some(name.clone()), None),
        Via::Uplink(_) | Via::Tap(_) => (None, Some(via.clone())),
    };
    let addresses = if of.is_some() { pool.to_vec() } else { Vec::new() };
    Outside { mac, addresses, network: of, uplink }
}

/// The port that an uplink is, for an engine with this address.
///
/// # Errors
/// It is not there, or may not be opened.
pub fn uplink(via: &Via, mac: Mac) -> io::Result<Box<dyn Port>> {
    match via {
        Via::Uplink(name) => {
            let socket = PacketSocket::open(name.as_str(), None, Takes::Station(mac.bytes()));
            Ok(Box::new(UplinkPort::new(socket.map_err(io::Error::other)?)))
        }
        Via::Tap(name) => {
            let Tap { device, queues } = Tap::open(name.as_str(), 1, None).map_err(io::Error::other)?;
            device.set_up(true).map_err(io::Error::other)?;
            let queue = queues.into_iter().next().ok_or(io::ErrorKind::NotFound)?;
            Ok(Box::new(TapPort::new(&device, queue, 0)))
        }
        Via::Network(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// The addresses of a network's router.
fn routers(network: &Network) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut router4, mut router6) = (None, None);
    for subnet in [network.subnet, network.subnet6].into_iter().flatten() {
        match subnet.host(network.router_number()) {
            Some(IpAddr::V4(address)) => router4 = Some(address),
            Some(IpAddr::V6(address)) => router6 = Some(address),
            None => {}
        }
    }
    (router4, router6)
}

fn sockets(config: &Config, network: &Network, host_access: bool, inbox: Inbox) -> io::Result<WayOut> {
    let (router4, router6) = routers(network);
    let mut made = SocketsConfig::new(router4, router6, seed::random()?);
    made.mtu = gateways::mtu(network);
    made.host_addresses = host::own_prefixes();
    if host_access {
        made.host = Some((router4.unwrap_or(Ipv4Addr::UNSPECIFIED), router6.unwrap_or(Ipv6Addr::UNSPECIFIED)));
    }
    let engines = config.networks.iter().filter(|network| network.mode == Mode::Nat).count().max(1);
    let guests = config.ports_of(&network.name).count().max(1);
    made.descriptors = host::descriptors().saturating_sub(RESERVE) / engines;
    made.descriptor_quota = made.descriptors / guests;
    Ok(WayOut { port: Box::new(SocketsPort::new(made, inbox)?), outside: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Surroundings};

    #[test]
    fn two_hosts_with_one_file_have_addresses_of_their_own_outside() {
        let around = Surroundings { root: true, ..Surroundings::default() };
        let config = config::parse("[networks.lan]\n[networks.dmz]\n", "t.toml".as_ref(), &around).unwrap();
        let [lan, dmz] = config.networks.as_slice() else { panic!("two networks") };
        let macs = [outside_mac("a", lan), outside_mac("b", lan), outside_mac("a", dmz)];
        assert!(macs[0] != macs[1] && macs[0] != macs[2] && macs[1] != macs[2], "{macs:?}");
        assert_eq!(macs[0], outside_mac("a", lan), "and the same after every start");
    }
}
