//! Checks of a daemon that runs: what it has seen that a file cannot say.
//!
//! Invariant: where no daemon answers there is nothing to check. Read first: [`super`], [`crate::client`].

use std::{collections::BTreeMap, path::Path};

use wire::DropReason;

use super::{Check, State, host::FEW_DESCRIPTORS};
use crate::{
    client,
    config::{Config, Network},
    model::{Descriptors, DropCount, FdbEntry, Flapping, NetworkStatus, PeerEntry, Status},
    own_mac,
    table::count,
};

/// The descriptors of the daemon, which has limits of its own; nothing where none answers, or one that does not tell.
pub(super) fn descriptors(socket: &Path) -> Option<Check> {
    if !socket.exists() {
        return None;
    }
    let (_, status) = client::ask::<Status>(socket, "/v1/status").ok()?;
    status.descriptors.map(room)
}

fn room(Descriptors { open, limit }: Descriptors) -> Check {
    let name = "descriptors";
    let detail = format!("the daemon has {} of {} open", count(open), count(limit));
    let few = match (open.saturating_mul(10) >= limit.saturating_mul(9), limit < FEW_DESCRIPTORS) {
        (true, _) => "guests behind NAT by sockets are refused more connections, or soon will be",
        (false, true) => "so many connections of NAT networks at once",
        (false, false) => return Check::fine(name, detail),
    };
    let remedy = format!(
        "raise the hard limit that the daemon is started with to {} or more (LimitNOFILE=, /etc/security/limits.conf), and start it again",
        FEW_DESCRIPTORS.max(limit.saturating_mul(2))
    );
    Check::wrong(name, State::Warning, format!("{detail}: {few}"), remedy)
}

/// Were guests refused because they had as many connections as they may? One check where any was.
pub(super) fn refusals(socket: &Path) -> Option<Check> {
    if !socket.exists() {
        return None;
    }
    let (_, drops) = client::ask::<Vec<DropCount>>(socket, "/v1/drops").ok()?;
    refused(&drops)
}

fn refused(drops: &[DropCount]) -> Option<Check> {
    let quota = drops.iter().filter(|drop| drop.reason == DropReason::NatQuota.name());
    let ports: Vec<String> = quota.map(|drop| format!("{} ({})", drop.port, count(drop.count))).collect();
    if ports.is_empty() {
        return None;
    }
    let detail = format!(
        "since the daemon's start, packets that would have begun one were refused for want of room, by ports: {}",
        ports.join(", ")
    );
    let remedy = "see what these guests do (`trunkline show nat`); with engine = \"sockets\" each port has an equal share of the daemon's \
                  descriptors, with \"packet\" of `mappings`: raise them";
    Some(Check::wrong("connections", State::Warning, detail, remedy))
}

/// One check for each network: does it have a loop outside?
pub(super) fn loops(socket: &Path) -> Vec<Check> {
    if !socket.exists() {
        return Vec::new();
    }
    match client::ask::<Vec<NetworkStatus>>(socket, "/v1/networks") {
        Ok((_, networks)) => networks.iter().map(of).collect(),
        Err(_) => Vec::new(),
    }
}

fn of(network: &NetworkStatus) -> Check {
    let name = format!("loops of {}", network.name);
    // The one of which most is known: the other host, and then how often it moved.
    let told = network.flapping.iter().max_by_key(|one| (one.peer.is_some(), one.moves));
    let Some(Flapping { mac, vlan, between: [home, other], peer, moves, held_s }) = told else {
        return Check::fine(name, "no station moves to and fro");
    };
    let vlan = vlan.map_or_else(String::new, |vlan| format!(" in VLAN {vlan}"));
    let others = match network.flapping.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let held = match held_s {
        0 => "it was held where it was first for a minute".to_owned(),
        left => format!("it is held at {home} for {left} s yet, and its frames from {other} are dropped (flapping)"),
    };
    let peer = peer.as_ref().map_or_else(String::new, |peer| format!(" (of the host at {peer})"));
    let detail = format!("{mac}{vlan}{others} moved {moves} times between {home} and {other}{peer}; {held}");
    let remedy = format!(
        "look how {home} and {other} are joined outside of this network, and part them there; or two guests have one MAC"
    );
    Check::wrong(name, State::Problem, detail, remedy)
}

