//! Reads the keys of `mode = "nat"`, and `route`.
//!
//! Invariant: an engine's keys are accepted with that engine only; published ranges are of equal length on both sides, no two publications
//! of a network share a port outside, and each leads to a guest or an address that can be inside.

use super::{
    error::Fault,
    names::{Interface, Name},
    reader::{Entry, Section},
    types::{Mode, Network},
    vlan,
};
use serde::{Serialize, Serializer};
use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

/// How a network behind address translation reaches the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nat {
    /// Default: sockets.
    #[serde(flatten)]
    pub engine: NatEngine,
    /// Ports outside that lead to guests. Default: none.
    pub publish: Vec<Publish>,
}

/// Who translates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "engine", rename_all = "lowercase")]
pub enum NatEngine {
    /// Sockets of this process, with the host's own addresses; needs no privilege.
    Sockets {
        /// Guests may reach the host itself, as `host.internal`. Default: false.
        host_access: bool,
    },
    /// The headers are rewritten, with addresses of the network's own.
    Packet {
        /// What the outside is.
        #[serde(flatten)]
        via: Via,
        /// The addresses of the pool, which guests share: IPv4 (NAT44), IPv6 (NAT66) or both.
        outside: Vec<IpAddr>,
        /// IPv6 prefix of the outside for NPTv6 (RFC 6296), a /64; instead of IPv6 addresses in `outside`.
        #[serde(skip_serializing_if = "Option::is_none")]
        prefix6: Option<super::Subnet>,
        /// The router outside, one for each version of IP. Default: everything outside is a neighbour.
        next_hop: Vec<IpAddr>,
        /// Mappings that are remembered at most, 64 to 1048576, each guest's share of them being equal. Default: 65536.
        mappings: u32,
    },
}

/// What a packet engine's outside is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// An interface of the host.
    Uplink(Interface),
    /// A TAP that is made, and left to the host to route.
    Tap(Interface),
    /// Another network of the file.
    #[serde(rename = "via")]
    Network(Name),
}

/// Ports outside that lead to ports of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Publish {
    /// TCP or UDP.
    pub proto: Proto,
    /// The first port outside.
    pub listen: SocketAddr,
    /// Whose the ports inside are.
    #[serde(serialize_with = "target")]
    pub to: Target,
    /// The first port inside.
    pub to_port: u16,
    /// How many ports.
    pub count: u16,
}

/// A transport protocol that can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where a publication leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To a guest, at the address that it declares or has by DHCP.
    Guest(Name),
    /// To an address.
    Address(IpAddr),
}

impl fmt::Display for Publish {
    /// As the file has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = match self.proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        };
        let span = |first: u16| match self.count {
            1 => first.to_string(),
            count => format!("{first}-{}", u32::from(first) + u32::from(count) - 1),
        };
        let listen = match self.listen.ip() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let to = match &self.to {
            Target::Guest(name) => name.to_string(),
            Target::Address(IpAddr::V4(address)) => address.to_string(),
            Target::Address(IpAddr::V6(address)) => format!("[{address}]"),
        };
        write!(f, "{proto} {listen}:{} {to}:{}", span(self.listen.port()), span(self.to_port))
    }
}

fn target<S: Serializer>(target: &Target, serializer: S) -> Result<S::Ok, S::Error> {
    match target {
        Target::Guest(name) => serializer.collect_str(name),
        Target::Address(address) => serializer.collect_str(address),
    }
}

const PACKET_ONLY: [&str; 7] = ["uplink", "tap", "via", "outside", "prefix6", "next_hop", "mappings"];

/// What a network in mode nat says.
pub(super) fn read(section: &Section<'_>) -> Result<Nat, Fault> {
    let packet = section.map("engine", |entry| entry.choice(&[("sockets", false), ("packet", true)]))?;
    let publish = section.map("publish", |entry| {
        let all: Vec<Publish> = entry.list()?.iter().map(publish).collect::<Result<_, _>>()?;
        disjoint(entry, &all)?;
        Ok(all)
    })?;
    let engine = if packet.unwrap_or(false) { self::packet(section)? } else { sockets(section)? };
    Ok(Nat { engine, publish: publish.unwrap_or_default() })
}

fn sockets(section: &Section<'_>) -> Result<NatEngine, Fault> {
    for key in PACKET_ONLY {
        if let Some(entry) = section.get(key) {
            let what = format!("`{key}` belongs to engine = \"packet\"; the engine here is \"sockets\"");
            return Err(entry.key_fault(what));
        }
    }
    let host_access = section.map("host_access", Entry::boolean)?.unwrap_or(false);
    Ok(NatEngine::Sockets { host_access })
}

