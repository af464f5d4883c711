//! The engines of address translation, made of the configuration.
//!
//! Invariant: an engine is made whole or not at all. Read first: `nat`'s crate page.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nat::{
    Inbox,
    sockets::{SocketsConfig, SocketsPort},
};

use crate::{
    config::{Config, Mode, Nat, NatEngine, Network},
    gateways, host,
    nat::WayOut,
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
        NatEngine::Packet { .. } => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn sockets(config: &Config, network: &Network, host_access: bool, inbox: Inbox) -> io::Result<WayOut> {
    let (mut router4, mut router6) = (None, None);
    for subnet in [network.subnet, network.subnet6].into_iter().flatten() {
        match subnet.host(network.router_number()) {
            Some(IpAddr::V4(address)) => router4 = Some(address),
            Some(IpAddr::V6(address)) => router6 = Some(address),
            None => {}
        }
    }
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
