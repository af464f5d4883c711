//! The engines of address translation, made of the configuration.
//!
//! Invariant: an engine is made whole or not at all. Read first: `nat`'s crate page.

use std::io;

use nat::Inbox;

use crate::{
    config::{Config, Nat, NatEngine, Network},
    nat::WayOut,
};

/// The engine that `nat` asks for.
///
/// # Errors
/// What it needs cannot be had.
pub fn make(config: &Config, network: &Network, nat: &Nat, inbox: Inbox) -> io::Result<WayOut> {
    let _ = (config, network, inbox);
    match &nat.engine {
        NatEngine::Sockets { .. } => Err(io::ErrorKind::Unsupported.into()),
        NatEngine::Packet { .. } => Err(io::ErrorKind::Unsupported.into()),
    }
}
