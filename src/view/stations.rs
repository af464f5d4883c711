//! Where stations are: what the bridges know, and of those that a tunnel leads to what the tunnel knows.
//!
//! Invariant: a station is listed once in its segment, and where the bridge and the tunnel do not agree the bridge is right: it has the frame first.
//! Read first: `vswitch`'s and `overlay`'s tables, [`crate::tunnels`].

use std::collections::{HashMap, HashSet};

use overlay::control::StationLine;
use wire::{Mac, NicId};

use super::View;
use crate::{
    config::{Attach, Tagging},
    model::FdbEntry,
};

/// A segment that is stretched to other hosts: the endpoint of ours and the VNI.
pub(super) type Stretch<'a> = (&'a str, u32);

/// The tunnels' ports, by worker and NIC.
pub(super) fn tunnels(view: &View) -> HashMap<(usize, NicId), Stretch<'_>> {
    let mut all = HashMap::new();
    for (port, at) in view.config.ports.iter().zip(&view.places) {
        if let Attach::Tunnel { vtep, vni } = &port.attach {
            all.insert(*at, (vtep.as_str(), *vni));
        }
    }
    all
}

/// Which endpoint of another host each station is behind, as the tunnels know it.
pub(super) struct Behind(HashMap<(String, u32, Mac), StationLine>);

impl Behind {
    pub(super) fn ask(view: &View) -> Behind {
        let lines = view.tunnels.stations().into_iter();
        Behind(lines.map(|(vtep, line)| ((vtep, line.vni.get(), line.mac), line)).collect())
    }

    pub(super) fn get(&self, (vtep, vni): Stretch<'_>, mac: Mac) -> Option<&StationLine> {
        self.0.get(&(vtep.to_owned(), vni, mac))
    }
}

/// All of them, in order.
pub(super) fn all(view: &View) -> Vec<FdbEntry> {
    let (names, tunnels) = (view.names(), tunnels(view));
    let (reports, behind) = (view.reports(), Behind::ask(view));
    let (mut entries, mut here) = (Vec::new(), HashSet::new());
    for (worker, report) in reports.into_iter().enumerate() {
        for station in report.into_iter().flat_map(|report| report.fdb).flat_map(|(_, stations)| stations) {
            let Some((network, port)) = names.get(&(worker, station.nic)).cloned() else { continue };
            let tunnel = tunnels.get(&(worker, station.nic)).copied();
            let line = tunnel.and_then(|tunnel| behind.get(tunnel, station.mac));
            let vlan = station.vlan.map(wire::Vid::get);
            here.insert((network.clone(), vlan, station.mac));
            entries.push(FdbEntry {
                network,
                vlan,
                vni: tunnel.map(|(_, vni)| vni),
                peer: line.map(|line| line.address.to_string()),
                mac: station.mac.to_string(),
                port,
                age_s: u64::from(station.age),
                fixed: station.fixed,
                told: station.told,
            });
        }
    }
    let told = view.config.told();
    // Whom no bridge knows, as it was silent here for longer, or had no room.
    let ports = view.config.ports.iter().filter_map(|port| match &port.attach {
        Attach::Tunnel { vtep, vni } => Some(((vtep.as_str(), *vni), port)),
        _ => None,
    });
    let ports: HashMap<Stretch<'_>, &crate::config::Port> = ports.collect();
    for ((vtep, vni, mac), line) in behind.0 {
        let Some(port) = ports.get(&(vtep.as_str(), vni)) else { continue };
        let vlan = match port.tagging {
            Tagging::Access { vlan } => Some(vlan.get()),
            _ => None,
        };
        if here.contains(&(port.network.to_string(), vlan, mac)) {
            continue;
        }
        let by_control = told.contains(vtep.as_str());
        entries.push(FdbEntry {
            network: port.network.to_string(),
            vlan,
            vni: Some(vni),
            peer: Some(line.address.to_string()),
            mac: mac.to_string(),
            port: port.name.to_string(),
            age_s: line.age.into(),
            fixed: line.placed && !by_control,
            told: line.placed && by_control,
        });
    }
    entries.sort_by(|a, b| (&a.network, a.vlan, &a.mac).cmp(&(&b.network, b.vlan, &b.mac)));
    entries
}
