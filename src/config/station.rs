//! Reads the key `fdb` of a port: stations that are behind it for good.
//!
//! Invariant: a station's VLAN is one that its port carries, an address is behind one port of a VLAN, and no station is the declared
//! `mac` of another port of the network. Read first: IEEE 802.1Q clause 8.8.1 (static filtering entries).

use super::{
    Reading,
    error::Fault,
    guest::{mac, vid},
    reader::Entry,
    types::{Port, Station, Tagging},
};
use wire::Vid;

/// Most stations that a port may have.
const STATIONS_MAX: usize = 64;
/// Most stations in all ports of a network: static entries may use half of its forwarding table.
const NETWORK_MAX: usize = vswitch::fdb::DEFAULT_CAPACITY / 2;

/// The stations of a port that carries VLANs as `tagging` says.
pub(super) fn read(entry: &Entry<'_>, tagging: &Tagging) -> Result<Vec<Station>, Fault> {
    let list = entry.list()?;
    if list.len() > STATIONS_MAX {
        return Err(entry.fault(format!("{} stations are given; allowed are {STATIONS_MAX}", list.len())));
    }
    list.iter().map(|entry| station(entry, tagging)).collect()
}

/// `"02:00:00:00:00:05"` in the VLAN of untagged frames, or a table with a `vlan` that the port carries.
fn station(entry: &Entry<'_>, tagging: &Tagging) -> Result<Station, Fault> {
    let (address, given) = if entry.is_table() {
        let section = entry.section(&["mac", "vlan"])?;
        let address = section.need("mac", "the address of the station, for example \"02:00:00:00:00:05\"")?;
        (address, section.get("vlan"))
    } else {
        (entry.clone(), None)
    };
    let mac = mac(&address)?;
    let untagged = match tagging {
        Tagging::Untagged {} => None,
        Tagging::Access { vlan } => Some(*vlan),
        Tagging::Trunk { native: Some(native), .. } => Some(*native),
        Tagging::Trunk { native: None, .. } if given.is_some() => None,
        Tagging::Trunk { native: None, .. } => {
            let what = "which VLAN? The port is a trunk without `native`";
            return Err(entry.fault(what).help(format!("write {{ mac = \"{mac}\", vlan = ... }}")));
        }
    };
    let Some(given) = given else { return Ok(Station { mac, vlan: untagged }) };
    let vlan = vid(&given)?;
    if !carries(tagging, vlan) {
        return Err(given.fault(format!("the port does not carry VLAN {vlan}; it is {tagging}")));
    }
    Ok(Station { mac, vlan: Some(vlan) })
}

fn carries(tagging: &Tagging, vlan: Vid) -> bool {
    match tagging {
        Tagging::Untagged {} => false,
        Tagging::Access { vlan: own } => *own == vlan,
        Tagging::Trunk { trunk, native } => *native == Some(vlan) || trunk.contains(&vlan),
    }
}

/// Checks the stations of all ports against each other; `entries` are the places of the keys, by port.
pub(super) fn check(ports: &[Port], entries: &[(usize, Entry<'_>)], reading: &mut Reading) -> Result<(), Fault> {
    for (index, entry) in entries {
        let Some(port) = ports.get(*index) else { continue };
        for (station, place) in port.fdb.iter().zip(entry.list()?) {
            let Station { mac, vlan } = station;
            let vlan = vlan.map_or_else(String::new, |vlan| format!(" in VLAN {vlan}"));
            let claimed = format!("{mac}{vlan} in network {}", port.network);
            reading.claims.claim("static address", claimed, &format!("port {}", port.name), &place)?;
            let other = ports.iter().find(|other| {
                other.network == port.network && other.name != port.name && other.guard && other.mac == Some(*mac)
            });
            if let Some(other) = other {
                return Err(place.fault(format!("{mac} is the declared `mac` of port {}", other.name)));
            }
        }
        let all: usize = ports.iter().filter(|other| other.network == port.network).map(|other| other.fdb.len()).sum();
        if all > NETWORK_MAX {
            let what = format!("network {} has {all} static addresses; allowed are {NETWORK_MAX}", port.network);
            return Err(entry.fault(what));
        }
    }
    Ok(())
}
