//! Reads `[networks.*]`.
//!
//! Invariant: a key is accepted only in the modes it means something in; modes other than isolated are checked in
//! full and refused in this version.

use super::{
    Reading,
    error::Fault,
    names::{Interface, Name, NameError, PortName},
    overlay,
    reader::{Entry, Section},
    types::{Mode, Network},
    units::Subnet,
};
use std::net::{IpAddr, SocketAddr};

/// Smallest MTU of IPv4 in bytes (RFC 791 section 3.2).
pub(super) const MTU_MIN: u16 = 68;
/// Largest MTU in bytes: a frame of 65535 less its Ethernet header.
pub(super) const MTU_MAX: u16 = 65_521;

/// The shortest prefix of a subnet that addresses are given out of.
const DHCP_PREFIX_MIN: u8 = 8;

const KEYS: &[&str] = &[
    "mode",
    "subnet",
    "subnet6",
    "engine",
    "publish",
    "dhcp",
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
];

const MODES: [(&str, Mode); 4] =
    [("isolated", Mode::Isolated), ("host-only", Mode::HostOnly), ("nat", Mode::Nat), ("bridged", Mode::Bridged)];

/// Keys that mean something in some modes only.
const ONLY_IN: [(&str, &[Mode]); 12] = [
    ("subnet", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("subnet6", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("dhcp", &[Mode::Isolated, Mode::HostOnly, Mode::Nat]),
    ("engine", &[Mode::Nat]),
    ("publish", &[Mode::Nat]),
    ("outside", &[Mode::Nat]),
    ("next_hop", &[Mode::Nat]),
    ("tap", &[Mode::Nat, Mode::HostOnly]),
    ("uplink", &[Mode::Nat, Mode::Bridged]),
    ("bridge", &[Mode::Bridged]),
    ("mac_nat", &[Mode::Bridged]),
    ("gateway_host", &[Mode::Nat, Mode::HostOnly]),
];

pub(super) fn read(root: &Section<'_>, vteps: &[Name], reading: &mut Reading) -> Result<Vec<Network>, Fault> {
    let Some(networks) = root.get("networks") else { return Ok(Vec::new()) };
    networks.named()?.into_iter().map(|(name, entry)| network(name, &entry, vteps, reading)).collect()
}

fn network(name: &str, entry: &Entry<'_>, vteps: &[Name], reading: &mut Reading) -> Result<Network, Fault> {
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
    let subnet6 = section.map("subnet6", subnet6)?.flatten();
    let mtu = section.map("mtu", |entry| entry.integer(MTU_MIN, MTU_MAX))?;
    let dhcp = section.map("dhcp", Entry::boolean)?;
    outward(&section, mode)?;

    if let Some(entry) = section.get("mode").filter(|_| mode == Mode::Nat) {
        let instead = "write mode = \"isolated\", \"host-only\" or \"bridged\"";
        reading.refuse(&entry, &format!("mode \"{mode}\""), instead);
    }
    let Bridged { uplink, bridge, mac_nat, tap: bridged_tap } = bridged(&name, mode, entry, &section, reading)?;
    let dhcp = dhcp.unwrap_or(mode == Mode::HostOnly);
    if dhcp || mode == Mode::HostOnly {
        let at = ["dhcp", "subnet", "mode"].iter().find_map(|key| section.get(key));
        check_dhcp(at.as_ref().unwrap_or(entry), mode, subnet, subnet6, mtu)?;
    }
    let tap = if mode == Mode::HostOnly { Some(host_tap(&name, entry, &section, reading)?) } else { bridged_tap };
    if let Some(entry) = section.get("overlay") {
        overlay::overlay(&entry, vteps)?;
        reading.refuse(&entry, "an overlay", "leave the key out");
    }
    if let Some(entry) = section.get("vlan_vni") {
        overlay::vlan_vni(&entry)?;
        if section.get("overlay").is_none() {
            return Err(entry.key_fault("`vlan_vni` maps VLANs onto an overlay; give `overlay` too"));
        }
    }
    Ok(Network { name, mode, subnet, subnet6, dhcp, tap, mtu, uplink, bridge, mac_nat })
}

/// Whether the subnet has room for those who get addresses of it, and packets for what they are told.
fn check_dhcp(
    entry: &Entry<'_>,
    mode: Mode,
    subnet: Option<Subnet>,
    subnet6: Option<Subnet>,
    mtu: Option<u16>,
) -> Result<(), Fault> {
    // The host, the router and a guest need six addresses with the subnet's own.
    let longest = if mode == Mode::HostOnly { 29 } else { 30 };
    if let Some(subnet) = subnet.filter(|subnet| !(DHCP_PREFIX_MIN..=longest).contains(&subnet.length())) {
        let what = format!("addresses cannot be given out of {subnet}; allowed are /{DHCP_PREFIX_MIN} to /{longest}");
        return Err(entry.key_fault(what));
    }
    let least = if subnet6.is_some() { 1280 } else { 576 };
    match mtu {
        Some(mtu) if mtu < least => {
            Err(entry.key_fault(format!("guests that get addresses need an MTU of {least} or more, not {mtu}")))
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

fn subnet6(entry: &Entry<'_>) -> Result<Option<Subnet>, Fault> {
    if entry.is_false() {
        return Ok(None);
    }
    entry.parse_with(Subnet::v6).map(Some)
}

/// Checks the keys of the modes that reach beyond the network.
fn outward(section: &Section<'_>, mode: Mode) -> Result<(), Fault> {
    let packet = section.map("engine", |entry| entry.choice(&[("sockets", false), ("packet", true)]))?;
    let packet = packet.unwrap_or(false);
    section.map("uplink", Entry::parse::<Interface>)?;
    section.map("tap", Entry::parse::<Interface>)?;
    section.map("bridge", Entry::parse::<Interface>)?;
    section.map("mac_nat", Entry::boolean)?;
    section.map("next_hop", Entry::parse::<IpAddr>)?;
    section.map("gateway_host", Entry::text)?;
    let outside = section
        .map("outside", |entry| entry.list()?.iter().map(Entry::parse::<IpAddr>).collect::<Result<Vec<_>, _>>())?;
    section.map("publish", |entry| entry.list()?.iter().try_for_each(publish))?;

    if mode == Mode::Nat && !packet {
        for key in ["uplink", "tap", "outside", "next_hop"] {
            if let Some(entry) = section.get(key) {
                let what = format!("`{key}` belongs to engine = \"packet\"; the engine here is \"sockets\"");
                return Err(entry.key_fault(what));
            }
        }
    }
    if packet {
        match (section.get("uplink"), section.get("tap")) {
            (Some(_), Some(tap)) => {
                return Err(tap.key_fault("`uplink` and `tap` exclude each other; give one of them"));
            }
            (None, None) => return Err(section.fault("engine = \"packet\" needs `uplink` or `tap`")),
            _ => {}
        }
        if outside.is_none_or(|addresses| addresses.is_empty()) {
            return Err(section.fault("engine = \"packet\" needs `outside`, the addresses of its pool"));
        }
    }
    Ok(())
}

/// What a bridged network is joined to.
#[derive(Default)]
struct Bridged {
    uplink: Option<Interface>,
    bridge: Option<Interface>,
    mac_nat: bool,
    tap: Option<Interface>,
}

fn bridged(
    name: &Name,
    mode: Mode,
    entry: &Entry<'_>,
    section: &Section<'_>,
    reading: &mut Reading,
) -> Result<Bridged, Fault> {
    if mode != Mode::Bridged {
        return Ok(Bridged::default());
    }
    let bridge = section.map("bridge", Entry::parse::<Interface>)?;
    let mac_nat = section.map("mac_nat", Entry::boolean)?.unwrap_or(false);
    if bridge.is_none() {
        section
            .need("uplink", "mode = \"bridged\" needs uplink, an interface of this host, or bridge, a bridge of it")?;
    }
    let owner = format!("network {name}");
    let uplink = match section.get("uplink") {
        Some(entry) => {
            let uplink: Interface = entry.parse()?;
            reading.claims.claim("uplink", &uplink, &owner, &entry)?;
            Some(uplink)
        }
        None => None,
    };
    if mac_nat {
        let entry = section.get("mac_nat");
        let entry = entry.as_ref().ok_or_else(|| section.fault("`mac_nat` is missing"))?;
        if bridge.is_some() {
            return Err(entry.key_fault("`mac_nat` joins no bridge; leave `bridge` out, or `mac_nat`"));
        }
        reading.refuse(entry, "MAC-NAT", "leave the key out, or name an existing bridge by `bridge`");
        return Ok(Bridged { uplink, bridge, mac_nat, tap: None });
    }
    let text = crate::bridged::interface_name("tlp-", name.as_str());
    let tap: Interface = text.parse().map_err(|_| entry.key_fault(format!("{text} is not a name of an interface")))?;
    reading.claims.claim("TAP", &tap, &owner, entry)?;
    reading.claims.claim("port name", PortName::uplink(name), &owner, entry)?;
    Ok(Bridged { uplink, bridge, mac_nat, tap: Some(tap) })
}

/// Checks one published port range: `"tcp 127.0.0.1:8080 web:80"` or the same as a table.
fn publish(entry: &Entry<'_>) -> Result<(), Fault> {
    const FORM: &str = "write \"tcp|udp LISTEN-ADDRESS:PORT[-PORT] GUEST-OR-ADDRESS:PORT[-PORT]\"";
    if entry.is_table() {
        let section = entry.section(&["proto", "listen", "to"])?;
        section.need("proto", FORM)?.choice(&[("tcp", ()), ("udp", ())])?;
        let (listen, to) = (section.need("listen", FORM)?, section.need("to", FORM)?);
        let span = |entry: &Entry<'_>, address: fn(&str) -> bool| {
            let text = entry.text()?;
            ports(text, address).ok_or_else(|| entry.fault(format!("`{text}` is not an address with ports; {FORM}")))
        };
        return match (span(&listen, is_listen_address)?, span(&to, is_target)?) {
            (listen, to) if listen == to => Ok(()),
            _ => Err(to.fault("the ranges of `listen` and `to` differ in length")),
        };
    }
    let text = entry.text()?;
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [proto, listen, to] = parts.as_slice() else { return Err(entry.fault(format!("`{text}` is wrong; {FORM}"))) };
    let lengths = (ports(listen, is_listen_address), ports(to, is_target));
    match (*proto, lengths) {
        ("tcp" | "udp", (Some(listen), Some(to))) if listen == to => Ok(()),
        ("tcp" | "udp", (Some(_), Some(_))) => Err(entry.fault("the two port ranges differ in length")),
        _ => Err(entry.fault(format!("`{text}` is wrong; {FORM}"))),
    }
}

/// How many ports `ADDRESS:PORT[-PORT]` names, if it is right.
fn ports(text: &str, address: fn(&str) -> bool) -> Option<u16> {
    let (host, range) = text.rsplit_once(':')?;
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last && address(host)).then(|| last - first)
}

fn is_listen_address(text: &str) -> bool {
    format!("{text}:1").parse::<SocketAddr>().is_ok()
}

fn is_target(text: &str) -> bool {
    text.parse::<Name>().is_ok() || is_listen_address(text)
}
