//! `[vteps.*]` and the overlay keys of a network: [`Vtep`], [`Overlay`].
//!
//! Invariant: a VNI is one network of one tunnel endpoint, an endpoint has a local address and port of its own, and its peers are other hosts that
//! can be reached from it. Read first: RFC 7348 sections 4 and 5 (VXLAN), RFC 8365 (EVPN for overlays).

use std::{net::IpAddr, sync::Arc};

use overlay::Encapsulation;
use serde::Serialize;
use wire::{Vid, Vni};

use super::{
    Reading,
    behind::{self, Behind},
    dscp::{self, Dscp},
    error::Fault,
    evpn::{self, Evpn},
    names::{Name, PortName},
    one_host,
    reader::{Entry, Section, nearest},
    sealing::{self, Sealing},
    seat::{self, Seat},
    types::{Attach, Network, Port, Station, Tagging},
};

pub(super) const VTEP_KEYS: &[&str] = &[
    "local",
    "port",
    "encapsulation",
    "peers",
    "control",
    "speaker",
    "as",
    "network",
    "gateway",
    "mac",
    "checksum",
    "dscp",
    "key",
    "key_file",
    "wireguard_port",
];
const OVERLAY_KEYS: &[&str] = &[
    "vtep",
    "vni",
    "local",
    "peers",
    "group",
    "port",
    "anyone",
    "suppress",
    "stations",
    "key",
    "key_file",
    "wireguard_port",
];
/// Keys that only an endpoint with a name has.
const ENDPOINTS_KEYS: &[&str] =
    &["encapsulation", "control", "speaker", "as", "network", "gateway", "mac", "checksum", "dscp"];
/// Keys of an endpoint that a network may make along the way.
const OWN_KEYS: &[&str] = &["port", "key", "key_file", "wireguard_port"];
const ENCAPSULATIONS: [(&str, Encapsulation); 2] = [("vxlan", Encapsulation::Vxlan), ("geneve", Encapsulation::Geneve)];

/// A tunnel endpoint of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vtep {
    /// Its name; of one that a network's `overlay` makes, the address and port.
    pub name: String,
    /// Its address in the underlay, one of this host's.
    pub local: IpAddr,
    /// UDP port. Default: 4789, of Geneve 6081.
    pub port: u16,
    /// How frames are wrapped. Default: vxlan.
    #[serde(serialize_with = "word")]
    pub encapsulation: Encapsulation,
    /// The class of its packets. Default: 0.
    pub dscp: Dscp,
    /// The tunnel endpoints of the other hosts, of networks that name none of their own. Default: none.
    #[serde(skip_serializing_if = "is_empty")]
    pub peers: Arc<[IpAddr]>,
    /// The network of ours that it is in. Default: none, it is on a socket of the host.
    #[serde(flatten)]
    pub seat: Option<Seat>,
    /// Who tells where stations are (`control = "evpn"`). Default: nobody, and that is learnt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evpn: Option<Evpn>,
    /// What it seals its packets with. Default: none, they are open.
    #[serde(flatten)]
    pub seal: Option<Sealing>,
}

impl Vtep {
    /// The UDP port that it has on this host.
    pub fn udp(&self) -> u16 {
        self.seal.as_ref().map_or(self.port, |seal| seal.wireguard_port)
    }

    /// Bytes of the underlay's packets around an inner IP packet.
    pub fn around(&self) -> u16 {
        overlay::vtep::around(self.local.is_ipv4(), self.seal.is_some())
    }
}

/// How a network stretches to other hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overlay {
    /// The name of the tunnel endpoint.
    pub vtep: String,
    /// The tunnel endpoints of the other hosts. Default: none.
    pub peers: Arc<[IpAddr]>,
    /// A group of the underlay that frames to everybody go to, in place of `peers`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<IpAddr>,
    /// Packets of endpoints that are not named are taken, too. Default: false.
    pub anyone: bool,
    /// Guests that ask for a neighbour who is known behind an endpoint are answered here. Default: true where the endpoint has a speaker (`control = "evpn"`), else false.
    pub suppress: bool,
    /// Who is behind an endpoint for good. Default: nobody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stations: Vec<Behind>,
    /// VNIs, and whose frames they carry: a VLAN's, or those without one.
    pub segments: Vec<Stretch>,
}

