//! `status` and `show`: what the daemon answers, as tables for people or as it came for programs.
//!
//! Invariant: with `--json` the text is the daemon's own answer, so fields that this program does not know stay in it.

use crate::{
    args::Kind,
    client::{ClientError, ask},
    model::{
        Descriptors, DropCount, FdbEntry, LeaseEntry, NatEntry, NetworkStatus, PeerEntry, PortState, PortStatus,
        Status, VlanStatus, WorkerStatus,
    },
    table::{Table, bytes, count, duration},
};
use serde::de::DeserializeOwned;
use std::path::Path;

/// Why `show` has nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// A kind that does not exist yet.
    #[error(
        "`show {0}` is not available in this version; available are networks, ports, fdb, nat, drops, leases, peers"
    )]
    Unavailable(&'static str),
    /// No answer.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// The text of `status`.
///
/// # Errors
/// See [`ClientError`].
pub fn status(socket: &Path, json: bool) -> Result<String, ClientError> {
    text(socket, "/v1/status", json, |status: Status| overview(&status))
}

/// The text of `show KIND`.
///
/// # Errors
/// See [`ShowError`].
pub fn show(kind: Kind, socket: &Path, json: bool) -> Result<String, ShowError> {
    Ok(match kind {
        Kind::Networks => text(socket, "/v1/networks", json, |list: Vec<NetworkStatus>| networks(&list))?,
        Kind::Ports => text(socket, "/v1/ports", json, |list: Vec<PortStatus>| ports(&list))?,
        Kind::Fdb => text(socket, "/v1/fdb", json, |list: Vec<FdbEntry>| fdb(&list))?,
        Kind::Drops => text(socket, "/v1/drops", json, |list: Vec<DropCount>| drops(&list))?,
        Kind::Nat => text(socket, "/v1/nat", json, |list: Vec<NatEntry>| nat(&list))?,
        Kind::Leases => text(socket, "/v1/leases", json, |list: Vec<LeaseEntry>| leases(&list))?,
        Kind::Peers => text(socket, "/v1/peers", json, |list: Vec<PeerEntry>| peers(&list))?,
        Kind::Guests => return Err(ShowError::Unavailable("guests")),
    })
}

fn text<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    json: bool,
    people: impl FnOnce(T) -> String,
) -> Result<String, ClientError> {
    let (text, value) = ask(socket, path)?;
    Ok(if json { text + "\n" } else { people(value) })
}

fn leases(list: &[LeaseEntry]) -> String {
    if list.is_empty() {
        return "no leases\n".to_owned();
    }
    let mut table = Table::new(&["NETWORK", "VLAN", "ADDRESS", "MAC", "HOST NAME", ">EXPIRES IN"]);
    for lease in list {
        let LeaseEntry { network, vlan, mac, address, hostname, expires_s } = lease;
        table.row([
            network.clone(),
            vlan.map(|vlan| vlan.to_string()).unwrap_or_default(),
            address.clone(),
            mac.clone(),
            hostname.clone().unwrap_or_default(),
            duration(*expires_s),
        ]);
    }
    table.to_string()
}

fn peers(list: &[PeerEntry]) -> String {
    if list.is_empty() {
        return "no network stretches to other hosts\n".to_owned();
    }
    let mut table =
        Table::new(&["ENDPOINT", ">VNI", "PEER", "FROM", "STATE", "LAST HEARD", "SEAL", ">MACS", ">MTU", "PATH"]);
    for peer in list {
        let PeerEntry { vtep, vni, address, macs, mtu, state, silent_s, sealed, session_s, path, source } = peer;
        let seal = match (sealed, session_s) {
            (false, _) => "-".to_owned(),
            (true, None) => "no session".to_owned(),
            (true, Some(seconds)) => format!("for {}", duration(*seconds)),
        };
        table.row([
            vtep.clone(),
            vni.to_string(),
            address.clone(),
            source.clone(),
            state.clone(),
            silent_s.map_or_else(|| "never".to_owned(), |seconds| format!("{} ago", duration(seconds))),
            seal,
            count(*macs),
            mtu.to_string(),
            path.clone(),
        ]);
    }
    table.to_string()
}

