//! [`Seat`]: a tunnel endpoint that is in a network of ours, in place of one on a socket of the host.
//!
//! Invariant: the network is there and is not stretched by such an endpoint itself, so that no packet goes round; every peer is in the endpoint's prefix or
//! behind its gateway, which is in it. Read first: `overlay`'s page on stations.

use std::net::IpAddr;

use serde::Serialize;
use wire::Mac;

use super::{
    error::Fault,
    guest::mac,
    names::{Name, PortName},
    one_host,
    overlay::{VTEP_KEYS, Vtep},
    reader::{Entry, Section, nearest},
    types::{Attach, Network, Port, Station, Tagging},
    units::Subnet,
};

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seat {
    /// The network.
    pub network: Name,
    /// The length of the prefix that its address is in.
    pub prefix: u8,
    /// The router that peers are behind which are not in that prefix. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Its MAC. Default: made of its address.
    #[serde(serialize_with = "text")]
    pub mac: Mac,
    /// UDP checksums are sent over IPv4, too. Default: false.
    pub checksum: bool,
}

/// Reads an endpoint's address, and where it is if that is a network of ours.
pub(super) fn read(section: &Section<'_>) -> Result<(IpAddr, Option<Seat>), Fault> {
    let local = section.need("local", "local is an IP address of this host, for example \"198.51.100.1\"")?;
    let Some(network) = section.get("network") else {
        for key in ["gateway", "mac", "checksum"] {
            if let Some(entry) = section.get(key) {
                let what = format!("`{key}` means nothing without `network`: the host's routes and interfaces apply");
                return Err(entry.key_fault(what));
            }
        }
        return Ok((one_host::own(&local)?, None));
    };
    let network: Name = network.parse()?;
    let text = local.text()?;
    let parts = text.split_once('/').and_then(|(address, length)| Some((address.parse().ok()?, length.parse().ok()?)));
    let Some((at, prefix)) = parts.filter(|(at, length): &(IpAddr, u8)| (1..=most(*at)).contains(length)) else {
        let what = format!("`{text}` is not an address with the length of its prefix");
        return Err(local.fault(what).help("in a network of ours write \"10.0.0.1/24\" or \"2001:db8::1/64\""));
    };
    one_host::check(&local, at)?;
    let gateway = section.map("gateway", |entry| gateway(entry, at, prefix))?;
    let mac = section.map("mac", mac)?.unwrap_or_else(|| mac_of(at));
    let checksum = section.map("checksum", Entry::boolean)?.unwrap_or(false);
    Ok((at, Some(Seat { network, prefix, gateway, mac, checksum })))
}

fn most(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The MAC of an endpoint that is given none: of IPv4 each address has its own, of IPv6 those have that differ in their last byte.
fn mac_of(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            Mac::new([0x02, 0x74, a, b, c, d])
        }
        IpAddr::V6(v6) => {
            let [.., last] = v6.octets();
            let [a, b, c, d] = crate::hash::of(&v6.to_string()).to_be_bytes();
            Mac::new([0x06, a, b, c, d, last])
        }
    }
}

fn gateway(entry: &Entry<'_>, local: IpAddr, prefix: u8) -> Result<IpAddr, Fault> {
    let gateway = one_host::read(entry)?;
    if gateway == local || !is_near(local, prefix, gateway) {
        let what = format!("{gateway} is no router that {local}/{prefix} reaches: it is not another address in there");
        return Err(entry.fault(what));
    }
    Ok(gateway)
}

fn is_near(local: IpAddr, prefix: u8, other: IpAddr) -> bool {
    local.is_ipv4() == other.is_ipv4() && Subnet::of(local, prefix).overlaps(Subnet::of(other, most(other)))
}

/// Checks what depends on networks.
pub(super) fn check(root: &Section<'_>, vteps: &[Vtep], networks: &[Network]) -> Result<(), Fault> {
    let Some(entries) = root.get("vteps") else { return Ok(()) };
    for (name, entry) in entries.named()? {
        let Some(vtep) = vteps.iter().find(|vtep| vtep.name == name) else { continue };
        let Some(seat) = &vtep.seat else { continue };
        let at = entry.section(VTEP_KEYS)?.get("network");
        let at = at.as_ref().unwrap_or(&entry);
        let Some(network) = networks.iter().find(|network| network.name == seat.network) else {
            let fault = at.fault(format!("there is no network `{}`", seat.network));
            return Err(match nearest(seat.network.as_str(), networks.iter().map(|network| network.name.as_str())) {
                Some(near) => fault.help(format!("the nearest network is `{near}`")),
                None => fault,
            });
        };
        let stretched =
            network.overlay.as_ref().and_then(|overlay| vteps.iter().find(|vtep| vtep.name == overlay.vtep));
        if let Some(by) = stretched.filter(|by| by.seat.is_some()) {
            let what = format!(
                "network {} is stretched by tunnel endpoint {}, which is in a network itself",
                network.name, by.name
            );
            return Err(at
                .fault(what)
                .help("tunnels in tunnels are not carried; give a network that is none, or an address of the host"));
        }
        for overlay in
            networks.iter().filter_map(|network| network.overlay.as_ref()).filter(|overlay| overlay.vtep == name)
        {
            let far = overlay.peers.iter().find(|peer| !is_near(vtep.local, seat.prefix, **peer));
            if let Some(far) = far.filter(|_| seat.gateway.is_none()) {
                let what = format!("peer {far} is not in the prefix of {}/{}", vtep.local, seat.prefix);
                return Err(entry.key_fault(what).help("give the router that leads there by `gateway`"));
            }
        }
    }
    Ok(())
}