/// One segment of a network in the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// The VLAN; nothing: the network's untagged segment.
    #[serde(serialize_with = "vlan", skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vid>,
    /// Its number in the underlay.
    #[serde(serialize_with = "number")]
    pub vni: Vni,
}

/// Reads every tunnel endpoint.
pub(super) fn read_vteps(root: &Section<'_>, reading: &mut Reading) -> Result<Vec<Vtep>, Fault> {
    let Some(vteps) = root.get("vteps") else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for (name, entry) in vteps.named()? {
        let name: Name = name.parse().map_err(|error: super::names::NameError| entry.key_fault(error.to_string()))?;
        let section = entry.section(VTEP_KEYS)?;
        let (local, seat) = seat::read(&section)?;
        let encapsulation = section.map("encapsulation", |entry| entry.choice(&ENCAPSULATIONS))?.unwrap_or_default();
        let port = section.map("port", udp_port)?.unwrap_or(encapsulation.port());
        let (name, dscp) = (name.to_string(), section.map("dscp", dscp::read)?.unwrap_or_default());
        let seal = sealing::read(&section)?;
        let mut vtep = Vtep { name, local, port, encapsulation, dscp, peers: Arc::default(), seat, evpn: None, seal };
        vtep.peers = section.map("peers", |entry| peers(entry, &mut vtep))?.unwrap_or_default();
        let given = section.get("local").unwrap_or_else(|| entry.clone());
        reading.claims.claim("address of a tunnel endpoint", at(&vtep), &format!("[vteps.{}]", vtep.name), &given)?;
        vtep.evpn = evpn::read(&section, encapsulation)?;
        sealing::check(&section, &vtep)?;
        all.push(vtep);
    }
    Ok(all)
}

fn at(vtep: &Vtep) -> String {
    let at = std::net::SocketAddr::new(vtep.local, vtep.udp());
    // An address in a network of ours is none of the host's.
    vtep.seat.as_ref().map_or_else(|| at.to_string(), |seat| format!("{at} in network {}", seat.network))
}

/// Points at a key that only endpoints with a name have.
fn of_an_endpoint(overlay: &Entry<'_>) -> Result<(), Fault> {
    let given = overlay.named()?.into_iter().find(|(key, _)| ENDPOINTS_KEYS.contains(key));
    given.map_or(Ok(()), |(key, entry)| {
        let what = format!("`{key}` belongs to the tunnel endpoint; set it in [vteps.NAME], and name that by `vtep`");
        Err(entry.key_fault(what))
    })
}

fn udp_port(entry: &Entry<'_>) -> Result<u16, Fault> {
    entry.integer(1u16, u16::MAX)
}

fn vni(entry: &Entry<'_>, vtep: &Vtep, network: &Name, reading: &mut Reading) -> Result<Vni, Fault> {
    let number = entry.integer(1u32, 16_777_215)?;
    let vni = Vni::new(number).ok_or_else(|| entry.fault("a VNI is 1 to 16777215"))?;
    // One endpoint tells its networks apart by their numbers.
    reading.claims.claim(
        "VNI",
        format!("{vni} of tunnel endpoint {}", vtep.name),
        &format!("network {network}"),
        entry,
    )?;
    Ok(vni)
}

