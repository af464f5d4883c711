//! Ports to the host's own network.
//!
//! Invariant: a port here drives a descriptor that was opened elsewhere, so that only the opening needs privilege.
//! Read first: [`mod@line`].

pub mod line;
pub mod tap;
pub mod uplink;

pub use line::LinePort;
pub use tap::TapPort;
pub use uplink::UplinkPort;
