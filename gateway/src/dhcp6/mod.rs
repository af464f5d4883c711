//! DHCPv6 as a server: [`Dhcp6Config`] says what it offers. Stateless it tells name servers and search list; stateful it gives out addresses, too.
//!
//! Read in this order: `message` (what clients say), `server` (what they are told). Who has which address is kept by the same table as in
//! DHCPv4, with the same bounds for each NIC ([`crate::dhcp`]).
//! Invariant: a client is known by the source of its frames together with its DUID and IAID, so copies of one machine get addresses of their own.
//! Read first: RFC 8415 section 18.3 (servers), section 6.1 and 6.2 (stateless and stateful).

mod message;
mod server;

use std::{net::Ipv6Addr, time::Duration};

use crate::{config::RouterV6, dhcp::Reservation};

pub(crate) use server::Dhcp6;

/// The UDP port that servers listen on.
pub(crate) const SERVER_PORT: u16 = 547;
/// The UDP port that clients listen on.
pub(crate) const CLIENT_PORT: u16 = 546;
/// `All_DHCP_Relay_Agents_and_Servers`.
pub(crate) const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Addresses of a pool, at most.
const POOL: u128 = 4096;

/// What the DHCPv6 server of a prefix offers. Name servers and search list are those of the router's advertisements.
#[derive(Clone, Debug)]
pub struct Dhcp6Config {
    /// Gives out addresses: the M flag of advertisements should be set. Else it answers information requests only: the O flag.
    pub stateful: bool,
    /// How long a lease lasts.
    pub lease: Duration,
    /// After which time to ask again for what comes without an address (option 32).
    pub refresh: Duration,
    /// Time servers (option 56).
    pub ntp: Vec<Ipv6Addr>,
    /// Addresses that are kept for guests.
    pub reservations: Vec<Reservation<Ipv6Addr>>,
    /// Addresses that one NIC may hold, and never more than half the pool. Reserved ones do not count.
    pub share: usize,
    /// How long an address stays offered.
    pub offer: Duration,
    /// How long an address that a client found in use is put aside.
    pub decline: Duration,
}

impl Dhcp6Config {
    /// Leases and refreshing times of a day.
    pub fn new(stateful: bool) -> Self {
        Dhcp6Config {
            stateful,
            lease: Duration::from_secs(86_400),
            refresh: Duration::from_secs(86_400),
            ntp: Vec::new(),
            reservations: Vec::new(),
            share: 64,
            offer: Duration::from_secs(60),
            decline: Duration::from_secs(600),
        }
    }
}

/// The pool: 4096 addresses from PREFIX::1000 on, or what a long prefix has, without the first of the subnet and the router's own.
fn pool(v6: &RouterV6) -> impl Iterator<Item = Ipv6Addr> {
    let (router, prefix) = v6.global.unwrap_or((Ipv6Addr::UNSPECIFIED, 128));
    let hosts = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let network = router.to_bits() & !hosts;
    let from = if hosts >= 2 * POOL { POOL } else { 1 };
    (from..(from + POOL).min(hosts)).map(move |number| Ipv6Addr::from(network + number)).filter(move |a| *a != router)
}