/// The ports of the endpoints that are in networks.
pub(super) fn ports(vteps: &[Vtep], networks: &[Network]) -> Vec<Port> {
    let port = |vtep: &Vtep| {
        let seat = vtep.seat.as_ref()?;
        let network = networks.iter().find(|network| network.name == seat.network)?;
        let attach = Attach::Endpoint { vtep: vtep.name.clone() };
        let port = network.own_port(PortName::endpoint(&network.name, &vtep.name), attach, Tagging::Untagged {});
        // Its MAC is nobody else's, and nobody speaks for its address.
        let fdb = vec![Station { mac: seat.mac, vlan: None }];
        Some(Port { is_host: true, mac: Some(seat.mac), addresses: vec![vtep.local], fdb, ..port })
    };
    vteps.iter().filter_map(port).collect()
}

fn text<S: serde::Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mac)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::Ipv6Addr};

    use super::{
        super::tests::{are_told, read},
        *,
    };

    const FABRIC: &str = "[networks.fabric]\n[networks.t]\noverlay = { vtep = \"main\", vni = 1 }\n";

    #[test]
    fn an_endpoint_in_a_network_is_a_port_of_it() {
        let text = format!(
            "{FABRIC}[vteps.main]\nnetwork = \"fabric\"\nlocal = \"10.0.0.1/24\"\ngateway = \"10.0.0.254\"\npeers = [\"10.0.0.2\", \"10.1.0.2\"]"
        );
        let config = read(&text).unwrap();
        let port = config.ports.iter().find(|port| port.network.as_str() == "fabric").unwrap();
        assert_eq!((port.name.as_str(), port.attach.word()), ("fabric/endpoint/main", "endpoint"));
        assert_eq!((port.addresses.as_slice(), port.fdb.len()), (&["10.0.0.1".parse().unwrap()][..], 1));
        let seat = config.vteps[0].seat.as_ref().unwrap();
        assert_eq!((seat.prefix, seat.checksum, Some(seat.mac)), (24, false, port.mac));
    }

    #[test]
    fn no_two_endpoints_of_a_fabric_get_one_mac() {
        let v4: HashSet<Mac> =
            (0..=u16::MAX).map(|n| mac_of((0x0a00_0000 + u32::from(n)).to_be_bytes().into())).collect();
        let v6: HashSet<Mac> =
            (0..=u16::MAX).map(|n| mac_of(Ipv6Addr::new(0xfd00, 0, 0, 7, 0, 0, 0, n).into())).collect();
        assert_eq!((v4.len(), v6.len(), v4.union(&v6).count()), (65_536, 65_536, 131_072));
        assert!(v4.iter().chain(&v6).all(|mac| mac.is_unicast()));
    }

    #[test]
    fn wrong_seats() {
        let with = |keys: &str| format!("{FABRIC}[vteps.main]\n{keys}");
        let texts = [
            with("network = \"fabrik\"\nlocal = \"10.0.0.1/24\""),
            with("network = \"t\"\nlocal = \"10.0.0.1/24\""),
            with("network = \"fabric\"\nlocal = \"10.0.0.1\""),
            with("network = \"fabric\"\nlocal = \"10.0.0.1/24\"\ngateway = \"10.0.1.1\""),
            with("network = \"fabric\"\nlocal = \"10.0.0.1/24\"\npeers = [\"10.0.1.1\"]"),
            with("local = \"10.0.0.1\"\nmac = \"02:00:00:00:00:01\""),
        ];
        are_told(&[
            (&texts[0], 5, "vteps.main.network", "no network `fabrik`"),
            (&texts[1], 5, "vteps.main.network", "in a network itself"),
            (&texts[2], 6, "vteps.main.local", "length of its prefix"),
            (&texts[3], 7, "vteps.main.gateway", "no router"),
            (&texts[4], 4, "vteps.main", "not in the prefix"),
            (&texts[5], 6, "vteps.main.mac", "means nothing without `network`"),
        ]);
    }
}
