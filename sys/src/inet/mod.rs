//! Sockets of the Internet protocols.

mod name;
pub mod ping;
pub mod tcp;
pub mod udp;