/// One check for each network that stretches over hosts and has a gateway: does another host run it, too, or the one that is to?
pub(super) fn gateways(config: &Config) -> Vec<Check> {
    let networks: Vec<(&Network, &str)> =
        config.networks.iter().filter_map(|network| Some((network, network.gateway_host.as_deref()?))).collect();
    let socket = &config.host.control_socket;
    if networks.is_empty() || !socket.exists() {
        return Vec::new();
    }
    let Ok((_, drops)) = client::ask::<Vec<DropCount>>(socket, "/v1/drops") else { return Vec::new() };
    let Ok((_, fdb)) = client::ask::<Vec<FdbEntry>>(socket, "/v1/fdb") else { return Vec::new() };
    let check = |(network, host): (&Network, &str)| match network.gateway_elsewhere {
        true => gateway_of_another(network.name.as_str(), host, &fdb),
        false => gateway(network.name.as_str(), &drops),
    };
    networks.into_iter().map(check).collect()
}

/// A router of ours, or a host in a network of ours, has a MAC that others have not. One that says nothing for a time is forgotten, so that it was not
/// heard is no fault yet.
fn gateway_of_another(network: &str, host: &str, fdb: &[FdbEntry]) -> Check {
    let name = format!("gateway of {network}");
    let is_gateway = |mac: &str| mac.parse().is_ok_and(own_mac::is_gateway);
    let heard = fdb.iter().find(|one| one.network == network && is_gateway(&one.mac) && one.vni.is_some());
    let detail = match heard.map(|one| one.peer.as_deref().unwrap_or("the tunnel")) {
        Some(peer) => format!("{host} is to run it; a gateway was heard behind {peer}"),
        None => format!(
            "{host} is to run it; none was heard lately: if guests here ask for it in vain, see that a daemon runs whose [host] name is {host}"
        ),
    };
    Check::fine(name, detail)
}

/// What comes out of a tunnel in the name of a router of ours is dropped as forged, and counted at the tunnel.
fn gateway(network: &str, drops: &[DropCount]) -> Check {
    let (name, tunnel) = (format!("gateway of {network}"), format!("{network}/overlay"));
    let is_tunnel =
        |port: &str| port.strip_prefix(&tunnel).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let forged = drops.iter().filter(|drop| is_tunnel(&drop.port) && drop.reason.starts_with("spoofed_"));
    match forged.map(|drop| drop.count).sum::<u64>() {
        0 => Check::fine(name, "no other host speaks for it"),
        count => {
            let detail = format!(
                "{count} frames came out of the tunnel in the name of the gateway, or of a guest of this host, and were dropped (spoofed)"
            );
            let remedy = "see that `gateway_host` names the same host in every file, and that no guest runs twice; then start again to count anew";
            Check::wrong(name, State::Warning, detail, remedy)
        }
    }
}

/// The tunnel endpoints of other hosts that it knows.
pub(super) fn peers(socket: &Path) -> Vec<PeerEntry> {
    if !socket.exists() {
        return Vec::new();
    }
    client::ask(socket, "/v1/peers").map_or_else(|_| Vec::new(), |(_, peers)| peers)
}

/// One check for each sealed tunnel endpoint: has it a session with each of the others?
pub(super) fn seals(socket: &Path) -> Vec<Check> {
    let peers = peers(socket);
    let mut by_vtep: BTreeMap<&str, BTreeMap<&str, bool>> = BTreeMap::new();
    for peer in peers.iter().filter(|peer| peer.sealed) {
        by_vtep.entry(&peer.vtep).or_default().insert(&peer.address, peer.session_s.is_some());
    }
    by_vtep.iter().map(|(vtep, peers)| seal(vtep, peers)).collect()
}

