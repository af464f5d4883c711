//! What a segment's router answers itself: ARP, ICMP, IPv6 neighbour discovery and router advertisements, DHCP.
//!
//! Read in this order: [`config`] (who the router is), [`Gateway`] (one frame in, at most one frame out: `decide`, then `commit`), then
//! `arp`, `ipv4`, `ipv6` and [`dhcp`] for what each protocol asks, and [`GatewayPort`], which makes it a port of the bridge. The core has no
//! socket and no clock: it is given bytes, the time and where a frame came from, and returns a [`wire::Verdict`] and bytes.
//!
//! ```text
//!   bridge -> GatewayPort -> Leg -> Gateway::decide(&self) -> Gateway::commit(&mut self) -> cx.answers -> bridge
//!                             |\-> the way out, a port behind it, for what goes elsewhere; back by its receive
//!                             |\-> the service port, for name queries; back by its receive
//!                              \-> another leg, for what goes into its segment
//! ```

mod arp;
mod book;
mod bytes;
pub mod config;
mod crossing;
pub mod dhcp;
pub mod dhcp6;
pub mod dns;
mod errors;
mod gateway;
mod head;
mod held;
mod icmp;
mod ipv4;
mod ipv6;
mod leg;
mod ndisc;
mod neighbours;
mod offers;
mod packet;
mod port;
mod ra;
mod straight;
mod way_out;

pub use book::{LeaseBook, LeaseSender, lease_book};
pub use config::{Config, ConfigError, Elsewhere, RouterV4, RouterV6};
pub use gateway::{Decision, Gateway, Incoming, Interest};
pub use leg::Leg;
pub use neighbours::Neighbour;
pub use port::GatewayPort;
