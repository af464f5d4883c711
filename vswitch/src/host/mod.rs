//! Ports to the host's own network.
//!
//! Invariant: a port here drives a descriptor that was opened elsewhere, so that only the opening needs privilege.
//! Read first: [`tap`].

pub mod tap;

pub use tap::TapPort;
