//! ICMP echo without privilege: whether ping sockets may be made here.
//!
//! A ping socket is a [`Datagrams`] of kind [`Kind::Ping4`] or [`Kind::Ping6`]. The kernel gives them to whose group is in the range
//! net.ipv4.ping_group_range (which is for IPv6, too); many hosts leave it empty. Read first: icmp(7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::udp::{Datagrams, Kind};

/// Whether this process may send ICMP echo requests (of IPv6: ICMPv6) by ping sockets.
pub fn ping_permitted(v6: bool) -> bool {
    let (kind, any) = match v6 {
        true => (Kind::Ping6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        false => (Kind::Ping4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    Datagrams::open(kind, SocketAddr::new(any, 0), 64, 0).is_ok()
}