fn packet(section: &Section<'_>) -> Result<NatEngine, Fault> {
    if let Some(entry) = section.get("host_access") {
        return Err(
            entry.key_fault("`host_access` belongs to engine = \"sockets\"; here the outside routes to the host")
        );
    }
    let via = match (section.get("uplink"), section.get("tap"), section.get("via")) {
        (Some(uplink), None, None) => Via::Uplink(uplink.parse()?),
        (None, Some(tap), None) => Via::Tap(tap.parse()?),
        (None, None, Some(via)) => Via::Network(via.parse()?),
        (None, None, None) => {
            let what = "engine = \"packet\" needs `uplink` or `tap`, or `via`, a network of this file";
            return Err(section.fault(what));
        }
        (_, Some(entry), _) | (_, _, Some(entry)) => {
            return Err(entry.key_fault("`uplink`, `tap` and `via` exclude each other; give one of them"));
        }
    };
    let outside = section.map("outside", pool)?.unwrap_or_default();
    let prefix6 = section.map("prefix6", |entry| entry.parse_with(super::Subnet::v6))?;
    if outside.is_empty() && prefix6.is_none() {
        return Err(section.fault("engine = \"packet\" needs `outside`, the addresses of its pool"));
    }
    if let Some(entry) = section.get("prefix6").filter(|_| outside.iter().any(IpAddr::is_ipv6)) {
        return Err(entry.key_fault(
            "`prefix6` and an IPv6 address in `outside` exclude each other: with `prefix6` each guest has an address of its own outside \
             (NPTv6), without it guests share those of `outside` (NAT66); give one of them",
        ));
    }
    let next_hop = section.map("next_hop", |entry| match entry.list() {
        Ok(list) => list.iter().map(address).collect(),
        Err(_) => Ok(vec![address(entry)?]),
    })?;
    let mappings = section.map("mappings", |entry| entry.integer(64, 1 << 20))?.unwrap_or(65_536);
    Ok(NatEngine::Packet { via, outside, prefix6, next_hop: next_hop.unwrap_or_default(), mappings })
}

/// The addresses that guests share outside.
fn pool(entry: &Entry<'_>) -> Result<Vec<IpAddr>, Fault> {
    let mut all = Vec::new();
    for entry in entry.list()?.iter() {
        let one = address(entry)?;
        if matches!(one, IpAddr::V6(one) if one.is_unicast_link_local()) {
            return Err(
                entry.fault(format!("{one} is of the link only; give an address that the outside has a way to"))
            );
        }
        if all.contains(&one) {
            return Err(entry.fault(format!("{one} is given twice; once is enough")));
        }
        all.push(one);
    }
    Ok(all)
}

fn address(entry: &Entry<'_>) -> Result<IpAddr, Fault> {
    let address: IpAddr = entry.parse()?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(entry.fault(format!("{address} is not the address of one host; give a unicast address")));
    }
    Ok(address)
}

const FORM: &str = "write \"tcp|udp LISTEN-ADDRESS:PORT[-PORT] GUEST-OR-ADDRESS:PORT[-PORT]\"";

/// One published port range: `"tcp 127.0.0.1:8080 web:80"` or the same as a table.
fn publish(entry: &Entry<'_>) -> Result<Publish, Fault> {
    const PROTO: [(&str, Proto); 2] = [("tcp", Proto::Tcp), ("udp", Proto::Udp)];
    if entry.is_table() {
        let section = entry.section(&["proto", "listen", "to"])?;
        let proto = section.need("proto", FORM)?.choice(&PROTO)?;
        let (listen, to) = (section.need("listen", FORM)?, section.need("to", FORM)?);
        let wrong =
            |entry: &Entry<'_>, text: &str| entry.fault(format!("`{text}` is not an address with ports; {FORM}"));
        let (listen_text, to_text) = (listen.text()?, to.text()?);
        let outside = self::listen(listen_text).ok_or_else(|| wrong(&listen, listen_text))?;
        let inside = self::to(to_text).ok_or_else(|| wrong(&to, to_text))?;
        return joined(proto, outside, inside)
            .ok_or_else(|| to.fault("the ranges of `listen` and `to` differ in length"));
    }
    let text = entry.text()?;
    let wrong = || entry.fault(format!("`{text}` is wrong; {FORM}"));
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [proto, outside, inside] = parts.as_slice() else { return Err(wrong()) };
    let (_, proto) = *PROTO.iter().find(|(word, _)| word == proto).ok_or_else(wrong)?;
    let outside = listen(outside).ok_or_else(wrong)?;
    let inside = to(inside).ok_or_else(wrong)?;
    joined(proto, outside, inside).ok_or_else(|| entry.fault("the two port ranges differ in length"))
}

fn joined(
    proto: Proto,
    (listen, count): (SocketAddr, u16),
    (to, to_port, inside): (Target, u16, u16),
) -> Option<Publish> {
    (count == inside).then_some(Publish { proto, listen, to, to_port, count })
}

/// `HOST:PORT[-PORT]`: the host, the first port and how many there are.
fn span(text: &str) -> Option<(&str, u16, u16)> {
    let (host, range) = text.rsplit_once(':')?;
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last).then(|| (host, first, last - first + 1))
}