/// Reads `overlay = { ... }` and `vlan_vni = { 100 = 5001 }` of a network; `vteps` gets those that are given along the way.
pub(super) fn read(
    section: &Section<'_>,
    network: &Name,
    vteps: &mut Vec<Vtep>,
    reading: &mut Reading,
) -> Result<Option<Overlay>, Fault> {
    let Some(entry) = section.get("overlay") else {
        return match section.get("vlan_vni") {
            Some(entry) => Err(entry.key_fault("`vlan_vni` maps VLANs onto an overlay; give `overlay` too")),
            None => Ok(None),
        };
    };
    of_an_endpoint(&entry)?;
    let inner = entry.section(OVERLAY_KEYS)?;
    let vlans = section.get("vlan_vni");
    let number = match (&vlans, inner.get("vni")) {
        (Some(_), None) => None,
        _ => Some(inner.need("vni", "vni is the number of the overlay, 1 to 16777215")?),
    };
    // What is out of range is told before what is not there.
    let number = number.map(|entry| entry.integer(1u32, 16_777_215).map(|number| (entry, number))).transpose()?;
    let mut vtep = endpoint(&inner, vteps, reading, network)?;
    sealing::check_overlay(&inner, &vtep)?;
    let vlans = vlans.map(|entry| entry.named()).transpose()?.unwrap_or_default();
    // A VLAN that has the network's own number is the one that stretches.
    let own =
        number.filter(|(_, number)| !vlans.iter().any(|(_, entry)| entry.integer(0, u32::MAX).ok() == Some(*number)));
    let mut segments = Vec::new();
    if let Some((number, _)) = own {
        segments.push(Stretch { vlan: None, vni: vni(&number, &vtep, network, reading)? });
    }
    for (vlan, element) in vlans {
        let vlan: Vid = vlan.parse().map_err(|error: wire::AddrError| element.key_fault(error.to_string()))?;
        segments.push(Stretch { vlan: Some(vlan), vni: vni(&element, &vtep, network, reading)? });
    }
    let peers = inner.map("peers", |entry| peers(entry, &mut vtep))?;
    // The keys that it gives are known to all networks of the endpoint.
    if let Some(known) = vteps.iter_mut().find(|known| known.name == vtep.name && vtep.seal.is_some()) {
        known.seal.clone_from(&vtep.seal);
    }
    let anyone = inner.map("anyone", Entry::boolean)?.unwrap_or(false);
    let group = inner.map("group", |entry| group(entry, &vtep))?;
    if let (Some(_), Some(entry)) = (&group, inner.get("peers")) {
        let what = "`group` and `peers` exclude each other: who has joined the group is a peer";
        return Err(entry.key_fault(what));
    }
    let peers = if group.is_some() { Arc::default() } else { peers.unwrap_or(vtep.peers) };
    let suppress = inner.map("suppress", Entry::boolean)?.unwrap_or(vtep.evpn.is_some());
    let read = |entry: &Entry<'_>| behind::read(entry, network, &peers, &segments, reading);
    let stations = inner.map("stations", read)?.unwrap_or_default();
    Ok(Some(Overlay { vtep: vtep.name, peers, group, anyone, suppress, stations, segments }))
}

/// A group of the underlay that endpoints join.
fn group(entry: &Entry<'_>, vtep: &Vtep) -> Result<IpAddr, Fault> {
    let group: IpAddr = entry.parse()?;
    if !group.is_multicast() {
        let what = format!("{group} is not the address of a group");
        return Err(entry
            .fault(what)
            .help("groups are 224.0.0.0/4 and ff00::/8; your own are in 239.0.0.0/8 and ff05::/16"));
    }
    if group.is_ipv4() != vtep.local.is_ipv4() {
        let what = format!("{group} cannot be joined from {}: one is IPv4, the other IPv6", vtep.local);
        return Err(entry.fault(what));
    }
    Ok(group)
}

fn peers(entry: &Entry<'_>, vtep: &mut Vtep) -> Result<Arc<[IpAddr]>, Fault> {
    entry.list()?.iter().map(|peer| self::peer(peer, vtep)).collect()
}

fn peer(entry: &Entry<'_>, vtep: &mut Vtep) -> Result<IpAddr, Fault> {
    let peer = sealing::peer(entry, vtep)?;
    one_host::reachable(entry, vtep.local, peer)
}