fn nat(list: &[NatEntry]) -> String {
    if list.is_empty() {
        return "nothing is translated now\n".to_owned();
    }
    let heads = ["NETWORK", "PROTO", "INSIDE", "OUTSIDE", "REMOTE", "STATE", ">EXPIRES IN", ">PACKETS", ">BYTES"];
    let mut table = Table::new(&heads);
    for entry in list {
        table.row([
            entry.network.clone(),
            entry.proto.clone(),
            entry.inside.clone(),
            entry.outside.clone().unwrap_or_default(),
            entry.remote.clone().unwrap_or_default(),
            entry.state.clone(),
            entry.expires_s.map(duration).unwrap_or_default(),
            count(entry.packets),
            bytes(entry.bytes),
        ]);
    }
    table.to_string()
}

fn overview(status: &Status) -> String {
    let up = status.ports.iter().filter(|port| port.state == PortState::Up).count();
    let mut text = format!(
        "trunkline on {}, running for {}: {} of {} ports up\n\n",
        status.host,
        duration(status.uptime_s),
        up,
        status.ports.len()
    );
    let mut table = Table::new(&[">WORKER", "CPU", ">FRAMES", ">CYCLES/FRAME", ">BUSY"]);
    for (at, worker) in status.workers.iter().enumerate() {
        let cpu = worker.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
        table.row([at.to_string(), cpu, count(worker.frames), cost(worker), busy(worker)]);
    }
    text.push_str(&format!("{table}\n"));
    if let Some(Descriptors { open, limit }) = status.descriptors {
        text.push_str(&format!("{} of {} descriptors open\n\n", count(open), count(limit)));
    }
    text.push_str(&format!("{}\n{}", networks(&status.networks), ports(&status.ports)));
    text
}

fn cost(worker: &WorkerStatus) -> String {
    worker.busy_cycles.checked_div(worker.frames).map(count).unwrap_or_default()
}

fn busy(worker: &WorkerStatus) -> String {
    let all = u128::from(worker.busy_cycles) + u128::from(worker.idle_cycles);
    let share = (u128::from(worker.busy_cycles) * 100).checked_div(all);
    share.map(|share| format!("{share} %")).unwrap_or_default()
}

fn networks(list: &[NetworkStatus]) -> String {
    if list.is_empty() {
        return "no networks: the file has no [networks.NAME]\n".to_owned();
    }
    let mut table = Table::new(&["NETWORK", "MODE", "SUBNET", "SUBNET6", ">MTU", "PORTS", "LACKS"]);
    for network in list {
        let mtu = network.mtu.map(|mtu| mtu.to_string()).unwrap_or_default();
        let (subnet, subnet6) = (network.subnet.clone(), network.subnet6.clone());
        let (subnet, subnet6) = (subnet.unwrap_or_default(), subnet6.unwrap_or_default());
        let lacks = network.reason.clone().unwrap_or_default();
        table.row([network.name.clone(), network.mode.clone(), subnet, subnet6, mtu, network.ports.join(" "), lacks]);
        for VlanStatus { vlan, subnet, subnet6, ports } in &network.vlans {
            let (subnet, subnet6) = (subnet.clone().unwrap_or_default(), subnet6.clone().unwrap_or_default());
            let name = format!("  vlan {vlan}");
            table.row([name, String::new(), subnet, subnet6, String::new(), ports.join(" "), String::new()]);
        }
    }
    table.to_string()
}

