//! [`NetworkNames`] and the answers that they give: the names of guests, `host.internal`, and names that nobody outside is asked about.
//!
//! Invariant: a name belongs to one guest of a network: to the one that the configuration gives it to, else to the one who has had it for longest.
//! What a guest may not see is answered as if it did not exist, or goes the way of every other name. Whether a name exists does not
//! depend on the type that is asked (RFC 8020), but for bare names that guests gave themselves: they have addresses here, and everything else is
//! asked of whoever has the name in the world, where queries are forwarded: a guest called `com` is nobody's top-level domain. Read first: RFC 1034 section 4.3.2, RFC 2308, RFC 6761.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};

use wire::Mac;

use super::{NetworkId, message::Query, reverse::Reverse};
use crate::config::within;

/// Seconds that an answer of ours may be kept: guests come and go.
const TTL: u32 = 10;
/// The host, as guests call it.
const HOST: [&[u8]; 2] = [b"host", b"internal"];
/// Names that decide where others connect to, and that no guest can make its own.
const NOT_CLAIMED: [&str; 5] = ["localhost", "host", "internal", "wpad", "isatap"];

/// What the configuration says about the names of a network.
#[derive(Clone, Debug, Default)]
pub struct NetworkNames {
    /// The search domain: guests' names are found in it and bare. Without it, bare only.
    pub domain: Option<String>,
    /// The router's addresses.
    pub router: Vec<IpAddr>,
    /// Where guests reach the host, as `host.internal`; empty where they may not.
    pub host: Vec<IpAddr>,
    /// What is not known here is asked of upstreams. Where nothing leads out, queries do not either.
    pub forwards: bool,
    /// The network's subnets, with the lengths of their prefixes: whose addresses have names here.
    pub subnets: Vec<(IpAddr, u8)>,
    /// Names of guests with their addresses.
    pub fixed: Vec<(String, Vec<IpAddr>)>,
    /// Names that the configuration gives to guests elsewhere in the domain: nobody here gives them himself.
    pub elsewhere: Vec<String>,
    /// Other networks whose names are told here, because they are routed.
    pub sees: Vec<NetworkId>,
}

/// A guest's name, where its address is by DHCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedName {
    /// What it is called.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Who has it: all addresses of a name that a guest gives itself are one guest's.
    pub holder: Mac,
    /// The configuration calls it so; else it calls itself so.
    pub declared: bool,
}

#[derive(Debug)]
struct Network {
    names: NetworkNames,
    domain: Option<Name>,
    fixed: HashMap<String, Vec<IpAddr>>,
    elsewhere: BTreeSet<String>,
    leased: BTreeMap<String, Held>,
    /// Those of them that the configuration gives.
    declared: BTreeSet<String>,
    by_address: BTreeMap<IpAddr, String>,
}

/// A name by DHCP.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    holder: Mac,
    addresses: Vec<IpAddr>,
}

/// The names of all networks.
#[derive(Debug)]
pub(crate) struct Zones {
    networks: Vec<Network>,
}

/// What there is about a name.
enum Found {
    Addresses(Vec<IpAddr>),
    Name(Name),
    /// The name is there, but has nothing of its own.
    Nothing,
    NoSuchName,
}

impl Found {
    fn says_more_than(&self, other: &Found) -> bool {
        let said = |found: &Found| match found {
            Found::NoSuchName => 0,
            Found::Addresses(addresses) if addresses.is_empty() => 1,
            Found::Nothing => 1,
            Found::Addresses(_) | Found::Name(_) => 2,
        };
        said(self) > said(other)
    }
}

/// The first label in lower case, if it is fit to be a host's name.
fn label(name: &str) -> Option<String> {
    let first = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (!first.is_empty() && first.len() <= 63 && first.bytes().all(fit)).then_some(first)
}

impl Network {
    fn new(names: NetworkNames) -> Network {
        let domain = names.domain.as_deref().and_then(|domain| Name::from_ascii(domain).ok());
        let domain = domain.map(|mut domain| {
            domain.set_fqdn(true);
            domain.to_lowercase()
        });
        let mut fixed: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for (name, addresses) in &names.fixed {
            if let Some(label) = label(name) {
                fixed.entry(label).or_default().extend(addresses);
            }
        }
        let mut network = Network {
            elsewhere: names.elsewhere.iter().filter_map(|name| label(name)).collect(),
            names,
            domain: domain.filter(|domain| !domain.is_root()),
            fixed,
            leased: BTreeMap::new(),
            declared: BTreeSet::new(),
            by_address: BTreeMap::new(),
        };
        network.index();
        network
    }

