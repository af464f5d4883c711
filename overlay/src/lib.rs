//! One Ethernet segment over many hosts: frames of a network travel between hosts in UDP packets of the underlay.
//!
//! ```text
//!   bridge --transmit--> TunnelPort --Vtep: which endpoint?--> encapsulate --> underlay
//!          <--answers---            <--Vtep: whose? may it?--- decapsulate <--
//!
//!   underlay: sockets of the host          sendmmsg at the turn's release, recvmmsg in receive
//!         or such a socket, under seal      WireGuard's packets, each with one of the tunnel's in it
//!         or the bridge of another network  answers, and transmit: frames to and from its uplink
//! ```
//!
//! Read in this order: [`encap`] (the eight bytes between), [`remotes`] (the endpoints of other hosts), [`neighbours`] (who has which IP
//! address), [`resolution`] (the messages that say so), [`vtep`] (what is decided, without I/O), [`tunnel`] (the port that does it), `tunnel/sockets.rs`, `tunnel/sealed.rs` and `station.rs` (what carries its
//! packets), [`control`] (what it is asked and told while it runs), [`locals`] (what it tells control of this host's stations).
//!
//! The words are those of RFC 7348: a *VTEP* is a tunnel endpoint, a *VNI* the number of a network in the underlay. A *station* is who has a MAC
//! address; the *underlay* is the network that the hosts have in common.

pub mod control;
pub mod encap;
mod envelope;
pub mod keys;
pub mod locals;
pub mod neighbours;
pub mod remotes;
pub mod resolution;
mod station;
pub mod tunnel;
pub mod vtep;

pub use encap::Encapsulation;
pub use neighbours::{Neighbour, Neighbours, Whence};
pub use remotes::{Remote, RemoteId};
pub use station::StationConfig;
pub use tunnel::{Seal, TunnelConfig, TunnelPort};
pub use vtep::{NetworkConfig, NetworkId, Vtep, VtepConfig, VtepError};
