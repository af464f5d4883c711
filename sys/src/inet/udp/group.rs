//! Groups: sockets that hear what is sent to one ([`Datagrams::join`]), and by which interface others send to them ([`Datagrams::reach_groups`]).
//!
//! Invariant: a group is joined on the interface that has the address given, and nowhere else. The kernel tells routers and switches, by IGMP or MLD.
//! Read first: ip(7) on IP_ADD_MEMBERSHIP, ipv6(7) on IPV6_ADD_MEMBERSHIP, RFC 3493 section 5.2.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use super::{Datagrams, Kind};
use crate::call::check;

impl Datagrams {
    /// A socket that gets what is sent to a group and port on the interface that has the address `local`. Others of this host may join, too.
    ///
    /// # Errors
    /// `AddrNotAvailable` when no interface has the address; else what bind(2) and setsockopt(2) report.
    pub fn join(group: SocketAddr, local: IpAddr) -> io::Result<Datagrams> {
        let kind = if group.is_ipv4() { Kind::Udp4 } else { Kind::Udp6 };
        let socket = Datagrams::open_as(kind, group, (1, 0), true)?;
        match (group.ip(), local) {
            (IpAddr::V4(group), IpAddr::V4(local)) => {
                socket.give(libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &interface4(group, local))?;
            }
            (IpAddr::V6(group), IpAddr::V6(local)) => {
                let joined = libc::ipv6_mreq {
                    ipv6mr_multiaddr: libc::in6_addr { s6_addr: group.octets() },
                    ipv6mr_interface: interface6(local)?,
                };
                socket.give(libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, &joined)?;
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(socket)
    }

    /// What it sends to groups leaves by the interface that has the address `local`, with this TTL, and is not heard on this host.
    ///
    /// # Errors
    /// As [`Datagrams::join`].
    pub fn reach_groups(&self, local: IpAddr, ttl: u8) -> io::Result<()> {
        match local {
            IpAddr::V4(local) => {
                let interface = interface4(Ipv4Addr::UNSPECIFIED, local);
                self.give(libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &interface)?;
                self.set(libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, i32::from(ttl))?;
                self.set(libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 0)
            }
            IpAddr::V6(local) => {
                self.give(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, &interface6(local)?)?;
                self.set(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, i32::from(ttl))?;
                self.set(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 0)
            }
        }
    }

    fn give<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the value is valid to read for its length.
        check(unsafe { libc::setsockopt(self.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) })
            .map(drop)
    }
}

fn interface4(group: Ipv4Addr, local: Ipv4Addr) -> libc::ip_mreqn {
    let address = |address: Ipv4Addr| libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
    libc::ip_mreqn { imr_multiaddr: address(group), imr_address: address(local), imr_ifindex: 0 }
}

/// The number of the interface that has an address.
fn interface6(local: Ipv6Addr) -> io::Result<libc::c_uint> {
    if local.is_loopback() {
        return Ok(1);
    }
    let table = fs::read_to_string("/proc/net/if_inet6")?;
    let number = |line: &str| {
        let mut fields = line.split_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let index = libc::c_uint::from_str_radix(fields.next()?, 16).ok()?;
        (Ipv6Addr::from(address) == local).then_some(index)
    };
    table.lines().find_map(number).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}
