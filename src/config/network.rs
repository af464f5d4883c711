//! Reads `[networks.*]`.
//!
//! Invariant: a key is accepted only in the modes it means something in; what is not available is checked in full and
//! refused.

use std::net::IpAddr;

use super::{
    Reading,
    bridged::{self, Bridged},
    error::Fault,
    names::{Interface, Name, NameError, PortName},
    nat::{self, NatEngine, Via},
    overlay::{self, Vtep},
    reader::{Entry, Section},
    types::{Dhcp6, Host, Mode, Network},
    units::Subnet,
    vlan::{self, Defaults},
};

/// Smallest MTU of IPv4 in bytes (RFC 791 section 3.2).
pub(super) const MTU_MIN: u16 = 68;
/// Largest MTU in bytes: a frame of 65535 less its Ethernet header.
pub const MTU_MAX: u16 = 65_521;

/// Most time servers that a network may name.
const NTP_MAX: usize = 8;
/// The shortest prefix of a subnet that addresses are given out of.
const DHCP_PREFIX_MIN: u8 = 8;

pub(super) const KEYS: &[&str] = &[
    "mode",
    "subnet",
    "subnet6",
    "engine",
    "publish",
    "dhcp",
    "dhcp6",
    "mtu",
    "uplink",
    "tap",
    "outside",
    "next_hop",
    "bridge",
    "mac_nat",
    "overlay",
    "gateway_host",
    "vlan_vni",
    "host_access",
    "prefix6",
    "mappings",
    "via",
    "route",
    "domain",
    "ntp",
    "vlans",
];

const MODES: [(&str, Mode); 4] =
    [("isolated", Mode::Isolated), ("host-only", Mode::HostOnly), ("nat", Mode::Nat), ("bridged", Mode::Bridged)];

pub(super) const DHCP6: [(&str, Dhcp6); 3] =
    [("stateless", Dhcp6::Stateless), ("stateful", Dhcp6::Stateful), ("off", Dhcp6::Off)];