fn seal(vtep: &str, peers: &BTreeMap<&str, bool>) -> Check {
    let name = format!("seals of {vtep}");
    let without: Vec<&str> = peers.iter().filter(|(_, has)| !**has).map(|(address, _)| *address).collect();
    if without.is_empty() {
        return Check::fine(name, format!("a session with each of {} endpoints", peers.len()));
    }
    let detail = format!("no session with {}", without.join(", "));
    let remedy = "is a daemon running there, does its firewall let UDP of `wireguard_port` in, is that the same on both, and does each host have the other's public key \
                  (`trunkline check` shows a host's own)? A session of which nothing was made use for long ends, too";
    Check::wrong(name, State::Warning, detail, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_for_a_gateway_from_elsewhere_is_told() {
        let drop = |port: &str, reason: &str| DropCount { port: port.to_owned(), reason: reason.to_owned(), count: 2 };
        let others = [drop("a/overlay", "runt"), drop("a/router", "spoofed_arp"), drop("ab/overlay", "spoofed_arp")];
        assert_eq!(gateway("a", &others).state, State::Ok);
        let check = gateway("a", &[drop("a/overlay", "spoofed_source"), drop("a/overlay/100", "spoofed_arp")]);
        assert_eq!((check.name.as_str(), check.state), ("gateway of a", State::Warning));
        assert!(check.detail.starts_with("4 frames"), "{}", check.detail);
    }

    #[test]
    fn who_has_no_session_is_named() {
        let check = seal("main", &[("192.0.2.2", true), ("192.0.2.3", false)].into());
        assert_eq!((check.state, check.detail.as_str()), (State::Warning, "no session with 192.0.2.3"));
        assert_eq!(seal("main", &[("192.0.2.2", true)].into()).state, State::Ok);
    }

    #[test]
    fn the_daemons_own_limit_counts() {
        let state = |open, limit| room(Descriptors { open, limit }).state;
        assert_eq!(
            (state(40, 1 << 20), state(40, 20_000), state(1 << 20, 1 << 20)),
            (State::Ok, State::Warning, State::Warning)
        );
        let full = room(Descriptors { open: 19_990, limit: 20_000 });
        assert!(full.detail.contains("19,990 of 20,000 open") && full.detail.contains("refused"), "{}", full.detail);
        assert!(descriptors(Path::new("/nonexistent/socket")).is_none());
    }

    #[test]
    fn who_was_refused_connections_is_named() {
        let drop = |port: &str, reason: &str| DropCount { port: port.into(), reason: reason.into(), count: 1234 };
        assert!(refused(&[drop("a/0", "ring_full")]).is_none());
        let check = refused(&[drop("a/0", "ring_full"), drop("b/0", "nat_quota")]).unwrap();
        assert_eq!(check.state, State::Warning);
        assert!(check.detail.ends_with("by ports: b/0 (1,234)"), "{}", check.detail);
    }

    #[test]
    fn a_loop_is_told_with_network_address_and_both_ports() {
        let mut network: NetworkStatus = serde_json::from_str(
            r#"{"name":"lan","mode":"isolated","subnet":null,"subnet6":null,"mtu":1500,"ports":[]}"#,
        )
        .unwrap();
        assert_eq!(of(&network).state, State::Ok);
        let between = ["lan/uplink".to_owned(), "198.51.100.2".to_owned()];
        network.flapping.push(Flapping {
            vlan: Some(7),
            mac: "02:00:00:00:00:01".to_owned(),
            between,
            peer: None,
            moves: 99,
            held_s: 12,
        });
        let check = of(&network);
        assert_eq!((check.name.as_str(), check.state), ("loops of lan", State::Problem));
        for part in ["02:00:00:00:00:01 in VLAN 7 moved 99 times between lan/uplink and 198.51.100.2", "for 12 s yet"] {
            assert!(check.detail.contains(part), "{}", check.detail);
        }
        network.flapping[0].between = ["web/0".to_owned(), "lan/overlay".to_owned()];
        network.flapping[0].peer = Some("198.51.100.2".to_owned());
        let detail = of(&network).detail;
        assert!(detail.contains("between web/0 and lan/overlay (of the host at 198.51.100.2)"), "{detail}");
        assert!(loops(Path::new("/nonexistent/socket")).is_empty());
    }
}
