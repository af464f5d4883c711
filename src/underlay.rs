//! What the underlay beneath a tunnel endpoint takes, as this host knows it: [`mtu()`], [`path_mtu`].
//!
//! Invariant: nothing is sent and nothing is changed. Read first: rtnetlink(7), `sys::inet::udp`.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use sys::inet::udp;

use crate::{
    bridged::{
        address,
        link::{self, Link},
        netlink::Netlink,
    },
    config::Vtep,
    gateways::MTU,
    mtu,
};

/// The longest IP packet that an endpoint on a socket can send to whomever: the MTU of the interface that has its address. An address of the loopback device, as
/// hosts of a routed fabric have it, leaves by other interfaces; then that of the default route counts, 1500 at most. So it does where there is no such address (yet).
pub fn mtu(vtep: &Vtep) -> u16 {
    let interface = interface_of(vtep.local).ok().flatten().filter(|link| link.name != "lo");
    match interface {
        Some(link) => u16::try_from(link.mtu).unwrap_or(u16::MAX),
        None => mtu::of_default_route().unwrap_or(MTU),
    }
}

/// Whether a socket of this host can have an address.
///
/// # Errors
/// What else stands in its way, as bind(2) reports it.
pub fn is_here(address: IpAddr) -> io::Result<bool> {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

/// Those of these addresses that interfaces of this host have; none where the kernel does not say.
pub fn ours(addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let all = Netlink::open().and_then(|mut netlink| address::all(&mut netlink)).unwrap_or_default();
    all.into_iter().map(|(address, _)| address).filter(|address| addresses.contains(address)).collect()
}

/// The interface that has an address.
fn interface_of(address: IpAddr) -> io::Result<Option<Link>> {
    let mut netlink = Netlink::open()?;
    let Some(index) = address::index_of(&mut netlink, address)? else { return Ok(None) };
    Ok(link::all(&mut netlink)?.into_iter().find(|link| link.index == index))
}

/// The longest IP packet that the underlay's route to an endpoint takes, as far as this host knows.
///
/// # Errors
/// See [`udp::path_mtu`].
pub fn path_mtu(local: IpAddr, port: u16, peer: IpAddr) -> io::Result<u16> {
    udp::path_mtu(local, SocketAddr::new(peer, port))
}
