//! What a tunnel endpoint is configured with: [`VtepConfig`], [`NetworkConfig`], and what can be wrong with them, [`VtepError`].
//!
//! Invariant: plain data. Read first: [`super`].

use std::{net::IpAddr, sync::Arc, time::Duration};

use wire::Vni;

use crate::encap::Encapsulation;

/// What a network is to a tunnel endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its identifier in the underlay.
    pub vni: Vni,
    /// The endpoints that it stretches to.
    pub peers: Arc<[IpAddr]>,
    /// A group of the underlay that frames to everybody go to, which endpoints join, in place of each of these. Who speaks in it is heard.
    pub group: Option<IpAddr>,
    /// Where stations are is learnt from what comes; false: only control says so.
    pub learning: bool,
    /// Packets of endpoints that are no peers are taken, too.
    pub anyone: bool,
    /// Guests that ask for a neighbour who is known behind an endpoint are answered here (ARP and ND suppression).
    pub suppress: bool,
}

/// A tunnel endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VtepConfig {
    /// Its address in the underlay.
    pub local: IpAddr,
    /// UDP port of the underlay that packets are sent to and come in at: the tunnel's, under seal WireGuard's ([`crate::Seal`] has the one inside).
    pub port: u16,
    /// How frames are wrapped.
    pub encapsulation: Encapsulation,
    /// Packets are sealed, and so longer.
    pub sealed: bool,
    /// Its networks.
    pub networks: Vec<NetworkConfig>,
    /// The longest IP packet of the underlay until an endpoint's path is known, in bytes.
    pub mtu: u16,
    /// Stations remembered at most, over all networks.
    pub stations: usize,
    /// How long a station is remembered that is silent.
    pub ageing: Duration,
    /// A random number that guests and endpoints cannot know.
    pub seed: u64,
}

/// Why an endpoint cannot be as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VtepError {
    /// One VNI for two networks.
    #[error("VNI {0} is given twice; each network of a tunnel endpoint needs one of its own")]
    Twice(Vni),
    /// A peer that is the endpoint itself.
    #[error("peer {0} is the tunnel endpoint itself; name the other hosts only")]
    Ourselves(IpAddr),
    /// A peer of the other version of IP.
    #[error("peer {peer} cannot be reached from {local}: one is an IPv4, the other an IPv6 address")]
    Family {
        /// The peer.
        peer: IpAddr,
        /// The endpoint's own address.
        local: IpAddr,
    },
    /// No address of one host.
    #[error("{0} is not the address of one host")]
    Address(IpAddr),
    /// No group.
    #[error("{0} is not the address of a group of hosts")]
    Group(IpAddr),
    /// Too many networks or endpoints.
    #[error("too many {0}; a tunnel endpoint has at most {1}")]
    TooMany(&'static str, usize),
}
