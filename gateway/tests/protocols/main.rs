//! The router of a segment, in virtual time: one test for each thing that an RFC asks, questions and answers made and read by etherparse.

// A test says what went wrong by panicking, in what tests share too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arp;
mod conflict;
mod dhcp;
mod dhcp6;
mod dhcp6_client;
mod dhcp_client;
mod host;
mod hostile;
mod ipv4;
mod ipv6;
mod pool;
mod port;
mod router;
mod segment;

#[global_allocator]
static ALLOCATOR: sys::allocations::CountingAllocator = sys::allocations::CountingAllocator;