fn listen(text: &str) -> Option<(SocketAddr, u16)> {
    let (host, first, count) = span(text)?;
    Some((format!("{host}:{first}").parse().ok()?, count))
}

fn to(text: &str) -> Option<(Target, u16, u16)> {
    let (host, first, count) = span(text)?;
    let target = match format!("{host}:{first}").parse::<SocketAddr>() {
        Ok(address) => Target::Address(address.ip()),
        Err(_) => Target::Guest(host.parse().ok()?),
    };
    Some((target, first, count))
}

/// No port outside leads to two places.
fn disjoint(entry: &Entry<'_>, all: &[Publish]) -> Result<(), Fault> {
    for (at, one) in all.iter().enumerate() {
        let clash = all.iter().take(at).find(|other| clashes(one, other));
        if let Some(other) = clash {
            return Err(entry.fault(format!("`{one}` and `{other}` share a port outside; a port leads to one place")));
        }
    }
    Ok(())
}

/// Whether two publications want the same port of the same address.
pub(super) fn clashes(a: &Publish, b: &Publish) -> bool {
    let (from, until) = (u32::from(a.listen.port()), u32::from(a.listen.port()) + u32::from(a.count));
    let (other, end) = (u32::from(b.listen.port()), u32::from(b.listen.port()) + u32::from(b.count));
    let (one, two) = (a.listen.ip(), b.listen.ip());
    let address = one == two || (one.is_ipv4() == two.is_ipv4() && (one.is_unspecified() || two.is_unspecified()));
    a.proto == b.proto && address && from < end && other < until
}

/// What networks say of each other: those that `route` or `via` name are there, and have what it takes.
pub(super) fn check(networks: &[(Network, Entry<'_>)]) -> Result<(), Fault> {
    let by_name: HashMap<&Name, &Network> = networks.iter().map(|(network, _)| (&network.name, network)).collect();
    let find = |name: &Name| by_name.get(name).copied();
    let (mut taken, mut published) = (vlan::Taken::default(), Vec::new());
    for (network, entry) in networks {
        for other in &network.route {
            let Some(other) = find(other) else {
                return Err(entry.key_fault(format!("`route` names network {other}, which the file does not have")));
            };
            if !network.has_router() || !other.has_router() {
                let lacking = if network.has_router() { &other.name } else { &network.name };
                let what = format!("`route` leads over routers, and network {lacking} has none; give it `dhcp = true`");
                return Err(entry.key_fault(what));
            }
        }
        if let Some(Nat { engine: NatEngine::Packet { via: Via::Network(other), .. }, .. }) = &network.nat {
            match find(other) {
                Some(other) if other.name != network.name && other.mode != Mode::Nat => {}
                Some(_) => return Err(entry.key_fault("`via` names a network in another mode than nat, not this one")),
                None => {
                    return Err(entry.key_fault(format!("`via` names network {other}, which the file does not have")));
                }
            }
        }
        pool_is_outside(network, entry)?;
        vlan::overlaps(network, entry, &mut taken)?;
        publications(network, entry, &mut published)?;
    }
    Ok(())
}

/// The addresses of a pool are outside.
fn pool_is_outside(network: &Network, entry: &Entry<'_>) -> Result<(), Fault> {
    let Some(Nat { engine: NatEngine::Packet { outside, .. }, .. }) = &network.nat else { return Ok(()) };
    if network.without6 && outside.iter().any(IpAddr::is_ipv6) {
        let what = "`outside` has an IPv6 address, and `subnet6 = false` leaves guests without any; give a subnet6, or leave that address out";
        return Err(entry.key_fault(what));
    }
    let inside = |address: &&IpAddr| {
        let whole = super::Subnet::of(**address, if address.is_ipv4() { 32 } else { 128 });
        let mut subnets = network.segments().flat_map(|segment| [segment.subnet(), segment.subnet6()]);
        subnets.any(|subnet| subnet.is_some_and(|subnet| subnet.overlaps(whole)))
    };
    match outside.iter().find(inside) {
        None => Ok(()),
        Some(address) => {
            let what = format!("`outside` has {address}, which is inside: of the network's own subnet");
            Err(entry.key_fault(what))
        }
    }
}

/// No port of the host leads to two networks.
fn publications<'a>(
    network: &'a Network,
    entry: &Entry<'_>,
    published: &mut Vec<(&'a Publish, &'a Name)>,
) -> Result<(), Fault> {
    let Some(Nat { engine: NatEngine::Sockets { .. }, publish }) = &network.nat else { return Ok(()) };
    for one in publish {
        if let Some((two, name)) = published.iter().find(|(two, _)| clashes(one, two)) {
            let what = format!("`{one}` shares a port with `{two}` of network {name}");
            return Err(entry.key_fault(what));
        }
    }
    published.extend(publish.iter().map(|one| (one, &network.name)));
    Ok(())
}
