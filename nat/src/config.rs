//! [`Config`]: what may be set about a NAT, with the defaults of the RFCs.
//!
//! Invariant: a table is made of a checked configuration only; lifetimes are never below the least that their RFC allows.
//! Read first: RFC 4787 sections 4 and 5, RFC 5382 section 5, RFC 5508 section 3.2.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use crate::family::Family;

/// Whose packets an existing mapping lets in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody's (RFC 4787 REQ-8, where transparency matters most).
    #[default]
    EndpointIndependent,
    /// Those of addresses that the inside endpoint has sent to (RFC 4787 REQ-8, where strictness matters most).
    AddressDependent,
}

/// Which outside address a new mapping takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// The same for everything of an inside address, or none (RFC 4787 REQ-2).
    #[default]
    Paired,
    /// The same while it has ports, then another.
    Arbitrary,
}

/// How long something is remembered without a packet. Whole seconds count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// UDP mappings; at least two minutes (RFC 4787 REQ-5).
    pub udp: Duration,
    /// UDP mappings that have spoken to well-known ports (below 1024) only; may be shorter (RFC 4787 REQ-5a).
    pub udp_well_known: Duration,
    /// Established TCP connections; at least 2 hours and 4 minutes (RFC 5382 REQ-5).
    pub tcp_established: Duration,
    /// TCP connections not yet open on both sides; at least 4 minutes (RFC 5382 REQ-5, RFC 7857 section 2.1).
    pub tcp_opening: Duration,
    /// TCP connections that have been closed on both sides or reset; at least 4 minutes (RFC 5382 REQ-5, RFC 7857 section 2).
    pub tcp_closing: Duration,
    /// ICMP query mappings; at least a minute (RFC 5508 REQ-2).
    pub icmp: Duration,
    /// What later fragments need of a first one.
    pub fragment: Duration,
    /// How long a SYN that nobody inside has asked for waits for a SYN the other way; at least 6 seconds (RFC 5382 REQ-4).
    pub unsolicited_syn: Duration,
    /// How long the outside port of a UDP or ICMP mapping rests before another mapping gets it (RFC 6888 REQ-8).
    pub port_rest: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Lifetimes {
            udp: seconds(300),
            udp_well_known: seconds(120),
            tcp_established: seconds(2 * 3600 + 4 * 60),
            tcp_opening: seconds(240),
            tcp_closing: seconds(240),
            icmp: seconds(60),
            fragment: seconds(30),
            unsolicited_syn: seconds(6),
            port_rest: seconds(120),
        }
    }
}

/// What a table is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config<A = Ipv4Addr> {
    /// Mappings it can hold; brought to 64..=1,048,576. As many TCP sessions and permits have room besides.
    pub mappings: usize,
    /// Mappings, sessions and permits a NIC may hold.
    pub quota: usize,
    /// Outside addresses, 1 to 64, all different.
    pub outside: Vec<A>,
    /// Whose packets are let in.
    pub filtering: Filtering,
    /// Which outside address is taken.
    pub pooling: Pooling,
    /// Try the inside port first (permitted by RFC 4787 REQ-3); else a port that nobody can foretell (RFC 6056).
    pub preserve_port: bool,
    /// Keep even ports even and odd ones odd while there are any (RFC 4787 REQ-4; RFC 7857 asks that it can be switched off).
    pub parity: bool,
    /// Packets from outside keep UDP mappings alive too (RFC 4787 REQ-6; off is the safer choice).
    pub inbound_refresh: bool,
    /// How long what is remembered.
    pub lifetimes: Lifetimes,
    /// Published ports (`Forward`s count each port) there may be, of the mappings above.
    pub published: usize,
    /// Must be unknown to guests.
    pub seed: u64,
}

/// Why there can be no table of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// None, or too many.
    #[error("{0} outside addresses; a NAT needs 1 to 64 of them")]
    Outside(usize),
    /// Not the address of one host.
    #[error("the outside address {0} is not the address of one host; give a unicast address")]
    NotUnicast(IpAddr),
    /// The same twice.
    #[error("the outside address {0} is given twice; once is enough")]
    Twice(IpAddr),
    /// Below the least of an RFC.
    #[error("the lifetime `{name}` is {given} s; the least is {least} s ({rfc})")]
    Lifetime {
        /// Which.
        name: &'static str,
        /// Seconds asked for.
        given: u64,
        /// Seconds it must be at least.
        least: u64,
        /// Who says so.
        rfc: &'static str,
    },
}

impl<A: Family> Config<A> {
    /// The defaults, for these outside addresses.
    pub fn new(outside: Vec<A>, seed: u64) -> Config<A> {
        Config {
            mappings: 65_536,
            quota: 16_384,
            outside,
            filtering: Filtering::default(),
            pooling: Pooling::default(),
            preserve_port: true,
            parity: true,
            inbound_refresh: false,
            lifetimes: Lifetimes::default(),
            published: 4096,
            seed,
        }
    }

    /// Whether a table can be made of it.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1..=64).contains(&self.outside.len()) {
            return Err(ConfigError::Outside(self.outside.len()));
        }
        for (n, address) in self.outside.iter().enumerate() {
            if !address.is_unicast() {
                return Err(ConfigError::NotUnicast((*address).into()));
            }
            if self.outside.iter().take(n).any(|other| other == address) {
                return Err(ConfigError::Twice((*address).into()));
            }
        }
        let times = &self.lifetimes;
        let least = [
            ("udp", times.udp, 120, "RFC 4787 REQ-5"),
            ("udp_well_known", times.udp_well_known, 1, "RFC 4787 REQ-5a"),
            ("tcp_established", times.tcp_established, 7440, "RFC 5382 REQ-5"),
            ("tcp_opening", times.tcp_opening, 240, "RFC 5382 REQ-5"),
            ("tcp_closing", times.tcp_closing, 240, "RFC 5382 REQ-5"),
            ("icmp", times.icmp, 60, "RFC 5508 REQ-2"),
            ("fragment", times.fragment, 1, "RFC 791"),
            ("unsolicited_syn", times.unsolicited_syn, 6, "RFC 5382 REQ-4"),
        ];
        for (name, time, least, rfc) in least {
            if time.as_secs() < least {
                return Err(ConfigError::Lifetime { name, given: time.as_secs(), least, rfc });
            }
        }
        Ok(())
    }
}
