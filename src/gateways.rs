//! The routers of networks: who they are, what they remember over a restart, what there is to see of their leases.
//!
//! Invariant: a network with `dhcp` has one router, which has a NIC in each of its segments (the untagged one, VLANs with a table) like any other
//! and holds the first address of the subnet, or the second where the host has the first. What is
//! written to `state_dir` is only read by the next start, and a file that cannot be read costs the memory of leases, nothing else.
//! Read first: `gateway`'s crate page.

use std::{
    fmt::Display,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use gateway::{
    Elsewhere, Gateway, LeaseBook, Leg, RouterV4, RouterV6,
    dhcp::{Client, DhcpConfig, Guest, Lease, LeaseState, Reservation, Route, SavedLease, Snapshot},
    dhcp6::Dhcp6Config,
    lease_book,
};
use serde::{Deserialize, Serialize};
use sys::tsc;
use wire::{Instant, Mac, NicId, Vid};

use crate::{
    config::{Config, Dhcp6, Mode, Nat, NatEngine, Network, Segment, Subnet},
    model::LeaseEntry,
    own_mac, state,
};

/// The port of DNS, by UDP and TCP.
const DNS: u16 = 53;
/// Domains that a guest is told to search.
const SEARCHED: usize = 3;
/// Bytes of routes that a guest is told, besides a default route (RFC 3442).
const ROUTES: usize = 250;
/// The MTU of a network that names none.
pub const MTU: u16 = 1500;

/// A router that was made: its leg in the network, and its address.
pub struct Made {
    /// For the router's port.
    pub leg: Leg,
    /// What no guest may send from.
    pub mac: Mac,
    /// What guests reach it by.
    pub addresses: Vec<IpAddr>,
}

/// A guest and its address.
pub struct Leased {
    /// The address.
    pub address: IpAddr,
    /// The VLAN of its segment; none: the untagged one.
    pub vlan: Option<Vid>,
    /// The guest's own.
    pub mac: Mac,
    /// Where it was last seen; none when that was before a restart.
    pub nic: Option<NicId>,
    /// The name it gave.
    pub name: Option<Box<str>>,
    /// Greater for a lease that began later, in whichever segment.
    began: u64,
}

/// The leases of all networks, for any thread.
#[derive(Clone, Default)]
pub struct Leases {
    books: Arc<Mutex<Vec<Book>>>,
    /// How many have begun.
    begun: Arc<AtomicU64>,
}

struct Book {
    network: String,
    vlan: Option<Vid>,
    file: PathBuf,
    book: LeaseBook,
    /// What the file holds.
    saved: Vec<Saved>,
}

/// A lease in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    address: IpAddr,
    mac: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    client_id: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    state: SavedState,
    /// Which of the leases began first.
    #[serde(default)]
    began: u64,
    /// Seconds since 1970 at which the state ends.
    until: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SavedState {
    Bound,
    Released,
    Declined,
}

impl Leases {
    /// The router in a segment that is routed to those `beside` it, and `leads_out` or not; nothing when there is none.
    ///
    /// # Errors
    /// What the configuration says makes no router.
    pub fn make(
        &self,
        config: &Config,
        segment: Segment<'_>,
        beside: &[Segment<'_>],
        leads_out: bool,
        seed: u64,
    ) -> io::Result<Option<Made>> {
        let Some(router) = router(config, segment, beside, leads_out, seed) else { return Ok(None) };
        let mac = router.mac;
        let v4 = router.v4.iter().map(|v4| IpAddr::from(v4.address));
        let v6 =
            router.v6.iter().flat_map(|v6| v6.global.map(|(address, _)| address).into_iter().chain([v6.link_local]));
        let addresses = v4.chain(v6.map(IpAddr::from)).collect();
        let now = Instant::from_nanos(tsc::now_ns());
        let gateway =
            Gateway::new(router, now).map_err(|error| io::Error::other(format!("network {segment}: {error}")));
        let mut gateway = gateway?.with_begun(Arc::clone(&self.begun));
        // A slash is in no file's name, and a percent sign in no network's.
        let file = config.host.state_dir.join(format!("leases-{}.json", segment.key().replace('/', "%")));
        let saved: Vec<Saved> = state::read(&file).unwrap_or_default();
        let taken = gateway.restore(&snapshot(&saved), now, Duration::ZERO);
        if taken > 0 {
            tracing::info!(network = %segment, leases = taken, "remembered");
        }
        let (sender, book) = lease_book();
        let (network, vlan) = (segment.network.name.to_string(), segment.vid());
        self.lock().push(Book { network, vlan, file, book, saved });
        Ok(Some(Made { leg: Leg::new(gateway).with_book(sender), mac, addresses }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Book>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leases in force.
    pub fn list(&self) -> Vec<LeaseEntry> {
        let now = Instant::from_nanos(tsc::now_ns());
        let mut books = self.lock();
        let of = |book: &mut Book| {
            let (network, vlan) = (book.network.clone(), book.vlan);
            let mut list: Vec<LeaseEntry> =
                book.book.leases().filter_map(|lease| entry(&network, vlan, lease, now)).collect();
            list.extend(book.book.leases6().filter_map(|lease| entry(&network, vlan, lease, now)));
            list
        };
        books.iter_mut().flat_map(of).collect()
    }

    /// Where the guests of a network are, in all its segments, as far as they have leases by DHCP and DHCPv6; those that began first in front.
    pub fn of(&self, network: &str) -> Vec<Leased> {
        self.leased(|book| book.network == network)
    }

    /// The same of one segment.
    pub fn of_segment(&self, network: &str, vlan: Option<Vid>) -> Vec<Leased> {
        self.leased(|book| book.network == network && book.vlan == vlan)
    }

    fn leased(&self, wanted: impl Fn(&Book) -> bool) -> Vec<Leased> {
        let now = Instant::from_nanos(tsc::now_ns());
        let mut books = self.lock();
        let in_force = |book: &mut Book| {
            let vlan = book.vlan;
            let v4 = book.book.leases().filter_map(|lease| leased(vlan, lease, now));
            let mut all: Vec<Leased> = v4.collect();
            all.extend(book.book.leases6().filter_map(|lease| leased(vlan, lease, now)));
            all
        };
        let mut all: Vec<Leased> = books.iter_mut().filter(|book| wanted(book)).flat_map(in_force).collect();
        all.sort_by_key(|leased| leased.began);
        all
    }

    /// Writes the leases that have changed since they were written last.
    pub fn save(&self) {
        for book in self.lock().iter_mut() {
            let (now, since_1970) = (Instant::from_nanos(tsc::now_ns()), since_1970());
            let mut leases: Vec<Saved> = book.book.leases().filter_map(|lease| saved(lease, now, since_1970)).collect();
            leases.extend(book.book.leases6().filter_map(|lease| saved(lease, now, since_1970)));
            if is_same(&leases, &book.saved) {
                continue;
            }
            match state::write(&book.file, &leases) {
                Ok(()) => book.saved = leases,
                Err(error) => {
                    tracing::warn!(file = %book.file.display(), %error, "leases will not outlive this process");
                }
            }
        }
    }
}

/// The MTU that guests of a network are told.
pub fn mtu(network: &Network) -> u16 {
    network.mtu.unwrap_or(MTU)
}

/// Where a guest is, by a lease in force.
fn leased<A: Copy + Into<IpAddr>>(vlan: Option<Vid>, lease: &Lease<A>, now: Instant) -> Option<Leased> {
    let Lease { address, client, nic, name, began, .. } = lease;
    (lease.state == LeaseState::Bound && lease.expires > now).then(|| Leased {
        address: (*address).into(),
        vlan,
        mac: client.mac,
        nic: *nic,
        name: name.clone(),
        began: *began,
    })
}

/// A lease in force, as tables have it.
fn entry<A: Copy + Display>(network: &str, vlan: Option<Vid>, lease: &Lease<A>, now: Instant) -> Option<LeaseEntry> {
    (lease.state == LeaseState::Bound && lease.expires > now).then(|| LeaseEntry {
        network: network.to_owned(),
        vlan: vlan.map(Vid::get),
        mac: lease.client.mac.to_string(),
        address: lease.address.to_string(),
        hostname: lease.name.as_deref().map(str::to_owned),
        expires_s: lease.expires.since(now).as_secs(),
    })
}

/// Who the router is in a segment.
fn router(
    config: &Config,
    segment: Segment<'_>,
    beside: &[Segment<'_>],
    leads_out: bool,
    seed: u64,
) -> Option<gateway::Config> {
    let network = segment.network;
    let subnet = segment.subnet().filter(|_| network.has_router())?;
    let IpAddr::V4(first) = subnet.host(segment.router_number())? else { return None };
    let mac = own_mac::of(own_mac::For::Router, &segment.key());
    let mut v4 = RouterV4 { address: first, prefix: subnet.length(), dhcp: None };
    if segment.dhcp() {
        v4.dhcp = Some(dhcp(config, segment, beside, &v4)?);
    }
    let leads_out6 = leads_out6(&segment);
    let v6 = segment.subnet6().and_then(|subnet| router6(config, segment, beside, subnet, mac));
    let v6 = v6.map(|v6| RouterV6 { default_router: v6.default_router || leads_out && leads_out6, ..v6 });
    let subnets = beside.iter().flat_map(Segment::subnets);
    let sockets = matches!(&network.nat, Some(Nat { engine: NatEngine::Sockets { .. }, .. }));
    let untagged = Segment { network, vlan: None };
    Some(gateway::Config {
        mtu: mtu(network),
        v4: Some(v4),
        v6,
        elsewhere: if leads_out { Elsewhere::Forward } else { Elsewhere::Unreachable },
        elsewhere6: (!leads_out6).then_some(Elsewhere::Unreachable),
        // Published connections come from the router's address in the untagged segment, and so their packets go back there.
        onward: if sockets && leads_out { untagged.router().collect() } else { Vec::new() },
        services: vec![DNS],
        routes: subnets.filter_map(|subnet| Some((subnet.host(0)?, subnet.length()))).collect(),
        aliases: beside.iter().flat_map(Segment::router).collect(),
        seed,
        ..gateway::Config::new(mac)
    })
}

/// Whether the way out of a segment's network, while there is one, takes the segment's IPv6: a prefix is exchanged for that of the untagged one alone.
fn leads_out6(segment: &Segment<'_>) -> bool {
    match segment.network.nat.as_ref().map(|nat| &nat.engine) {
        Some(NatEngine::Sockets { .. }) => true,
        Some(NatEngine::Packet { prefix6, outside, .. }) => {
            outside.iter().any(IpAddr::is_ipv6) || prefix6.is_some() && segment.vlan.is_none()
        }
        None => false,
    }
}

/// The router in IPv6, as far as the segments beside go.
fn router6(
    config: &Config,
    segment: Segment<'_>,
    beside: &[Segment<'_>],
    subnet: Subnet,
    mac: Mac,
) -> Option<RouterV6> {
    let IpAddr::V6(first) = subnet.host(segment.router_number())? else { return None };
    let (stateful, off) = (segment.dhcp6() == Dhcp6::Stateful, segment.dhcp6() == Dhcp6::Off);
    let mut dhcp = Dhcp6Config::new(stateful);
    dhcp.ntp =
        segment.ntp().iter().filter_map(|server| if let IpAddr::V6(v6) = server { Some(*v6) } else { None }).collect();
    for port in config.ports.iter().filter(|port| segment.carries(port)) {
        let in_subnet =
            |address: &&IpAddr| subnet.overlaps(Subnet::of(**address, 128)) && **address != IpAddr::V6(first);
        if let (Some(mac), Some(IpAddr::V6(address))) = (port.mac, port.addresses.iter().find(in_subnet)) {
            dhcp.reservations.push(Reservation { guest: Guest::Mac(mac), address: *address });
        }
    }
    Some(RouterV6 {
        global: Some((first, subnet.length())),
        default_router: beside.iter().any(|other| other.subnet6().is_some()),
        managed: stateful,
        other: !off,
        dhcp: (segment.dhcp() && !off).then_some(dhcp),
        dns: vec![first],
        search: vec![segment.search_domain()],
        ..RouterV6::new(mac.link_local())
    })
}

/// What the DHCP server of a router gives out in a segment.
fn dhcp(config: &Config, segment: Segment<'_>, beside: &[Segment<'_>], v4: &RouterV4) -> Option<DhcpConfig> {
    let subnet = segment.subnet()?;
    let mut dhcp = DhcpConfig { router: segment.network.mode == Mode::Nat, ..DhcpConfig::new(v4) };
    dhcp.dns = vec![v4.address];
    dhcp.domain = Some(segment.search_domain());
    dhcp.ntp =
        segment.ntp().iter().filter_map(|server| if let IpAddr::V4(v4) = server { Some(*v4) } else { None }).collect();
    for domain in std::iter::once(&segment).chain(beside).map(Segment::search_domain) {
        if dhcp.search.len() < SEARCHED && !dhcp.search.contains(&domain) {
            dhcp.search.push(domain);
        }
    }
    for other in beside.iter().filter_map(Segment::subnet) {
        if let Some(IpAddr::V4(network)) = other.host(0) {
            dhcp.routes.push(Route { network, prefix: other.length(), via: v4.address });
        }
    }
    let length = |route: &Route| 5 + usize::from(route.prefix.div_ceil(8));
    if dhcp.routes.iter().map(length).sum::<usize>() > ROUTES {
        // Then it is the way to everywhere, and says what it does not reach.
        dhcp.routes.clear();
        dhcp.router = true;
    }
    if segment.router_number() > 1
        && let IpAddr::V4(next) = subnet.host(segment.router_number() + 1)?
    {
        // The host's address is nobody else's.
        dhcp.first = next;
    }
    for port in config.ports.iter().filter(|port| segment.carries(port)) {
        let in_subnet = |address: &&IpAddr| matches!(address, IpAddr::V4(address) if v4.may_lease(*address));
        if let (Some(mac), Some(IpAddr::V4(address))) = (port.mac, port.addresses.iter().find(in_subnet)) {
            dhcp.reservations.push(Reservation { guest: Guest::Mac(mac), address: *address });
        }
    }
    Some(dhcp)
}

fn since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A lease as it is written; offers are not.
fn saved<A: Copy + Into<IpAddr>>(lease: &Lease<A>, now: Instant, since_1970: u64) -> Option<Saved> {
    let state = match lease.state {
        LeaseState::Offered | LeaseState::InUse => return None,
        LeaseState::Bound => SavedState::Bound,
        LeaseState::Released => SavedState::Released,
        LeaseState::Declined => SavedState::Declined,
    };
    Some(Saved {
        address: lease.address.into(),
        mac: lease.client.mac.to_string(),
        client_id: lease.client.id.to_vec(),
        hostname: lease.name.as_deref().map(str::to_owned),
        state,
        began: lease.began,
        until: since_1970 + lease.expires.since(now).as_secs(),
    })
}

/// Whether two lists say the same, but for a second that clocks are apart.
fn is_same(a: &[Saved], b: &[Saved]) -> bool {
    let same = |(a, b): (&Saved, &Saved)| a.until.abs_diff(b.until) <= 1 && *a == Saved { until: a.until, ..b.clone() };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// What a router takes back of what was written.
fn snapshot(saved: &[Saved]) -> Snapshot {
    let now = since_1970();
    let mut snapshot = Snapshot::default();
    for saved in saved {
        match saved.address {
            IpAddr::V4(address) => snapshot.leases.extend(saved_lease(saved, address, now)),
            IpAddr::V6(address) => snapshot.leases6.extend(saved_lease(saved, address, now)),
        }
    }
    snapshot
}

fn saved_lease<A>(saved: &Saved, address: A, now: u64) -> Option<SavedLease<A>> {
    Some(SavedLease {
        address,
        client: Client { mac: saved.mac.parse().ok()?, id: saved.client_id.clone().into() },
        state: match saved.state {
            SavedState::Bound => LeaseState::Bound,
            SavedState::Released => LeaseState::Released,
            SavedState::Declined => LeaseState::Declined,
        },
        name: saved.hostname.as_deref().map(Into::into),
        began: saved.began,
        remaining: Duration::from_secs(saved.until.saturating_sub(now)),
    })
}

#[cfg(test)]
mod tests;
