//! Sockets of the Internet protocols.

pub mod ping;
pub mod udp;
