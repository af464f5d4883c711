//! Checks of the ways to the other hosts of an overlay: do packets as long as the route takes arrive?
//!
//! Invariant: echo requests are sent, and nothing else. Read first: [`super`], [`crate::probe`].

use std::{collections::BTreeSet, io::ErrorKind, net::IpAddr};

use super::{Check, State, running};
use crate::{
    config::{Config, Vtep},
    model::PeerEntry,
    probe::{Way, probe},
    table::some,
    underlay,
};

/// Hosts named in a message, at most.
const NAMED: usize = 4;

/// For each tunnel endpoint that is on a socket of this host: is its address here, are its peers of the file (and those that a daemon which runs is told
/// of) reached, and is anything heard from them?
pub(super) fn check(config: &Config) -> Vec<Check> {
    let told = running::peers(&config.host.control_socket);
    let mut checks = Vec::new();
    for vtep in config.vteps.iter().filter(|vtep| vtep.seat.is_none()) {
        if let Ok(false) = underlay::is_here(vtep.local) {
            let detail = format!("{} is not an address of this host", vtep.local);
            let remedy = "give `local` an address that `ip address` lists";
            checks.push(Check::wrong(format!("endpoint {}", vtep.name), State::Problem, detail, remedy));
            continue;
        }
        let told: Vec<&PeerEntry> = told.iter().filter(|peer| peer.vtep == vtep.name).collect();
        checks.extend(ways(config, vtep, &told));
        checks.extend(heard(vtep, &told));
    }
    checks
}

fn ways(config: &Config, vtep: &Vtep, told: &[&PeerEntry]) -> Option<Check> {
    let overlays = config.networks.iter().filter_map(|network| network.overlay.as_ref());
    let mut peers: BTreeSet<IpAddr> = overlays
        .filter(|overlay| overlay.vtep == vtep.name)
        .flat_map(|overlay| overlay.peers.iter().copied())
        .collect();
    // Those that were told by BGP. Strangers are not asked: whoever forges a source must not have us send to it.
    let told = told.iter().filter(|peer| peer.source != "heard");
    peers.extend(told.filter_map(|peer| peer.address.parse::<IpAddr>().ok()));
    if peers.is_empty() {
        return None;
    }
    let name = format!("ways of {}", vtep.name);
    let ourselves: Vec<String> = underlay::ours(&peers).iter().map(ToString::to_string).collect();
    if !ourselves.is_empty() {
        let detail = format!("{} is an address of this host, not of another one", some(&ourselves, NAMED));
        let remedy = "`peers` names the addresses that the other hosts give as `local`";
        return Some(Check::wrong(name, State::Problem, detail, remedy));
    }
    let ways = match probe(vtep.local, &peers.iter().copied().collect::<Vec<_>>()) {
        Ok(ways) => ways,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let remedy = "sysctl -w net.ipv4.ping_group_range=\"0 2147483647\" (root needs it, too)";
            return Some(Check::wrong(name, State::Warning, "echo requests are not permitted", remedy));
        }
        Err(error) => {
            let detail = format!("no echo request can be sent from {}: {error}", vtep.local);
            return Some(Check::wrong(name, State::Problem, detail, "give `local` an address that `ip address` lists"));
        }
    };
    let no_route: Vec<String> =
        peers.iter().filter(|peer| !ways.iter().any(|(other, _)| other == *peer)).map(ToString::to_string).collect();
    let narrow: Vec<(IpAddr, u16)> = ways
        .iter()
        .filter_map(|(peer, way)| match way {
            Way::Narrow(mtu) => Some((*peer, *mtu)),
            _ => None,
        })
        .collect();
    let silent: Vec<String> =
        ways.iter().filter(|(_, way)| matches!(way, Way::Silent(_))).map(|(peer, _)| peer.to_string()).collect();
    if let Some(least) = narrow.iter().map(|(_, mtu)| *mtu).min() {
        let named: Vec<String> = narrow.iter().map(|(peer, mtu)| format!("{peer} ({mtu} bytes arrive)")).collect();
        let detail =
            format!("a black hole: packets that the route takes are lost on the way to {}", some(&named, NAMED));
        let remedy = format!(
            "mend the MTU of the links between, or give the networks mtu = {}; a daemon that runs finds it by itself",
            least.saturating_sub(vtep.around())
        );
        return Some(Check::wrong(name, State::Problem, detail, remedy));
    }
    if !no_route.is_empty() {
        let detail = format!("there is no route from {} to {}", vtep.local, some(&no_route, NAMED));
        return Some(Check::wrong(name, State::Problem, detail, "see `ip route get`"));
    }
    if !silent.is_empty() {
        let detail =
            format!("no answer to echo requests from {}; whether packets arrive is not known", some(&silent, NAMED));
        let remedy = "the host is down, or its firewall drops echo requests; those let through would tell";
        return Some(Check::wrong(name, State::Warning, detail, remedy));
    }
    let widths: BTreeSet<u16> = ways
        .iter()
        .map(|(_, way)| match way {
            Way::Whole(mtu) | Way::Narrow(mtu) | Way::Silent(mtu) => *mtu,
        })
        .collect();
    let widths: Vec<String> = widths.iter().map(ToString::to_string).collect();
    let widths = widths.join(", ");
    Some(Check::fine(name, format!("packets of {widths} bytes arrive at all {} hosts", ways.len())))
}

/// Endpoints that a daemon which runs has not heard in any of its networks. It is no fault where nobody has spoken yet.
fn heard(vtep: &Vtep, told: &[&PeerEntry]) -> Option<Check> {
    if told.is_empty() {
        return None;
    }
    let name = format!("tunnels of {}", vtep.name);
    let all: BTreeSet<&str> = told.iter().map(|peer| peer.address.as_str()).collect();
    let heard: BTreeSet<&str> =
        told.iter().filter(|peer| peer.silent_s.is_some()).map(|peer| peer.address.as_str()).collect();
    let never: Vec<String> = all.difference(&heard).map(ToString::to_string).collect();
    Some(Check::fine(
        name,
        if never.is_empty() {
            format!("packets have come from all {} hosts", all.len())
        } else {
            format!(
                "no packet has come from {} yet: if guests there have spoken, let UDP port {} in, here and there",
                some(&never, NAMED),
                vtep.udp()
            )
        },
    ))
}