fn ports(list: &[PortStatus]) -> String {
    if list.is_empty() {
        return "no ports: no guest in the file has any\n".to_owned();
    }
    let heads =
        ["PORT", "NETWORK", "GUEST", "ATTACH", "STATE", ">RX FRAMES", ">RX", ">TX FRAMES", ">TX", ">DROPS", "REASON"];
    let mut table = Table::new(&heads);
    for port in list {
        let state = match port.state {
            PortState::Waiting => "waiting",
            PortState::Up => "up",
            PortState::Down => "down",
        };
        table.row([
            port.name.clone(),
            port.network.clone(),
            port.guest.clone(),
            port.attach.clone(),
            state.to_owned(),
            count(port.rx_frames),
            bytes(port.rx_bytes),
            count(port.tx_frames),
            bytes(port.tx_bytes),
            count(port.drops.values().fold(0, |sum, count| sum.saturating_add(*count))),
            port.reason.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

fn fdb(list: &[FdbEntry]) -> String {
    if list.is_empty() {
        return "no addresses: nothing has been learned yet\n".to_owned();
    }
    let mut table = Table::new(&["NETWORK", "SEGMENT", "MAC", "PORT", "PEER", ">AGE", "KIND"]);
    for entry in list {
        let segment = match (entry.vlan, entry.vni) {
            (_, Some(vni)) => format!("vni {vni}"),
            (Some(vlan), None) => format!("vlan {vlan}"),
            (None, None) => "untagged".to_owned(),
        };
        let (age, kind) = match (entry.fixed, entry.told) {
            (true, _) => (String::new(), "static"),
            (_, true) => (String::new(), "told"),
            (false, false) => (duration(entry.age_s), "learned"),
        };
        let FdbEntry { network, mac, port, peer, .. } = entry.clone();
        table.row([network, segment, mac, port, peer.unwrap_or_default(), age, kind.to_owned()]);
    }
    table.to_string()
}

fn drops(list: &[DropCount]) -> String {
    if list.is_empty() {
        return "no drops\n".to_owned();
    }
    let mut table = Table::new(&["PORT", "REASON", ">FRAMES"]);
    for drop in list {
        table.row([drop.port.clone(), drop.reason.clone(), count(drop.count)]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_did_nothing_has_no_cost() {
        let worker = WorkerStatus { cpu: None, frames: 0, busy_cycles: 0, idle_cycles: 0 };
        assert_eq!((cost(&worker), busy(&worker)), (String::new(), String::new()));
        let worker = WorkerStatus { cpu: None, frames: 10, busy_cycles: 1_050, idle_cycles: u64::MAX };
        assert_eq!((cost(&worker).as_str(), busy(&worker).as_str()), ("105", "0 %"));
    }

    #[test]
    fn nothing_is_said_in_words() {
        for text in [networks(&[]), ports(&[]), fdb(&[]), drops(&[])] {
            assert!(text.starts_with("no "), "{text}");
        }
    }

    #[test]
    fn vlans_of_a_network_follow_it() {
        let vlan = VlanStatus {
            vlan: 7,
            subnet: Some("10.0.7.0/24".into()),
            subnet6: None,
            ports: vec!["web/0".into(), "t/0".into()],
        };
        let network = NetworkStatus {
            name: "lan".into(),
            mode: "isolated".into(),
            subnet: Some("10.0.0.0/24".into()),
            subnet6: None,
            mtu: None,
            ports: vec!["web/0".into(), "t/0".into()],
            vlans: vec![vlan],
            reason: None,
            flapping: Vec::new(),
        };
        let text = networks(&[network]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["lan", "isolated", "10.0.0.0/24", "-", "-", "web/0", "t/0", "-"]);
        assert_eq!(lines[2], ["vlan", "7", "-", "10.0.7.0/24", "-", "-", "web/0", "t/0", "-"]);
    }

    #[test]
    fn segments_have_names() {
        let entry = FdbEntry {
            network: "lan".into(),
            vlan: Some(7),
            vni: None,
            peer: None,
            mac: "02:00:00:00:00:01".into(),
            port: "web/0".into(),
            age_s: 61,
            fixed: false,
            told: false,
        };
        let other = FdbEntry { vlan: None, vni: Some(9), peer: Some("192.0.2.2".into()), told: true, ..entry.clone() };
        let text = fdb(&[entry.clone(), FdbEntry { vlan: None, fixed: true, ..entry }, other]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().skip(1).collect()).collect();
        let mac = "02:00:00:00:00:01";
        assert_eq!(lines[1], ["vlan", "7", mac, "web/0", "-", "1", "min", "1", "s", "learned"], "{text}");
        assert_eq!(lines[2], ["untagged", mac, "web/0", "-", "-", "static"], "{text}");
        assert_eq!(lines[3], ["vni", "9", mac, "web/0", "192.0.2.2", "-", "told"], "{text}");
    }
}
