//! Who is where, told by BGP: a tunnel endpoint's stations are announced to other hosts, and theirs are placed behind their endpoints (EVPN).
//!
//! ```text
//!   ports, tunnel --Input--> Evpn: where is each station? --Action--> tunnel
//!                            ^                     |
//!              routes of others                  routes of ours
//!                            +-- speaker: gobgpd --+--- BGP ---> other hosts, route reflectors, fabrics
//! ```
//!
//! Read in this order: [`route`] (what hosts tell each other), [`decide`] (what is made of it, without I/O and clock), [`speaker`] (the BGP speaker's API, in two
//! generations), [`client`] (the loop that connects them, and goes on when the speaker goes). Nothing here touches a frame.
//!
//! The words are those of RFC 7432 and RFC 8365; a *speaker* is the program that speaks BGP, a *station* who has a MAC address.

pub mod action;
pub mod client;
pub mod decide;
pub mod route;
pub mod speaker;
mod station;

pub use action::Action;
pub use client::{Config, Duplicate, Input, Shared, Status, run};
pub use decide::{Evpn, Most};
pub use speaker::{About, SpeakerError, probe};