/// Keys that mean something in some modes only.
const ONLY_IN: [(&str, &[Mode]); 20] = [
    ("ntp", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("mappings", &[Mode::Nat]),
    ("host_access", &[Mode::Nat]),
    ("domain", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("prefix6", &[Mode::Nat]),
    ("via", &[Mode::Nat]),
    ("route", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("subnet", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("subnet6", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("dhcp", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("dhcp6", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("engine", &[Mode::Nat]),
    ("publish", &[Mode::Nat]),
    ("outside", &[Mode::Nat]),
    ("next_hop", &[Mode::Nat]),
    ("tap", &[Mode::Nat, Mode::HostOnly]),
    ("uplink", &[Mode::Nat, Mode::Bridged]),
    ("bridge", &[Mode::Bridged]),
    ("mac_nat", &[Mode::Bridged]),
    ("gateway_host", &[Mode::Isolated, Mode::Nat, Mode::HostOnly]),
];

pub(super) fn read(
    root: &Section<'_>,
    host: &Host,
    vteps: &mut Vec<Vtep>,
    reading: &mut Reading,
) -> Result<Vec<Network>, Fault> {
    let Some(networks) = root.get("networks") else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for (name, entry) in networks.named()? {
        all.push((network(name, &entry, host, vteps, reading)?, entry));
    }
    nat::check(&all)?;
    Ok(all.into_iter().map(|(network, _)| network).collect())
}

fn network(
    name: &str,
    entry: &Entry<'_>,
    host: &Host,
    vteps: &mut Vec<Vtep>,
    reading: &mut Reading,
) -> Result<Network, Fault> {
    let name: Name = name.parse().map_err(|error: NameError| entry.key_fault(error.to_string()))?;
    let section = entry.section(KEYS)?;
    let mode = section.map("mode", |entry| entry.choice(&MODES))?.unwrap_or(Mode::Isolated);
    for (key, modes) in ONLY_IN {
        if let Some(entry) = section.get(key).filter(|_| !modes.contains(&mode)) {
            let modes: Vec<String> = modes.iter().map(Mode::to_string).collect();
            let what = format!("`{key}` means nothing in mode {mode}; it is allowed in mode {}", modes.join(", "));
            return Err(entry.key_fault(what));
        }
    }
    let subnet = section.map("subnet", |entry| entry.parse_with(Subnet::v4))?;
    let without6 = section.get("subnet6").is_some_and(|entry| entry.is_false());
    let subnet6 = section.map("subnet6", subnet6)?.flatten();
    let mtu = section.map("mtu", |entry| entry.integer(MTU_MIN, MTU_MAX))?;
    let dhcp = section.map("dhcp", Entry::boolean)?;
    let dhcp6 = section.map("dhcp6", |entry| entry.choice(&DHCP6))?.unwrap_or_default();
    let overlay = overlay::read(&section, &name, vteps, reading)?;
    let gateway_host = gateway_host(&section, mode, dhcp, overlay.is_some(), entry)?;
    let gateway_elsewhere = gateway_host.as_ref().is_some_and(|name| *name != host.name);
    let nat = if mode == Mode::Nat { Some(nat::read(&section)?) } else { None };
    let nat = nat.filter(|_| !gateway_elsewhere);
    match nat.as_ref().map(|nat| &nat.engine) {
        Some(NatEngine::Packet { via: Via::Tap(tap), .. }) => {
            let given = section.get("tap");
            reading.claims.claim("TAP", tap, &format!("network {name}"), given.as_ref().unwrap_or(entry))?;
        }
        Some(NatEngine::Packet { via: Via::Uplink(uplink), .. }) => {
            let given = section.get("uplink");
            reading.claims.claim("uplink", uplink, &format!("network {name}"), given.as_ref().unwrap_or(entry))?;
        }
        _ => {}
    }
    let route = section.map("route", |entry| route(entry, &name))?.unwrap_or_default();
    let Bridged { uplink, bridge, mac_nat, tap: bridged_tap } = bridged::read(&name, mode, entry, &section, reading)?;
    let dhcp = dhcp.unwrap_or(matches!(mode, Mode::HostOnly | Mode::Nat));
    if dhcp || matches!(mode, Mode::HostOnly | Mode::Nat) {
        let at = ["dhcp", "subnet", "mode"].iter().find_map(|key| section.get(key));
        // Where none is given, one is chosen.
        let with6 = subnet6.is_some() || (mode == Mode::Nat && !without6);
        check_dhcp(at.as_ref().unwrap_or(entry), mode, subnet, with6, mtu)?;
    }
    let tap = if gateway_elsewhere {
        None
    } else if mode == Mode::HostOnly {
        Some(host_tap(&name, entry, &section, reading)?)
    } else {
        bridged_tap
    };
    let domain = section.map("domain", domain)?;
    let ntp = section.map("ntp", ntp)?.unwrap_or_default();
    let vlans = vlan::read(&section, &Defaults { mode, dhcp, dhcp6, ntp: &ntp, mtu })?;
    Ok(Network {
        name,
        mode,
        subnet,
        subnet6,
        without6,
        dhcp,
        dhcp6,
        tap,
        nat,
        route,
        domain,
        ntp,
        mtu,
        uplink,
        bridge,
        mac_nat,
        overlay,
        gateway_elsewhere,
        gateway_host,
        vlans,
    })
}

/// The host that runs the network's router, or is in it, where it stretches over several.
fn gateway_host<'a>(
    section: &Section<'a>,
    mode: Mode,
    dhcp: Option<bool>,
    stretches: bool,
    network: &Entry<'_>,
) -> Result<Option<String>, Fault> {
    let given = section.get("gateway_host");
    let has_gateway =
        dhcp.unwrap_or(matches!(mode, Mode::HostOnly | Mode::Nat)) || matches!(mode, Mode::HostOnly | Mode::Nat);
    match given {
        Some(entry) if !stretches => {
            Err(entry.key_fault("`gateway_host` means nothing without `overlay`: this host runs the gateway"))
        }
        Some(entry) => entry.text().map(|name| Some(name.to_owned())),
        None if stretches && has_gateway => {
            let what =
                "a gateway on an overlay runs on one host only; name it by `gateway_host`, as [host] name has it";
            Err(network.key_fault(what).help("the other hosts pass its frames on and answer nothing themselves"))
        }
        None => Ok(None),
    }
}

/// Whether the subnet has room for those who get addresses of it, and packets for what they are told.
pub(super) fn check_dhcp(
    entry: &Entry<'_>,
    mode: Mode,
    subnet: Option<Subnet>,
    with6: bool,
    mtu: Option<u16>,
) -> Result<(), Fault> {
    // The host, the router and a guest need six addresses with the subnet's own.
    let longest = if mode == Mode::HostOnly { 29 } else { 30 };
    if let Some(subnet) = subnet.filter(|subnet| !(DHCP_PREFIX_MIN..=longest).contains(&subnet.length())) {
        let what = format!("addresses cannot be given out of {subnet}; allowed are /{DHCP_PREFIX_MIN} to /{longest}");
        return Err(entry.key_fault(what));
    }
    let least = if with6 { 1280 } else { 576 };
    match mtu {
        Some(mtu) if mtu < least => {
            let fault = entry.key_fault(format!("guests that get addresses need an MTU of {least} or more, not {mtu}"));
            let without = mode == Mode::Nat && mtu >= 576;
            Err(if without { fault.help("without IPv6 576 are enough: write `subnet6 = false`") } else { fault })
        }
        _ => Ok(()),
    }
}

/// The host's interface in a host-only network.
fn host_tap(name: &Name, entry: &Entry<'_>, section: &Section<'_>, reading: &mut Reading) -> Result<Interface, Fault> {
    let given = section.get("tap");
    let tap: Interface = match &given {
        Some(given) => given.parse()?,
        None => format!("tl-{name}")
            .parse()
            .map_err(|_| entry.key_fault(format!("tl-{name} is too long for an interface; give one by `tap`")))?,
    };
    reading.claims.claim("TAP", &tap, &format!("network {name}"), given.as_ref().unwrap_or(entry))?;
    reading.claims.claim("port name", PortName::host(name), &format!("network {name}"), entry)?;
    Ok(tap)
}

pub(super) fn subnet6(entry: &Entry<'_>) -> Result<Option<Subnet>, Fault> {
    if entry.is_false() {
        return Ok(None);
    }
    entry.parse_with(Subnet::v6).map(Some)
}

pub(super) fn domain(entry: &Entry<'_>) -> Result<String, Fault> {
    let text = entry.text()?;
    let name = text.strip_suffix('.').unwrap_or(text);
    let fit = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
    };
    // Names of guests have room in front of it, and it has room in a router advertisement.
    if name.len() > 128 || !name.split('.').all(fit) {
        let what =
            format!("`{text}` is not a search domain; allowed are labels of letters, digits and `-`, 128 bytes in all");
        return Err(entry.fault(what));
    }
    Ok(name.to_ascii_lowercase())
}

/// Time servers that guests are told of.
pub(super) fn ntp(entry: &Entry<'_>) -> Result<Vec<IpAddr>, Fault> {
    let list = entry.list()?;
    if list.len() > NTP_MAX {
        return Err(entry.fault(format!("{} time servers are given; allowed are {NTP_MAX}", list.len())));
    }
    let server = |element: &Entry<'_>| {
        let text = element.text()?;
        let address: Option<IpAddr> = text.parse().ok();
        let unicast = address.filter(|address| !address.is_unspecified() && !address.is_multicast());
        unicast.ok_or_else(|| {
            let what = format!("`{text}` is not the address of a time server");
            element.fault(what).help("guests are told addresses, no names: write \"192.0.2.1\" or \"2001:db8::1\"")
        })
    };
    list.iter().map(server).collect()
}

/// Other networks that this one's router reaches.
fn route(entry: &Entry<'_>, own: &Name) -> Result<Vec<Name>, Fault> {
    let all: Vec<Name> = entry.list()?.iter().map(Entry::parse).collect::<Result<_, _>>()?;
    Ok(all.into_iter().filter(|name| name != own).collect())
}
