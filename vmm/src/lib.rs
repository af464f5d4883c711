//! Everything that touches a guest: virtqueues, the virtio-net device they make, and the vhost-user sessions that set them up.
//!
//! Read in this order: [`virtqueue`] (rings), [`ring_port`] (the port of the switch they make), [`vhost_user`] (how a front end hands
//! memory and rings over), [`front_end`] (the other end of that, for guests of our own), [`load`] (a guest that is nothing but load).
//! No `unsafe` here: memory is reached through `sys`.

pub mod features;
pub mod front_end;
pub mod load;
#[cfg(target_arch = "x86_64")]
pub mod machine;
pub mod ring_port;
pub mod vhost_user;
pub mod virtqueue;

pub use features::Features;
pub use ring_port::{Home, Lane, RingPort};
