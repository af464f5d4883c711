//! Reads the key `stations` of an overlay: who is behind another host's tunnel endpoint for good.
//!
//! Invariant: each is behind one of the overlay's peers, in a segment that stretches; an address is behind one endpoint or port of a VLAN, and none is
//! the declared `mac` of a guest of this host. Read first: RFC 7348 section 4.1, `station.rs`.

use std::net::IpAddr;

use serde::Serialize;
use wire::{Mac, Vid};

use super::{
    Reading,
    error::Fault,
    guest::{mac, vid},
    names::Name,
    one_host,
    overlay::Stretch,
    reader::Entry,
    types::Port,
};

const KEYS: &[&str] = &["mac", "address", "ip", "vlan"];
/// Most stations of one network, and addresses of one station.
const STATIONS_MAX: usize = 4096;
const ADDRESSES_MAX: usize = 16;

/// A station behind another host's tunnel endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Behind {
    /// Its MAC.
    #[serde(serialize_with = "text")]
    pub mac: Mac,
    /// The tunnel endpoint, one of the peers.
    pub address: IpAddr,
    /// Its IP addresses. Default: none.
    pub ip: Vec<IpAddr>,
    /// The VLAN it is in. Default: the segment without one, or the only one that stretches.
    #[serde(serialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vid>,
}

/// A station, and what is wrong if a guest's port has its address.
pub(super) struct Unless {
    network: Name,
    mac: Mac,
    fault: Fault,
}

/// The stations of an overlay that stretches to these peers with these segments.
pub(super) fn read(
    entry: &Entry<'_>,
    network: &Name,
    peers: &[IpAddr],
    segments: &[Stretch],
    reading: &mut Reading,
) -> Result<Vec<Behind>, Fault> {
    let list = entry.list()?;
    if list.len() > STATIONS_MAX {
        return Err(entry.fault(format!("{} stations are given; allowed are {STATIONS_MAX}", list.len())));
    }
    list.iter().map(|entry| station(entry, network, peers, segments, reading)).collect()
}

fn station(
    entry: &Entry<'_>,
    network: &Name,
    peers: &[IpAddr],
    segments: &[Stretch],
    reading: &mut Reading,
) -> Result<Behind, Fault> {
    let section = entry.section(KEYS)?;
    let place = section.need("mac", "the MAC address of the station, for example \"02:00:00:00:00:05\"")?;
    let mac = mac(&place)?;
    let behind = section.need("address", "the tunnel endpoint that the station is behind, one of `peers`")?;
    let address: IpAddr = behind.parse()?;
    if !peers.contains(&address) {
        return Err(behind.fault(format!("{address} is none of the overlay's `peers`; add it there")));
    }
    let vlan = section.map("vlan", vid)?;
    let vlan = match (vlan, segments) {
        (None, [only]) => only.vlan,
        (vlan, _) if segments.iter().any(|segment| segment.vlan == vlan) => vlan,
        (None, _) => return Err(entry.fault("which VLAN? Only VLANs of this network stretch; add `vlan`")),
        (Some(vlan), _) => {
            return Err(entry.fault(format!("VLAN {vlan} does not stretch to other hosts; see `vlan_vni`")));
        }
    };
    let ip = section.map("ip", |entry| addresses(entry, network, vlan, mac, reading))?.unwrap_or_default();
    let of = vlan.map_or_else(String::new, |vlan| format!(" in VLAN {vlan}"));
    let claimed = format!("{mac}{of} in network {network}");
    reading.claims.claim("static address", claimed, &format!("overlay of {network}"), &place)?;
    let fault = place.fault(format!("{mac} is the declared `mac` of a port of this network here"));
    reading.unless.push(Unless { network: network.clone(), mac, fault });
    Ok(Behind { mac, address, ip, vlan })
}

