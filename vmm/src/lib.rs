//! Everything that touches a guest: virtqueues, the virtio-net device they make, and the vhost-user sessions that set them up.
//!
//! Read in this order: [`virtqueue`] (rings), [`ring_port`] (the port of the switch they make), [`vhost_user`] (how a front end hands
//! memory and rings over), [`load`] (a guest that is nothing but load). No `unsafe` here: memory is reached through `sys`.

pub mod features;
pub mod load;
pub mod ring_port;
pub mod vhost_user;
pub mod virtqueue;

pub use features::Features;
pub use ring_port::{Home, Lane, RingPort};
