//! The NAT of Trunkline: two engines that lie behind a network's router, and what control tells them ([`control`]).
//!
//! [`sockets`]: guests' packets end here and go on from sockets of the host; a crate page of its own is there. The rest of this page is about the
//! other, which rewrites packets: one bounded [`NatTable`] of mappings, and [`PacketPort`] on it, without sockets, clock or I/O.
//! A table is of one version of IP ([`Family`]), IPv4 where none is named; the port has one of each that has addresses outside.
//! Read in this order: [`config`] (what may be set), [`table`] (who holds what, and for how long), [`decide`] (what is to be done with a
//! packet), [`rewrite`] (how its head is changed), `known.rs` (both at once, for most packets), [`port`] (who forwards). [`nptv6`] is a translation of its
//! own that keeps nothing.
//!
//! ```text
//!   frame's head --decide(&table)--> Decision --commit(&mut table, head)--> the head rewritten, the mapping renewed
//!   inside  {NIC, address, port} --hash--> record        a record is one cache line (IPv6: two): mapping, session or permit
//!   outside {address, port}      --array--> mapping, then its inside endpoint --hash--> session or permit
//! ```
//!
//! The words are those of RFC 4787: an *endpoint* is an address and a port (of ICMP queries, the identifier); a *mapping* joins an inside
//! endpoint to an outside one, whoever is spoken to. A *session* is one TCP connection through a mapping (RFC 5382), a *permit* says that a
//! mapping has sent to an address, and exists only where filtering is address-dependent.
//!
//! Who forwards asks [`NatTable::decide`] and, if it does as it is told, [`NatTable::commit`]; who only wants to know asks the first. The
//! table is told the time with every question and forgets by [`NatTable::sweep`], a few records at a time.

pub mod config;
pub mod control;
pub mod decide;
pub mod family;
mod foresee;
mod fragments;
mod holders;
mod index;
mod known;
pub mod nptv6;
mod packet;
pub mod port;
mod ports;
mod prefix;
pub mod publish;
mod record;
pub mod rewrite;
pub mod snapshot;
pub mod sockets;
mod stats;
pub mod table;
mod tcp;
mod unsolicited;

pub use config::{Config, ConfigError, Filtering, Lifetimes, Pooling};
pub use control::{Command, Inbox, Line, Publication, Remote, remote};
pub use decide::{Decision, Refusal, Translation};
pub use family::Family;
pub use nptv6::Nptv6;
pub use port::{ByV6, PacketPort, PortConfig, PortConfigError, PortConfigV6};
pub use prefix::Prefix;
pub use publish::{Forward, PublishError};
pub use record::{Endpoint, Protocol, Side, State};
pub use snapshot::{Entry, Kind, Snapshot};
pub use sockets::{SocketsConfig, SocketsPort};
pub use stats::NatStats;
pub use table::NatTable;