/// The endpoint that a network names, or makes.
fn endpoint(
    section: &Section<'_>,
    vteps: &mut Vec<Vtep>,
    reading: &mut Reading,
    network: &Name,
) -> Result<Vtep, Fault> {
    match (section.get("vtep"), section.get("local")) {
        (Some(_), Some(local)) => Err(local.key_fault("`vtep` and `local` exclude each other; give one of them")),
        (None, None) => Err(section.fault("neither `vtep` nor `local` is given; one of them is needed")),
        (None, Some(entry)) => {
            let local = one_host::own(&entry)?;
            let port = section.map("port", udp_port)?.unwrap_or(Encapsulation::Vxlan.port());
            let seal = sealing::read(section)?;
            let known = vteps.iter().find(|vtep| vtep.seat.is_none() && (vtep.local, vtep.port) == (local, port));
            if let Some(known) = known {
                sealing::same(section, known, seal.as_ref())?;
                return Ok(known.clone());
            }
            let mut vtep = Vtep {
                name: std::net::SocketAddr::new(local, port).to_string(),
                local,
                port,
                encapsulation: Encapsulation::Vxlan,
                dscp: Dscp::default(),
                peers: Arc::default(),
                seat: None,
                evpn: None,
                seal: None,
            };
            vtep.seal = seal;
            reading.claims.claim("address of a tunnel endpoint", at(&vtep), &format!("network {network}"), &entry)?;
            vteps.push(vtep.clone());
            Ok(vtep)
        }
        (Some(vtep), None) => match OWN_KEYS.iter().find_map(|key| Some((key, section.get(key)?))) {
            Some((key, own)) => {
                Err(own.key_fault(format!("`{key}` belongs to the tunnel endpoint; set it in [vteps]")))
            }
            None => known_vtep(&vtep, vteps),
        },
    }
}

fn known_vtep(entry: &Entry<'_>, vteps: &[Vtep]) -> Result<Vtep, Fault> {
    let text = entry.text()?;
    if let Some(vtep) = vteps.iter().find(|vtep| vtep.name == text) {
        return Ok(vtep.clone());
    }
    let fault = entry.fault(format!("there is no [vteps.{text}]"));
    Err(match nearest(text, vteps.iter().map(|vtep| vtep.name.as_str())) {
        Some(near) => fault.help(format!("the nearest tunnel endpoint is `{near}`")),
        None => fault.help("the file has no [vteps]; write `local` in place of `vtep`"),
    })
}

impl Network {
    /// The ports by which the network stretches to other hosts, one for each of its segments that does.
    pub fn tunnel_ports(&self) -> impl Iterator<Item = Port> {
        let segments = self.overlay.iter().flat_map(|overlay| overlay.segments.iter().map(move |one| (overlay, one)));
        segments.map(|(overlay, Stretch { vlan, vni })| {
            let tagging = vlan.map_or(Tagging::Untagged {}, |vlan| Tagging::Access { vlan });
            let attach = Attach::Tunnel { vtep: overlay.vtep.clone(), vni: vni.get() };
            let port = self.own_port(PortName::tunnel(&self.name, *vlan), attach, tagging);
            let here = overlay.stations.iter().filter(|station| station.vlan == *vlan);
            let fdb = here.map(|station| Station { mac: station.mac, vlan: *vlan }).collect();
            Port { is_uplink: true, fdb, ..port }
        })
    }
}

fn is_empty(peers: &Arc<[IpAddr]>) -> bool {
    peers.is_empty()
}

fn word<S: serde::Serializer>(encapsulation: &Encapsulation, serializer: S) -> Result<S::Ok, S::Error> {
    let word = ENCAPSULATIONS.iter().find(|(_, known)| known == encapsulation).map_or("", |(word, _)| word);
    serializer.serialize_str(word)
}

fn number<S: serde::Serializer>(vni: &Vni, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(vni.get())
}

