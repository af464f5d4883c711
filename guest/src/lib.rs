//! What a built-in guest does: it answers ARP, ping, UDP and TCP echo, takes a DHCP lease, fetches URLs, and sends and counts load.
//!
//! The same code runs in two places: as a freestanding program in a virtual machine (`guest/bare`), and as a thread where there is no
//! virtual machine to be had. What differs is the [`Platform`]. Invariant: no I/O and no clock but through the platform; what comes from
//! the network or the console is parsed at the edge, and nothing of it can end the guest.
//!
//! Read in this order: [`Platform`], [`run`](Guest::run), `clients.rs` (one function a command), `load.rs`.
//!
//! | command | does |
//! | --- | --- |
//! | `address A/LEN [via=A] [vlan=N]` | gives the NIC an address, a default route, and a VLAN tag that its frames bear |
//! | `dhcp [ms=N]` | asks for a lease and takes it |
//! | `ping A [count=N] [ms=N]` | sends echo requests, one after the other |
//! | `udp A:PORT [bytes=N] [ms=N]` | sends a datagram to an echo server and compares what comes back |
//! | `tcp A:PORT [bytes=N] [ms=N]` | the same with a stream |
//! | `fetch A:PORT [path=P] [ms=N]` | fetches a document by HTTP |
//! | `source to=MAC ...` | sends load, see `load.rs` |
//! | `sink` / `sink clear` | tells what load came in / begins anew |
//! | `off` | ends the guest |
//!
//! A command is one line, and so is its reply: `ok key=value ...` or `no REASON`.

#![no_std]

extern crate alloc;

mod clients;
mod command;
mod device;
mod guest;
mod load;
mod platform;

pub use command::{Command, CommandError};
pub use guest::{Ended, Guest};
pub use load::{DISCARD, Sink};
pub use platform::{Header, MTU, Mac, Platform};