    fn index(&mut self) {
        self.by_address.clear();
        for (name, addresses) in &self.fixed {
            self.by_address.extend(addresses.iter().map(|address| (*address, name.clone())));
        }
        // A name that the configuration gives comes before one that the guest gives itself; else the order is that of the names.
        for first in [true, false] {
            for (name, held) in self.leased.iter().filter(|(name, _)| self.declared.contains(*name) == first) {
                for address in &held.addresses {
                    self.by_address.entry(*address).or_insert_with(|| name.clone());
                }
            }
        }
    }

    fn set_leased(&mut self, leases: &[LeasedName]) {
        let mut leased: BTreeMap<String, Held> = BTreeMap::new();
        let declared: BTreeSet<String> =
            leases.iter().filter(|lease| lease.declared).filter_map(|lease| label(&lease.name)).collect();
        let wanted = |lease: &LeasedName| {
            let label = label(&lease.name)?;
            let fixed = self.fixed.get(&label).is_some_and(|addresses| !addresses.contains(&lease.address));
            let claimed = || NOT_CLAIMED.contains(&label.as_str()) || self.elsewhere.contains(&label);
            (lease.declared || !fixed && !claimed()).then_some(label)
        };
        // Who had a name keeps it for as long as the lease lasts.
        let had = |lease: &LeasedName, label: &String| {
            self.leased
                .get(label)
                .is_some_and(|held| held.holder == lease.holder && held.addresses.contains(&lease.address))
        };
        let rank = |lease: &LeasedName, label: &String| match lease.declared {
            true => 0,
            false => 2 - u8::from(had(lease, label)),
        };
        for turn in 0..3 {
            for lease in leases {
                let Some(label) = wanted(lease).filter(|label| rank(lease, label) == turn) else { continue };
                let new = Held { holder: lease.holder, addresses: Vec::new() };
                let held = leased.entry(label).or_insert(new);
                // The cards of one guest of the configuration share its name.
                if (held.holder == lease.holder || lease.declared) && !held.addresses.contains(&lease.address) {
                    held.addresses.push(lease.address);
                }
            }
        }
        if leased != self.leased || declared != self.declared {
            (self.leased, self.declared) = (leased, declared);
            self.index();
        }
    }

    fn addresses(&self, label: &str) -> Option<Vec<IpAddr>> {
        let mut all = self.fixed.get(label).cloned().unwrap_or_default();
        for address in self.leased.get(label).into_iter().flat_map(|held| &held.addresses) {
            if !all.contains(address) {
                all.push(*address);
            }
        }
        (self.fixed.contains_key(label) || !all.is_empty()).then_some(all)
    }

    /// Whether a guest gave itself this name.
    fn is_claimed(&self, label: &str) -> bool {
        !self.fixed.contains_key(label) && !self.declared.contains(label) && self.leased.contains_key(label)
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.names.subnets.iter().any(|(network, length)| within(address, *network, *length))
    }

    /// The whole name of a host.
    fn full(&self, label: &str) -> Option<Name> {
        let name = Name::from_labels([label.as_bytes()]).ok()?;
        match &self.domain {
            Some(domain) => name.append_domain(domain).ok(),
            None => Some(name),
        }
    }

    /// What `host.internal` is to its guests.
    fn host(&self) -> Found {
        if self.names.host.is_empty() { Found::NoSuchName } else { Found::Addresses(self.names.host.clone()) }
    }
}

impl Zones {
    pub(crate) fn new(networks: Vec<NetworkNames>) -> Zones {
        Zones { networks: networks.into_iter().map(Network::new).collect() }
    }

    /// The leases of a network that have a name now, those that began first in front.
    pub(crate) fn set_leased(&mut self, network: NetworkId, leases: &[LeasedName]) {
        if let Some(network) = self.networks.get_mut(usize::from(network.0)) {
            network.set_leased(leases);
        }
    }

