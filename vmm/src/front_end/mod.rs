//! The front end of vhost-user: how a guest of our own gives its memory and rings to a back end, the other end of [`crate::vhost_user`].
//!
//! Invariant: nothing that a back end does can hurt its front end beyond the rings it was given. Replies are bounded and checked, a back
//! end that is wrong, silent or gone costs its connection only, and the connection is made again.
//! Read first: the vhost-user specification (QEMU, docs/interop/vhost-user.rst), "Ring states" and "Front-end message types"; then, in
//! this order, [`setup`] (what is given away), [`link`] (the conversation), [`nic`] (a driver on top of it, for guests that are threads).
//!
//! ```text
//!   virtual machine:   KVM guest's driver --rings in guest memory--> back end,   its monitor: FrontEnd --socket--> back end
//!   guest as a thread: Nic { driver halves of two rings, FrontEnd } --rings and socket--> back end
//! ```

mod ask;
mod channel;
pub mod error;
pub mod link;
pub mod nic;
mod offer;
mod peer;
pub mod setup;

pub use error::FrontEndError;
pub use link::{FrontEnd, State};
pub use nic::{Nic, NicError};
pub use offer::Offer;
pub use peer::Peer;
pub use setup::{DeviceMemory, DeviceSetup, MemoryRegion, RingSetup};
