//! Stations that move to and fro, by network: between ports of a bridge, or between the hosts that a tunnel leads to.
//!
//! Invariant: each is told under the name of a network of the file. Read first: `wire::fdb`, `evpn::decide`.

use std::net::IpAddr;

use evpn::Duplicate;
use vswitch::change::Report;
use wire::{Mac, Vid, Vni};

use super::{
    View,
    stations::{Behind, tunnels},
};
use crate::{
    config::{Name, Network},
    model::Flapping,
};

/// All of them, with the names of their networks.
pub(super) fn all(view: &View, reports: &[Option<Report>]) -> Vec<(String, Flapping)> {
    let mut all = of_bridges(view, reports);
    for (vtep, one) in view.tunnels.flapping() {
        if let Some((network, vlan)) = network(view, &vtep, one.vni) {
            let between = one.between.map(|address| address.to_string());
            let (vlan, peer) = (vlan.map(Vid::get), None);
            let (mac, moves, held_s) = (one.mac.to_string(), one.moves, one.held.into());
            all.push((network.to_string(), Flapping { vlan, mac, between, peer, moves, held_s }));
        }
    }
    for (vtep, one) in view.tunnels.duplicates() {
        if let Some((network, vlan)) = network(view, &vtep, one.vni) {
            let Duplicate { mac, between, times, seen, .. } = one;
            let local = view.config.vteps.iter().find(|own| own.name == vtep).map(|own| own.local);
            let here = || port(view, reports, network, vlan, mac).unwrap_or_else(|| "this host".to_owned());
            let between = between.map(|at: IpAddr| if Some(at) == local { here() } else { at.to_string() });
            let moves = times * evpn::decide::MOVES as u64;
            let held_s = evpn::decide::HOLD.saturating_sub(seen.elapsed()).as_secs();
            let (vlan, mac, peer) = (vlan.map(Vid::get), mac.to_string(), None);
            all.push((network.to_string(), Flapping { vlan, mac, between, peer, moves, held_s }));
        }
    }
    all
}

fn of_bridges(view: &View, reports: &[Option<Report>]) -> Vec<(String, Flapping)> {
    let mut all = Vec::new();
    if reports.iter().flatten().all(|report| report.flapping.is_empty()) {
        return all;
    }
    let (names, tunnels, behind) = (view.names(), tunnels(view), Behind::ask(view));
    for (worker, report) in reports.iter().enumerate() {
        for one in report.iter().flat_map(|report| &report.flapping) {
            let name = |nic| names.get(&(worker, nic));
            let peer = |nic| Some(behind.get(*tunnels.get(&(worker, nic))?, one.mac)?.address.to_string());
            if let (Some((network, home)), Some((_, other))) = (name(one.home), name(one.other)) {
                let between = [home.clone(), other.clone()];
                let peer = peer(one.home).or_else(|| peer(one.other));
                let (vlan, mac) = (one.vlan.map(Vid::get), one.mac.to_string());
                let (moves, held_s) = (one.moves, one.held.into());
                all.push((network.clone(), Flapping { vlan, mac, between, peer, moves, held_s }));
            }
        }
    }
    all
}

/// The network that has a VNI of an endpoint of ours, and which VLAN of it.
fn network<'v>(view: &'v View, vtep: &str, vni: Vni) -> Option<(&'v Name, Option<Vid>)> {
    let of = |network: &Network| {
        let overlay = network.overlay.as_ref().filter(|overlay| overlay.vtep == vtep)?;
        overlay.segments.iter().find(|segment| segment.vni == vni).map(|segment| segment.vlan)
    };
    view.config.networks.iter().find_map(|network| Some((&network.name, of(network)?)))
}

/// The port of a network that a bridge knows a station behind, other than a tunnel's.
fn port(view: &View, reports: &[Option<Report>], network: &Name, vlan: Option<Vid>, mac: Mac) -> Option<String> {
    let (names, tunnels) = (view.names(), tunnels(view));
    reports.iter().enumerate().find_map(|(worker, report)| {
        let stations = report.iter().flat_map(|report| &report.fdb).flat_map(|(_, stations)| stations);
        let mut alike = stations.filter(|one| (one.vlan, one.mac) == (vlan, mac));
        alike.find_map(|one| {
            let at = (worker, one.nic);
            let (of, port) = names.get(&at).filter(|_| !tunnels.contains_key(&at))?;
            (of.as_str() == network.as_str()).then(|| port.clone())
        })
    })
}