fn addresses(
    entry: &Entry<'_>,
    network: &Name,
    vlan: Option<Vid>,
    mac: Mac,
    reading: &mut Reading,
) -> Result<Vec<IpAddr>, Fault> {
    let list = entry.list()?;
    if list.len() > ADDRESSES_MAX {
        return Err(entry.fault(format!("{} addresses are given; allowed are {ADDRESSES_MAX}", list.len())));
    }
    let one = |place: &Entry<'_>| {
        let address = one_host::read(place)?;
        let of = vlan.map_or_else(String::new, |vlan| format!(" in VLAN {vlan}"));
        let claimed = format!("{address}{of} in network {network}");
        reading.claims.claim("address of a station", claimed, &format!("station {mac}"), place)?;
        Ok(address)
    };
    list.iter().map(one).collect()
}

/// Checks stations against the ports of guests.
pub(super) fn check(unless: Vec<Unless>, ports: &[Port]) -> Result<(), Fault> {
    // Without a guard, too: the static entry would take the guest's frames away.
    let is_wrong = |one: &Unless| ports.iter().any(|port| port.network == one.network && port.mac == Some(one.mac));
    match unless.into_iter().find(is_wrong) {
        Some(wrong) => Err(wrong.fault),
        None => Ok(()),
    }
}

fn text<S: serde::Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mac)
}

fn number<S: serde::Serializer>(vlan: &Option<Vid>, serializer: S) -> Result<S::Ok, S::Error> {
    vlan.map(Vid::get).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{are_told, read};

    const START: &str =
        "[networks.t]\nvlan_vni = { 100 = 9 }\noverlay = { vni = 7, local = \"192.0.2.1\", peers = [\"192.0.2.2\"], ";

    #[test]
    fn stations_are_static_entries_of_the_port_of_their_segment() {
        let mac = |n: u8| format!("mac = \"02:00:00:00:00:0{n}\", address = \"192.0.2.2\"");
        let text = format!(
            "{START}suppress = true, stations = [{{ {}, ip = [\"10.0.0.5\", \"fd00::5\"] }}, {{ {}, vlan = 100 }}] }}\n",
            mac(5),
            mac(6)
        );
        let config = read(&text).unwrap();
        let overlay = config.networks[0].overlay.as_ref().unwrap();
        assert!(overlay.suppress);
        assert_eq!(overlay.stations.iter().map(|station| station.ip.len()).collect::<Vec<_>>(), [2, 0]);
        let ports: Vec<Vec<String>> =
            config.ports.iter().map(|port| port.fdb.iter().map(|one| one.mac.to_string()).collect()).collect();
        assert_eq!(ports, [["02:00:00:00:00:05"], ["02:00:00:00:00:06"]]);
        assert!(!read(&text.replace("suppress = true, ", "")).unwrap().networks[0].overlay.as_ref().unwrap().suppress);
    }

    #[test]
    fn wrong_stations() {
        let with = |stations: &str, rest: &str| format!("{START}stations = [{stations}] }}\n{rest}");
        let own = "[guests.g]\nports = [{ network = \"t\", mac = \"02:00:00:00:00:05\" }]";
        let unguarded = own.replace(" }]", ", guard = false }]");
        let one = "{ mac = \"02:00:00:00:00:05\", address = \"192.0.2.2\" }";
        let ip = "{ mac = \"02:00:00:00:00:05\", address = \"192.0.2.2\", ip = [\"224.0.0.1\"] }";
        let vlan = "{ mac = \"02:00:00:00:00:05\", address = \"192.0.2.2\", vlan = 5 }";
        let path = |rest: &str| format!("networks.t.overlay.stations[{rest}");
        are_told(&[
            (&with(&one.replace("2.2", "2.9"), ""), 3, &path("0].address"), "none of the overlay's `peers`"),
            (&with(&one.replace("02:", "03:"), ""), 3, &path("0].mac"), "group address"),
            (&with(&format!("{one}, {one}"), ""), 3, &path("1].mac"), "taken by overlay of t"),
            (&with(ip, ""), 3, &path("0].ip[0]"), "not the address of one host"),
            (&with(vlan, ""), 3, &path("0]"), "VLAN 5 does not stretch"),
            (&with(one, own), 3, &path("0].mac"), "declared `mac` of a port"),
            (&with(one, &unguarded), 3, &path("0].mac"), "declared `mac` of a port"),
        ]);
    }
}
