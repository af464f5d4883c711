//! [`SocketsConfig`]: what may be set about a socket engine.
//!
//! Read first: RFC 4787 sections 4 and 5, RFC 5508 section 3.2.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use crate::{config::Filtering, prefix::Prefix};

/// What a socket engine is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketsConfig {
    /// The router's IPv4 address inside: who errors of this host come from, and who clients of published ports are to guests.
    pub router4: Option<Ipv4Addr>,
    /// The router's IPv6 address inside, likewise.
    pub router6: Option<Ipv6Addr>,
    /// Addresses inside that mean this host's loopback. Nothing: guests reach neither this host's loopback nor its own addresses.
    pub host: Option<(Ipv4Addr, Ipv6Addr)>,
    /// The addresses that this host has at first; [`HostAddresses`](crate::Command::HostAddresses) tells of others.
    pub host_addresses: Vec<Prefix>,
    /// The longest IP packet of the segment inside, in bytes.
    pub mtu: u16,
    /// Whose datagrams are let in.
    pub filtering: Filtering,
    /// Try the inside port first (permitted by RFC 4787 REQ-3). Ports below 1024 are never taken.
    pub preserve_port: bool,
    /// How long a UDP endpoint keeps its socket without sending.
    pub udp: Duration,
    /// The same of one that has sent to well-known ports (below 1024) only.
    pub udp_well_known: Duration,
    /// The same of the identifier of a ping.
    pub icmp: Duration,
    /// How long a TCP connection may be silent; at least 2 hours and 4 minutes (RFC 5382 REQ-5).
    pub tcp_established: Duration,
    /// How long the host may take to connect; at least 4 minutes (RFC 5382 REQ-5).
    pub tcp_opening: Duration,
    /// UDP endpoints in all.
    pub udp_mappings: usize,
    /// UDP endpoints of one NIC.
    pub udp_quota: usize,
    /// Identifiers of pings in all.
    pub ping_mappings: usize,
    /// Identifiers of one NIC.
    pub ping_quota: usize,
    /// Descriptors that the engine may have open, published ports apart.
    pub descriptors: usize,
    /// Descriptors of one NIC.
    pub descriptor_quota: usize,
    /// System calls that a NIC's sockets are received from with in a turn.
    pub calls: u32,
    /// Must be unknown to guests.
    pub seed: u64,
}

impl SocketsConfig {
    /// The defaults, for a router with these addresses.
    pub fn new(router4: Option<Ipv4Addr>, router6: Option<Ipv6Addr>, seed: u64) -> SocketsConfig {
        let seconds = Duration::from_secs;
        SocketsConfig {
            router4,
            router6,
            host: None,
            host_addresses: Vec::new(),
            mtu: 1500,
            filtering: Filtering::default(),
            preserve_port: true,
            udp: seconds(300),
            udp_well_known: seconds(120),
            icmp: seconds(60),
            tcp_established: seconds(2 * 3600 + 4 * 60),
            tcp_opening: seconds(240),
            udp_mappings: 16_384,
            udp_quota: 4096,
            ping_mappings: 4096,
            ping_quota: 256,
            descriptors: 16_384,
            descriptor_quota: 8192,
            calls: 64,
            seed,
        }
    }
}
