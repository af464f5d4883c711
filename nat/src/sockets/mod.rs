//! The socket engine: guests' packets end here and go on from sockets of this host, with no privilege and under the host's own address.
//!
//! ```text
//!   router --transmit--> SocketsPort --whole packets, by protocol--> Udp, Ping, Tcp --sendmmsg, sendmsg--> sockets of the host
//!          <--receive---    Hub.out   <------------- frames -------- Udp, Ping, Tcp <--recvmmsg, peek--   (epoll tells which)
//! ```
//!
//! Read in this order: [`config`] (what may be set), [`hub`] (what the parts share), [`port`] (a turn), [`udp`], [`ping`], [`tcp`]. What the parts are
//! made of: [`packet`] (a guest's packet), [`mappings`] (who holds what, and for how long), [`inward`] and [`errors`] (frames for guests),
//! [`endpoints`] (their sockets), [`doors`] (published ports), [`wire::reassembly`].
//!
//! The contract between the port and a part (UDP, ICMP, TCP): `leave` takes a whole packet of its protocol; `flush` is called at the end of every burst;
//! `ready` when a socket registered with [`Hub::watch`] has something; `sweep` now and then; `deadline` before a sleep. Frames for guests go into
//! `Hub::out`, which lives one turn.

pub mod config;
mod doors;
mod endpoints;
mod errors;
mod hub;
mod inward;
mod mappings;
mod packet;
mod ping;
pub mod port;
mod tcp;
mod udp;

pub use config::SocketsConfig;
use hub::{Hub, Token};
pub use port::SocketsPort;