fn vlan<S: serde::Serializer>(vlan: &Option<Vid>, serializer: S) -> Result<S::Ok, S::Error> {
    vlan.map(Vid::get).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{are_told, read},
        Network,
    };

    #[test]
    fn an_overlay_is_a_port_for_each_of_its_segments() {
        let text = "[host]\nname = \"hv2\"\n[vteps.main]\nlocal = \"192.0.2.1\"\nencapsulation = \"geneve\"\npeers = [\"192.0.2.3\"]\n\
                    [networks.a]\nmode = \"nat\"\noverlay = { vtep = \"main\", vni = 1 }\nvlan_vni = { 100 = 5001 }\n\
                    gateway_host = \"hv1\"\n[networks.b]\noverlay = { vni = 7, local = \"192.0.2.1\" }\nvlan_vni = { 5 = 7 }\n";
        let config = read(text).unwrap();
        let ports: Vec<String> =
            config.ports.iter().map(|port| format!("{} {} {:?}", port.name, port.tagging, port.attach)).collect();
        assert_eq!(
            ports,
            [
                "a/overlay untagged Tunnel { vtep: \"main\", vni: 1 }",
                "a/overlay/100 access 100 Tunnel { vtep: \"main\", vni: 5001 }",
                "b/overlay/5 access 5 Tunnel { vtep: \"192.0.2.1:4789\", vni: 7 }",
            ]
        );
        assert_eq!(config.vteps.iter().map(|vtep| vtep.port).collect::<Vec<_>>(), [6081, 4789]);
        let [a, b] = &config.networks[..] else { panic!("two networks") };
        assert!(a.gateway_elsewhere && !a.has_router() && !a.needs_subnet() && a.nat.is_none());
        assert!(!b.gateway_elsewhere);
        let peers = |network: &Network| network.overlay.as_ref().map(|overlay| overlay.peers.len());
        assert_eq!((peers(a), peers(b)), (Some(1), Some(0)), "those of the endpoint, where a network names none");
    }

    #[test]
    fn wrong_overlays() {
        are_told(&[
            ("[networks.t]\noverlay = { vni = 1 }", 2, "networks.t.overlay", "neither `vtep` nor `local`"),
            ("[networks.t]\noverlay = { vni = 0, vtep = \"x\" }", 2, "networks.t.overlay.vni", "1 to 16777215"),
            ("[networks.t]\noverlay = { vni = 1, vtep = \"x\" }", 2, "networks.t.overlay.vtep", "no [vteps.x]"),
            ("[vteps.main]\nport = 4789", 1, "vteps.main", "`local` is missing"),
            (
                "[networks.t]\noverlay = { vni = 1, local = \"192.0.2.1\", control = \"evpn\" }",
                2,
                "networks.t.overlay.control",
                "set it in [vteps.NAME]",
            ),
            (
                "[networks.t]\noverlay = { vni = 1, local = \"192.0.2.1\", group = \"192.0.2.2\" }",
                2,
                "networks.t.overlay.group",
                "not the address of a group",
            ),
            (
                "[networks.t]\noverlay = { vni = 1, local = \"192.0.2.1\", group = \"239.1.1.1\", peers = [] }",
                2,
                "networks.t.overlay.peers",
                "exclude each other",
            ),
            (
                "[networks.s]\noverlay = { vni = 1, local = \"192.0.2.1\" }\n[networks.t]\noverlay = { vni = 1, local = \"192.0.2.1\" }",
                4,
                "networks.t.overlay.vni",
                "taken by network s",
            ),
            (
                "[networks.t]\nmode = \"nat\"\noverlay = { vni = 1, local = \"192.0.2.1\" }",
                1,
                "networks.t",
                "name it by `gateway_host`",
            ),
            (
                "[networks.t]\nmode = \"nat\"\ngateway_host = \"a\"",
                3,
                "networks.t.gateway_host",
                "nothing without `overlay`",
            ),
        ]);
    }
}