    /// Whether an address is a router's: no upstream of ours.
    pub(crate) fn is_router(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.names.router.contains(&address))
    }

    /// Whether queries of a network go to upstreams.
    pub(crate) fn forwards(&self, network: NetworkId) -> bool {
        self.networks.get(usize::from(network.0)).is_some_and(|network| network.names.forwards)
    }

    /// The other networks whose names are told in one.
    fn seen(&self, from: &Network) -> Vec<&Network> {
        from.names.sees.iter().filter_map(|id| self.networks.get(usize::from(id.0))).collect()
    }

    /// The answer to what is ours to answer.
    pub(crate) fn answer(&self, network: NetworkId, query: &Query) -> Option<Message> {
        let network = self.networks.get(usize::from(network.0))?;
        let name = query.name.to_lowercase();
        let (zone, found) = self.find(network, &name, query.kind)?;
        let asks = |kind: RecordType| query.kind == u16::from(kind) || query.kind == u16::from(RecordType::ANY);
        let mut records = Vec::new();
        match &found {
            Found::Addresses(addresses) => {
                for address in addresses {
                    match address {
                        IpAddr::V4(address) if asks(RecordType::A) => records.push(RData::A((*address).into())),
                        IpAddr::V6(address) if asks(RecordType::AAAA) => records.push(RData::AAAA((*address).into())),
                        _ => {}
                    }
                }
            }
            Found::Name(name) if asks(RecordType::PTR) => records.push(RData::PTR(rdata::PTR(name.clone()))),
            Found::Name(_) | Found::Nothing | Found::NoSuchName => {}
        }
        let code = if matches!(found, Found::NoSuchName) { ResponseCode::NXDomain } else { ResponseCode::NoError };
        let mut message = query.answer(code);
        message.metadata.authoritative = true;
        let soa = || Record::from_rdata(zone.clone(), TTL, RData::SOA(soa(&zone)));
        if records.is_empty() {
            if name == zone && asks(RecordType::SOA) && code == ResponseCode::NoError {
                message.add_answer(soa());
            } else {
                message.add_authority(soa());
            }
        }
        for record in records {
            message.add_answer(Record::from_rdata(query.name.clone(), TTL, record));
        }
        Some(message)
    }

    /// What there is about a name in lower case, and the zone that it is in; nothing when what is asked of it is not ours.
    fn find(&self, network: &Network, name: &Name, kind: u16) -> Option<(Name, Found)> {
        let labels: Vec<&[u8]> = name.iter().collect();
        let last = |n: u8| name.trim_to(usize::from(n));
        match labels.as_slice() {
            [] => return None,
            [.., b"localhost"] => {
                return Some((
                    last(1),
                    Found::Addresses(vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()]),
                ));
            }
            [.., b"invalid"] | [.., b"onion"] => return Some((last(1), Found::NoSuchName)),
            labels if *labels == HOST => return Some((last(2), network.host())),
            _ => {}
        }
        if let Some(reverse) = Reverse::of(&labels) {
            return self.reverse(network, reverse).map(|found| (name.base_name(), found));
        }
        let seen = || std::iter::once(network).chain(self.seen(network));
        let text = |label: &[u8]| std::str::from_utf8(label).ok().map(str::to_owned);
        // Several may have one domain: a guest of any of them is found, by its nearest addresses.
        let mut best: Option<(Name, Found)> = None;
        for network in seen() {
            let Some(domain) = network.domain.as_ref().filter(|domain| domain.zone_of(name)) else { continue };
            let found = match labels.len() - domain.iter().count() {
                0 => Found::Nothing,
                1 => {
                    let label = labels.first().and_then(|label| text(label));
                    label.and_then(|label| network.addresses(&label)).map_or(Found::NoSuchName, Found::Addresses)
                }
                _ => Found::NoSuchName,
            };
            if best.as_ref().is_none_or(|(_, before)| found.says_more_than(before)) {
                best = Some((domain.clone(), found));
            }
        }
        if best.is_some() {
            return best;
        }
        let [bare] = labels.as_slice() else { return None };
        let bare = text(bare)?;
        // The asker's own domain first: what it has a name for, with an address or without, nobody of another domain claims.
        let named = |of: &&Network| Some((of.is_claimed(&bare), of.addresses(&bare)?));
        let own = || seen().filter(|other| other.domain == network.domain).filter_map(|own| named(&own));
        let nearest = own().find(|(_, addresses)| !addresses.is_empty()).or_else(|| own().next());
        let (is_claimed, addresses) = nearest.or_else(|| seen().find_map(|of| named(&of)))?;
        let of_addresses = [RecordType::A, RecordType::AAAA, RecordType::ANY].map(u16::from).contains(&kind);
        let ours = of_addresses || !network.names.forwards || !is_claimed;
        ours.then(|| (name.clone(), Found::Addresses(addresses)))
    }

    fn reverse(&self, network: &Network, reverse: Reverse) -> Option<Found> {
        if let Some(address) = reverse.whole()
            && let Some(of) = std::iter::once(network).chain(self.seen(network)).find(|of| of.contains(address))
        {
            let name = match of.by_address.get(&address) {
                Some(label) => of.full(label),
                None if network.names.host.contains(&address) => Name::from_labels(HOST).ok(),
                None => None,
            };
            return Some(name.map_or(Found::NoSuchName, Found::Name));
        }
        let found = if reverse.is_inner() { Found::Nothing } else { Found::NoSuchName };
        reverse.is_private().then_some(found)
    }
}

/// The record that says for how long what is not there is not there.
fn soa(zone: &Name) -> rdata::SOA {
    let contact = Name::from_labels([b"nobody".as_slice(), b"invalid"]).unwrap_or_default();
    rdata::SOA::new(zone.clone(), contact, 1, 3600, 600, 86400, TTL)
}
