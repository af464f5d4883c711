//! The engines of address translation, made of the configuration.
//!
//! Invariant: an engine is made whole or not at all. Read first: `nat`'s crate page.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nat::{
    Inbox,
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
    gateways, hash, host,
    nat::{Outside, WayOut},
    seed,
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
            let v4 = |address: &IpAddr| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            };
            let hop6 = next_hop.iter().find_map(|hop| match hop {
                IpAddr::V6(hop) => Some(*hop),
                IpAddr::V4(_) => None,
            });
            let hops = (next_hop.iter().find_map(v4), hop6);
            let mac = outside_mac(&config.host.name, network);
            packet(config, network, mac, (outside.clone(), *prefix6), hops, *mappings, inbox)
                .and_then(|port| Ok(WayOut { port: Box::new(port), outside: Some(self::outside(mac, via, outside)?) }))
        }
    }
}

/// The address that a network's engine has outside. Other hosts there may have networks of the same name.
fn outside_mac(host: &str, network: &Network) -> Mac {
    let [.., a, b, c] = hash::of(&format!("{host}/{}", network.name)).to_be_bytes();
    Mac::new([0x02, 0x74, 0x6e, a, b, c])
}

fn packet(
    config: &Config,
    network: &Network,
    mac: Mac,
    (pool, prefix6): (Vec<Ipv4Addr>, Option<Subnet>),
    (hop, hop6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
    mappings: u32,
    inbox: Inbox,
) -> io::Result<PacketPort> {
    let (router4, router6) = routers(network);
    let mut table = nat::Config::new(pool, seed::random()?);
    table.mappings = mappings as usize;
    table.quota = table.mappings / config.ports_of(&network.name).count().max(1);
    // Without a router outside, everything there is a neighbour.
    let prefix = if hop.is_some() { 32 } else { 0 };
    let mut made = PortConfig::new(mac, table, prefix, hop, router4.unwrap_or(Ipv4Addr::UNSPECIFIED));
    made.inside_mtu = gateways::mtu(network);
    made.inside = network.subnet.and_then(inside).into_iter().collect();
    if let (Some(prefix), Some(subnet), Some(router)) = (prefix6, network.subnet6, router6)
        && let (Some(IpAddr::V6(outside)), Some(IpAddr::V6(inside))) = (prefix.host(0), subnet.host(0))
    {
        let v6 = PortConfigV6::new(mac, (inside, outside, subnet.length().into()), hop6, router);
        made.v6 = Some(v6.map_err(io::Error::other)?);
    }
    Ok(PacketPort::new(made).map_err(io::Error::other)?.with_inbox(inbox))
}

fn inside(subnet: Subnet) -> Option<(Ipv4Addr, u8)> {
    match subnet.host(0)? {
        IpAddr::V4(address) => Some((address, subnet.length())),
        IpAddr::V6(_) => None,
    }
}

/// What the outside of a network's packet engine is made of.
fn outside(mac: Mac, via: &Via, pool: &[Ipv4Addr]) -> io::Result<Outside> {
    let (of, uplink): (Option<Name>, Option<Box<dyn Port>>) = match via {
        Via::Network(name) => (Some(name.clone()), None),
        Via::Uplink(name) => {
            let socket = PacketSocket::open(name.as_str(), None, Takes::Station(mac.bytes()));
            (None, Some(Box::new(UplinkPort::new(socket.map_err(io::Error::other)?))))
        }
        Via::Tap(name) => {
            let Tap { device, queues } = Tap::open(name.as_str(), 1, None).map_err(io::Error::other)?;
            device.set_up(true).map_err(io::Error::other)?;
            let queue = queues.into_iter().next().ok_or(io::ErrorKind::NotFound)?;
            (None, Some(Box::new(TapPort::new(&device, queue, 0))))
        }
    };
    let addresses = if of.is_some() { pool.iter().copied().map(IpAddr::V4).collect() } else { Vec::new() };
    Ok(Outside { mac, addresses, network: of, uplink })
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
