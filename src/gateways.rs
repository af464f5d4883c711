//! The routers of networks: who they are, what they remember over a restart, what there is to see of their leases.
//!
//! Invariant: a network with `dhcp` has one router, which is a NIC of its bridge like any other and holds the first address of the subnet, or the
//! second where the host has the first. What is
//! written to `state_dir` is only read by the next start, and a file that cannot be read costs the memory of leases, nothing else.
//! Read first: `gateway`'s crate page.

use std::{
    fmt::Display,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
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
use wire::{Instant, Mac, NicId};

use crate::{
    config::{Config, Dhcp6, Mode, Nat, NatEngine, Network, Subnet},
    hash,
    model::LeaseEntry,
    state,
};

/// The port of DNS, by UDP and TCP.
const DNS: u16 = 53;
/// The MTU of a network that names none.
const MTU: u16 = 1500;

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
    /// The guest's own.
    pub mac: Mac,
    /// Where it was last seen; none when that was before a restart.
    pub nic: Option<NicId>,
    /// The name it gave.
    pub name: Option<Box<str>>,
    /// Greater for a lease that began later.
    began: u64,
}

/// The leases of all networks, for any thread.
#[derive(Clone, Default)]
pub struct Leases(Arc<Mutex<Vec<Book>>>);

struct Book {
    network: String,
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
    /// The router of a network that is routed to those `beside` it, and `leads_out` or not; nothing when it has none.
    ///
    /// # Errors
    /// What the configuration says makes no router.
    pub fn make(
        &self,
        config: &Config,
        network: &Network,
        beside: &[&Network],
        leads_out: bool,
        seed: u64,
    ) -> io::Result<Option<Made>> {
        let Some(router) = router(config, network, beside, leads_out, seed) else { return Ok(None) };
        let mac = router.mac;
        let v4 = router.v4.iter().map(|v4| IpAddr::from(v4.address));
        let v6 =
            router.v6.iter().flat_map(|v6| v6.global.map(|(address, _)| address).into_iter().chain([v6.link_local]));
        let addresses = v4.chain(v6.map(IpAddr::from)).collect();
        let now = Instant::from_nanos(tsc::now_ns());
        let mut gateway = Gateway::new(router, now)
            .map_err(|error| io::Error::other(format!("network {}: {error}", network.name)))?;
        let file = config.host.state_dir.join(format!("leases-{}.json", network.name));
        let saved: Vec<Saved> = state::read(&file).unwrap_or_default();
        let taken = gateway.restore(&snapshot(&saved), now, Duration::ZERO);
        if taken > 0 {
            tracing::info!(network = %network.name, leases = taken, "remembered");
        }
        let (sender, book) = lease_book();
        self.lock().push(Book { network: network.name.to_string(), file, book, saved });
        Ok(Some(Made { leg: Leg::new(gateway).with_book(sender), mac, addresses }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Book>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leases in force.
    pub fn list(&self) -> Vec<LeaseEntry> {
        let now = Instant::from_nanos(tsc::now_ns());
        let mut books = self.lock();
        let of = |book: &mut Book| {
            let network = book.network.clone();
            let mut list: Vec<LeaseEntry> =
                book.book.leases().filter_map(|lease| entry(&network, lease, now)).collect();
            list.extend(book.book.leases6().filter_map(|lease| entry(&network, lease, now)));
            list
        };
        books.iter_mut().flat_map(of).collect()
    }

    /// Where the guests of a network are, as far as they have leases by DHCP and DHCPv6; those that began first in front.
    pub fn of(&self, network: &str) -> Vec<Leased> {
        let now = Instant::from_nanos(tsc::now_ns());
        let mut books = self.lock();
        let Some(Book { book, .. }) = books.iter_mut().find(|book| book.network == network) else { return Vec::new() };
        let mut all: Vec<Leased> = book.leases().filter_map(|lease| leased(lease, now)).collect();
        all.extend(book.leases6().filter_map(|lease| leased(lease, now)));
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
fn leased<A: Copy + Into<IpAddr>>(lease: &Lease<A>, now: Instant) -> Option<Leased> {
    let Lease { address, client, nic, name, began, .. } = lease;
    (lease.state == LeaseState::Bound && lease.expires > now).then(|| Leased {
        address: (*address).into(),
        mac: client.mac,
        nic: *nic,
        name: name.clone(),
        began: *began,
    })
}

/// A lease in force, as tables have it.
fn entry<A: Copy + Display>(network: &str, lease: &Lease<A>, now: Instant) -> Option<LeaseEntry> {
    (lease.state == LeaseState::Bound && lease.expires > now).then(|| LeaseEntry {
        network: network.to_owned(),
        mac: lease.client.mac.to_string(),
        address: lease.address.to_string(),
        hostname: lease.name.as_deref().map(str::to_owned),
        expires_s: lease.expires.since(now).as_secs(),
    })
}

/// Who the router of a network is.
fn router(
    config: &Config,
    network: &Network,
    beside: &[&Network],
    leads_out: bool,
    seed: u64,
) -> Option<gateway::Config> {
    let subnet = network.subnet.filter(|_| network.has_router())?;
    let IpAddr::V4(first) = subnet.host(network.router_number())? else { return None };
    let [.., a, b, c] = hash::of(network.name.as_str()).to_be_bytes();
    let mac = Mac::new([0x02, 0x74, 0x67, a, b, c]);
    let mut v4 = RouterV4 { address: first, prefix: subnet.length(), dhcp: None };
    if network.dhcp {
        v4.dhcp = Some(dhcp(config, network, beside, &v4)?);
    }
    let leads_out6 = leads_out && leads_out6(network);
    let v6 = network.subnet6.and_then(|subnet| router6(config, network, beside, subnet, mac));
    let v6 = v6.map(|v6| RouterV6 { default_router: v6.default_router || leads_out6, ..v6 });
    let subnets = || beside.iter().flat_map(|other| [other.subnet, other.subnet6].map(|subnet| (*other, subnet)));
    let sockets = matches!(&network.nat, Some(Nat { engine: NatEngine::Sockets { .. }, .. }));
    Some(gateway::Config {
        mtu: mtu(network),
        v4: Some(v4),
        v6,
        elsewhere: if leads_out { Elsewhere::Forward } else { Elsewhere::Unreachable },
        elsewhere6: Some(if leads_out6 { Elsewhere::Forward } else { Elsewhere::Unreachable }),
        // Published connections come from the router's address, and so their packets go back there.
        own_goes_on: sockets,
        services: vec![DNS],
        routes: subnets().filter_map(|(_, subnet)| Some((subnet?.host(0)?, subnet?.length()))).collect(),
        aliases: subnets().filter_map(|(other, subnet)| subnet?.host(other.router_number())).collect(),
        seed,
        ..gateway::Config::new(mac)
    })
}

/// Whether what leads out of a network takes IPv6.
fn leads_out6(network: &Network) -> bool {
    match network.nat.as_ref().map(|nat| &nat.engine) {
        Some(NatEngine::Sockets { .. }) => true,
        Some(NatEngine::Packet { prefix6, .. }) => prefix6.is_some(),
        None => false,
    }
}

/// The router in IPv6, as far as the networks beside go.
fn router6(config: &Config, network: &Network, beside: &[&Network], subnet: Subnet, mac: Mac) -> Option<RouterV6> {
    let IpAddr::V6(first) = subnet.host(network.router_number())? else { return None };
    let stateful = network.dhcp6 == Dhcp6::Stateful;
    let mut dhcp = Dhcp6Config::new(stateful);
    dhcp.ntp =
        network.ntp.iter().filter_map(|server| if let IpAddr::V6(v6) = server { Some(*v6) } else { None }).collect();
    for port in config.ports_of(&network.name) {
        let in_subnet =
            |address: &&IpAddr| subnet.overlaps(Subnet::of(**address, 128)) && **address != IpAddr::V6(first);
        if let (Some(mac), Some(IpAddr::V6(address))) = (port.mac, port.addresses.iter().find(in_subnet)) {
            dhcp.reservations.push(Reservation { guest: Guest::Mac(mac), address: *address });
        }
    }
    Some(RouterV6 {
        global: Some((first, subnet.length())),
        default_router: beside.iter().any(|other| other.subnet6.is_some()),
        managed: stateful,
        other: network.dhcp6 != Dhcp6::Off,
        dhcp: (network.dhcp && network.dhcp6 != Dhcp6::Off).then_some(dhcp),
        dns: vec![first],
        search: vec![network.search_domain()],
        ..RouterV6::new(mac.link_local())
    })
}

/// What the DHCP server of a network's router gives out.
fn dhcp(config: &Config, network: &Network, beside: &[&Network], v4: &RouterV4) -> Option<DhcpConfig> {
    let subnet = network.subnet?;
    let mut dhcp = DhcpConfig { router: network.mode == Mode::Nat, ..DhcpConfig::new(v4) };
    dhcp.dns = vec![v4.address];
    dhcp.domain = Some(network.search_domain());
    dhcp.ntp =
        network.ntp.iter().filter_map(|server| if let IpAddr::V4(v4) = server { Some(*v4) } else { None }).collect();
    dhcp.search = std::iter::once(network).chain(beside.iter().copied()).take(3).map(Network::search_domain).collect();
    for other in beside.iter().filter_map(|other| other.subnet) {
        if let Some(IpAddr::V4(network)) = other.host(0) {
            dhcp.routes.push(Route { network, prefix: other.length(), via: v4.address });
        }
    }
    if network.mode == Mode::HostOnly
        && let (IpAddr::V4(next), IpAddr::V4(_)) = (subnet.host(network.router_number() + 1)?, subnet.host(1)?)
    {
        // The host's address is nobody else's.
        dhcp.first = next;
    }
    for port in config.ports_of(&network.name) {
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
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config;

    fn lease(n: u8, state: SavedState, until: u64) -> Saved {
        Saved {
            address: Ipv4Addr::new(10, 0, 0, n).into(),
            mac: format!("02:00:00:00:00:{n:02x}"),
            client_id: vec![1, n],
            hostname: Some("web".to_owned()),
            state,
            began: n.into(),
            until,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/leases-lan.json");
        let read = |file: &PathBuf| state::read::<Vec<Saved>>(file);
        assert_eq!(read(&file), None);
        let leases = [lease(5, SavedState::Bound, since_1970() + 100), lease(6, SavedState::Declined, 0)];
        state::write(&file, &leases).unwrap();
        assert_eq!(read(&file).unwrap(), leases);
        let snapshot = snapshot(&read(&file).unwrap());
        assert_eq!(snapshot.leases.len(), 2);
        assert!((98..=100).contains(&snapshot.leases[0].remaining.as_secs()));
        assert_eq!(snapshot.leases[1].remaining, Duration::ZERO, "it is over");
        std::fs::write(&file, "[{").unwrap();
        assert_eq!(read(&file), None, "a broken file costs the memory and nothing else");
    }

    #[test]
    fn a_clock_that_is_a_second_off_changes_nothing() {
        let a = [lease(5, SavedState::Bound, 1000)];
        assert!(is_same(&a, &[lease(5, SavedState::Bound, 1001)]));
        assert!(!is_same(&a, &[lease(5, SavedState::Bound, 1010)]));
        assert!(!is_same(&a, &[lease(5, SavedState::Released, 1000)]));
        assert!(!is_same(&a, &[]));
    }

    #[test]
    fn ipv6_is_told_a_way_out_only_where_one_takes_it() {
        let of = |keys: &str, leads_out: bool| {
            let around = config::Surroundings { root: true, ..Default::default() };
            let text = format!(
                "[networks.lan]\nmode = \"nat\"\nsubnet = \"10.1.1.0/24\"\nsubnet6 = \"fd00:1::/64\"\n{keys}\n"
            );
            let config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
            let router = router(&config, &config.networks[0], &[], leads_out, 1).unwrap();
            (router.elsewhere, router.elsewhere6.unwrap(), router.v6.unwrap().default_router)
        };
        let packet = "engine = \"packet\"\ntap = \"t0\"\noutside = [\"192.0.2.9\"]\n";
        let (out, not) = (Elsewhere::Forward, Elsewhere::Unreachable);
        assert_eq!(of("", true), (out, out, true));
        assert_eq!(of("", false), (not, not, false), "the way out could not be made");
        assert_eq!(of(packet, true), (out, not, false));
        assert_eq!(of(&format!("{packet}prefix6 = \"2001:db8:9::/64\""), true), (out, out, true));
    }
}
