//! DHCPv4 as a server: [`DhcpConfig`] says what it offers, the [`Lease`]s who has what.
//!
//! Read in this order: `message` (what clients say), `server` (what they are told, and why), `leases` (who has which address, and how one
//! guest cannot take them all), `reply` (how an answer looks).
//! Invariant: a client is known by its hardware address together with its client identifier, so that copies of one machine, which have the
//! same identifier, get addresses of their own. A message whose hardware address is not the frame's source is not listened to.
//! Read first: RFC 2131, RFC 2132; RFC 6842 (the client identifier goes back), RFC 3046 (so does the relay's option), RFC 3442 (routes).

pub(crate) mod leases;
pub(crate) mod message;
mod options;
mod reply;
mod server;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use wire::{Instant, Mac, NicId};

use crate::config::{ConfigError, RouterV4, encode_name};

pub(crate) use server::{Dhcp, is_for};

/// The UDP port that servers listen on.
pub(crate) const SERVER_PORT: u16 = 67;
/// The UDP port that clients listen on.
pub(crate) const CLIENT_PORT: u16 = 68;

/// What the DHCP server of a subnet offers.
#[derive(Clone, Debug)]
pub struct DhcpConfig {
    /// The first address of the pool. The router's and the subnet's own are left out.
    pub first: Ipv4Addr,
    /// The last address of the pool.
    pub last: Ipv4Addr,
    /// How long a lease lasts; a client may ask for less.
    pub lease: Duration,
    /// Tell that the router is the way out (option 3).
    pub router: bool,
    /// Name servers (option 6).
    pub dns: Vec<Ipv4Addr>,
    /// The domain of the guests (option 15).
    pub domain: Option<String>,
    /// Search list (option 119).
    pub search: Vec<String>,
    /// Time servers (option 42).
    pub ntp: Vec<Ipv4Addr>,
    /// Routes (option 121). The default route is added where `router` is set, because a client that takes these ignores option 3.
    pub routes: Vec<Route>,
    /// Addresses that are kept for guests.
    pub reservations: Vec<Reservation>,
    /// Addresses that one NIC may hold, and never more than half the pool. Reserved ones do not count.
    pub share: usize,
    /// How long an address stays offered.
    pub offer: Duration,
    /// How long an address that was found in use is put aside.
    pub decline: Duration,
}

/// A way to a network (RFC 3442).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub network: Ipv4Addr,
    /// Its prefix's length.
    pub prefix: u8,
    /// The router on the way there.
    pub via: Ipv4Addr,
}

/// An address that is kept for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation<A = Ipv4Addr> {
    /// The guest.
    pub guest: Guest,
    /// The address.
    pub address: A,
}

/// How a guest is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// By its hardware address.
    Mac(Mac),
    /// By the host name that it says (which it may choose as it likes: only for guests that trust each other).
    Name(String),
}

impl DhcpConfig {
    /// The whole of the router's subnet (the first 65,536 addresses of it), leases of a day, the router as the way out.
    pub fn new(router: &RouterV4) -> Self {
        let first = router.network().to_bits().saturating_add(1);
        let last = (router.broadcast().to_bits().saturating_sub(1)).min(first.saturating_add(0xffff));
        DhcpConfig {
            first: first.into(),
            last: last.into(),
            lease: Duration::from_secs(86_400),
            router: true,
            dns: Vec::new(),
            domain: None,
            search: Vec::new(),
            ntp: Vec::new(),
            routes: Vec::new(),
            reservations: Vec::new(),
            share: 64,
            offer: Duration::from_secs(60),
            decline: Duration::from_secs(600),
        }
    }

    pub(crate) fn check(&self, router: &RouterV4) -> Result<(), ConfigError> {
        let (first, last) = (self.first.to_bits(), self.last.to_bits());
        if first > last || last - first > 0xffff || !router.contains(self.first) || !router.contains(self.last) {
            let (network, prefix) = (router.network(), router.prefix);
            return Err(ConfigError::Pool { first: self.first, last: self.last, network, prefix });
        }
        // All ones would mean for ever, which nothing here is.
        if !(60..u64::from(u32::MAX)).contains(&self.lease.as_secs()) {
            return Err(ConfigError::LeaseTime(self.lease.as_secs()));
        }
        for (at, reservation) in self.reservations.iter().enumerate() {
            if !router.may_lease(reservation.address) {
                return Err(ConfigError::Reservation(reservation.address));
            }
            if self.reservations.iter().take(at).any(|earlier| earlier.address == reservation.address) {
                return Err(ConfigError::ReservedTwice(reservation.address));
            }
        }
        if let Some(domain) = &self.domain {
            encode_name(domain, &mut Vec::new())?;
        }
        for (option, entries) in [(6, &self.dns), (42, &self.ntp)] {
            if entries.len() > 63 {
                return Err(ConfigError::Option(option));
            }
        }
        Ok(())
    }
}

/// Who a client is: see the module's invariant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client {
    /// `chaddr`; in DHCPv6 the source of its frames.
    pub mac: Mac,
    /// Option 61, empty where the client sent none; in DHCPv6 the DUID and, behind it, the IAID.
    pub id: Box<[u8]>,
}

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Offered, and not yet taken.
    Offered,
    /// Taken.
    Bound,
    /// Given back, or not taken; remembered for the client, as is a lease whose time is over.
    Released,
    /// Put aside: the client found that somebody uses it.
    Declined,
    /// Put aside: the client, which has no lease for it, was heard to use it.
    InUse,
}

/// An address and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease<A = Ipv4Addr> {
    /// The address.
    pub address: A,
    /// Who has, or had, it.
    pub client: Client,
    /// What it is.
    pub state: LeaseState,
    /// The NIC that the client was last seen behind; none when that was before a restart.
    pub nic: Option<NicId>,
    /// The NIC that it began on, or was renewed on first after a restart: from there alone it is given back or declined.
    pub home: Option<NicId>,
    /// The client's host name, made fit for DNS (RFC 1123 section 2.1).
    pub name: Option<Box<str>>,
    /// Greater for what began later, in DHCPv4 and DHCPv6 alike. A lease that is renewed goes on, under another name it begins anew.
    pub began: u64,
    /// When the state ends.
    pub expires: Instant,
}

/// A lease of either kind that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Of DHCPv4.
    V4(LeaseEvent),
    /// Of DHCPv6.
    V6(LeaseEvent<Ipv6Addr>),
}

impl Event {
    /// That of DHCPv4.
    pub fn v4(self) -> Option<LeaseEvent> {
        match self {
            Event::V4(event) => Some(event),
            Event::V6(_) => None,
        }
    }
}

/// What a commit did to the leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseEvent<A = Ipv4Addr> {
    /// The lease as it is now.
    pub lease: Lease<A>,
    /// The address that its client had before, and has no more.
    pub left: Option<A>,
}

/// What outlives a restart: plain data, times as durations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every lease, by address.
    pub leases: Vec<SavedLease>,
    /// Those of DHCPv6.
    pub leases6: Vec<SavedLease<Ipv6Addr>>,
}

/// A lease as it is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedLease<A = Ipv4Addr> {
    /// The address.
    pub address: A,
    /// Whose it is.
    pub client: Client,
    /// What it is.
    pub state: LeaseState,
    /// The client's host name.
    pub name: Option<Box<str>>,
    /// [`Lease::began`].
    pub began: u64,
    /// How long the state goes on.
    pub remaining: Duration,
}

/// The finalizer of splitmix64: spreads a number over 64 bits.
pub(crate) fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
