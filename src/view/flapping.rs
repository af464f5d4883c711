//! Stations that move to and fro, by network: between ports of a bridge, or between the hosts that a tunnel leads to.
//!
//! Invariant: each is told under the name of a network of the file. Read first: `wire::fdb`.

use wire::Vid;

use super::View;
use crate::{config::Network, model::Flapping};

/// All of them, with the names of their networks.
pub(super) fn all(view: &View, reports: &[Option<vswitch::change::Report>]) -> Vec<(String, Flapping)> {
    let names = view.names();
    let mut all = Vec::new();
    for (worker, report) in reports.iter().enumerate() {
        for one in report.iter().flat_map(|report| &report.flapping) {
            let name = |nic| names.get(&(worker, nic));
            if let (Some((network, home)), Some((_, other))) = (name(one.home), name(one.other)) {
                let between = [home.clone(), other.clone()];
                let (moves, held_s) = (one.moves, one.held.into());
                let flapping =
                    Flapping { vlan: one.vlan.map(Vid::get), mac: one.mac.to_string(), between, moves, held_s };
                all.push((network.clone(), flapping));
            }
        }
    }
    for (vtep, one) in view.tunnels.flapping() {
        let of = |network: &&Network| {
            let overlay = network.overlay.as_ref().filter(|overlay| overlay.vtep == vtep)?;
            overlay.segments.iter().find(|segment| segment.vni == one.vni).map(|segment| segment.vlan)
        };
        if let Some((network, vlan)) = view.config.networks.iter().find_map(|network| Some((network, of(&network)?))) {
            let between = one.between.map(|address| address.to_string());
            let (vlan, moves, held_s) = (vlan.map(Vid::get), one.moves, one.held.into());
            all.push((network.name.to_string(), Flapping { vlan, mac: one.mac.to_string(), between, moves, held_s }));
        }
    }
    all
}
