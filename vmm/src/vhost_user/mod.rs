//! vhost-user: how a front end (QEMU, DPDK, User-mode Linux) hands a guest's memory and rings to this program.
//!
//! Invariant: a front end can hurt its own port only. What it sends is read at the edge ([`message`], [`request`]), carried out by a state
//! machine without sockets ([`session`]), and reaches a worker as a lane that changes hands: a ring runs while a worker owns it, and
//! what it lies in stays mapped until the worker has given it back.
//! Read first: the vhost-user specification (QEMU, docs/interop/vhost-user.rst); then, in this order, [`session`], [`wiring`], [`thread`].
//!
//! ```text
//!   front end --socket--> connection --Request--> session --Lane--> wiring --Change--> worker
//!                                                    ^                                    |
//!                                                    +---- home(Lane), when it lets go ---+
//! ```

mod connection;
pub mod control;
pub mod device;
pub mod error;
mod inflight;
pub mod message;
mod port;
pub mod request;
mod serve;
pub mod session;
mod table;
#[cfg(test)]
mod testing;
pub mod thread;
mod vring;
pub mod wiring;

pub use device::Device;
pub use thread::{PortOptions, Role, SessionHandle, SessionThread};
pub use wiring::{NicKey, PortState, RxFilter, VlanSet, Wiring};
