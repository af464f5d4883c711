//! What the control socket answers: the JSON that scripts are written against.
//!
//! Invariant: names of fields stay; fields may be added. The daemon writes these types, `status` and `show` read them.
//! Counters count since the daemon's start; directions are the switch's: rx came in from the guest.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Answer of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the host.
    pub host: String,
    /// Seconds since the daemon's start.
    pub uptime_s: u64,
    /// One element per worker.
    pub workers: Vec<WorkerStatus>,
    /// As `GET /v1/ports`.
    pub ports: Vec<PortStatus>,
    /// As `GET /v1/networks`.
    pub networks: Vec<NetworkStatus>,
    /// The daemon's file descriptors; null where it cannot say.
    #[serde(default)]
    pub descriptors: Option<Descriptors>,
}

/// File descriptors of the daemon: a connection, a mapping of UDP and a ping of networks behind NAT by sockets take one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptors {
    /// Those that are open.
    pub open: u64,
    /// As many may be open at once: the soft limit, which the daemon has raised to the hard one.
    pub limit: u64,
}

/// What one worker has done; `busy_cycles / frames` is the cost of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The CPU it is pinned to, or null.
    pub cpu: Option<u32>,
    /// Frames received on its lanes.
    pub frames: u64,
    /// TSC cycles in turns that moved frames.
    pub busy_cycles: u64,
    /// TSC cycles in turns that found none, and asleep.
    pub idle_cycles: u64,
}

/// Is a port attached?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// Ready to be attached; nobody has yet, or somebody left.
    Waiting,
    /// Attached: frames pass.
    Up,
    /// Cannot be attached, or was taken down; `reason` says why.
    Down,
}

/// One element of `GET /v1/ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Name of the port.
    pub name: String,
    /// The network it is in.
    pub network: String,
    /// The guest it belongs to.
    pub guest: String,
    /// `vhost-user` or `tap`.
    pub attach: String,
    /// Is it attached?
    pub state: PortState,
    /// Why it is in this state, if there is more to say.
    pub reason: Option<String>,
    /// Frames that came in from the guest.
    pub rx_frames: u64,
    /// Their bytes, without checksum.
    pub rx_bytes: u64,
    /// Frames that went out to the guest.
    pub tx_frames: u64,
    /// Their bytes, without checksum.
    pub tx_bytes: u64,
    /// Frames that ended at this port, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// One element of `GET /v1/networks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Name of the network.
    pub name: String,
    /// `isolated`, `host-only`, `nat` or `bridged`.
    pub mode: String,
    /// IPv4 prefix, or null.
    pub subnet: Option<String>,
    /// IPv6 prefix, or null.
    pub subnet6: Option<String>,
    /// Largest IP packet in bytes that guests are told of, or null when they are told none.
    pub mtu: Option<u16>,
    /// Names of its ports.
    pub ports: Vec<String>,
    /// Its VLANs that its router is in.
    #[serde(default)]
    pub vlans: Vec<VlanStatus>,
    /// What it lacks of what the file asks for, and why; null where all is as asked.
    #[serde(default)]
    pub reason: Option<String>,
    /// Stations that moved to and fro, now or within the last ten minutes: there is a loop outside.
    #[serde(default)]
    pub flapping: Vec<Flapping>,
}

/// A station that moves to and fro, and is held where it was first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flapping {
    /// The VLAN; absent for untagged frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The address.
    pub mac: String,
    /// The ports, or the other hosts' tunnel endpoints, between which it moves: where it is held, and where else it was heard last.
    pub between: [String; 2],
    /// The tunnel endpoint of the other host that it was heard from, or told of, where one of these is the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Times that it moved.
    pub moves: u64,
    /// Seconds for which it is held yet; zero: it was.
    pub held_s: u64,
}

/// A VLAN of a network that the network's router is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VlanStatus {
    /// Its number.
    pub vlan: u16,
    /// IPv4 prefix, or null.
    pub subnet: Option<String>,
    /// IPv6 prefix, or null.
    pub subnet6: Option<String>,
    /// Names of the ports that are in it, those of trunks among them.
    pub ports: Vec<String>,
}

/// One element of `GET /v1/fdb`: where a MAC address is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The network.
    pub network: String,
    /// The VLAN; absent for untagged frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The network identifier of the tunnel that leads to it; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The tunnel endpoint of the other host that it is behind; absent where none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The address, for example `02:00:00:00:00:01`.
    pub mac: String,
    /// The port that leads to it.
    pub port: String,
    /// Seconds since a frame came from it.
    pub age_s: u64,
    /// Never ages and never moves.
    #[serde(rename = "static")]
    pub fixed: bool,
    /// Told by BGP: never ages, and moves when that is told or when it is heard elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told: bool,
}

/// One element of `GET /v1/leases`: an address that a guest has by DHCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEntry {
    /// The network.
    pub network: String,
    /// The VLAN; absent in the untagged segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The guest's MAC address.
    pub mac: String,
    /// The address it has.
    pub address: String,
    /// The host name it gave, or null.
    pub hostname: Option<String>,
    /// Seconds until the lease is over, unless it is renewed.
    pub expires_s: u64,
}

/// One element of `GET /v1/nat`: what a network's address translation remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatEntry {
    /// The network.
    pub network: String,
    /// `tcp`, `udp` or `icmp`.
    pub proto: String,
    /// Address and port inside; of ICMP, the identifier stands for a port.
    pub inside: String,
    /// What the outside sees, or null where the host's kernel chooses and does not tell.
    pub outside: Option<String>,
    /// Who is spoken to, or null where that is anybody.
    pub remote: Option<String>,
    /// How far it is.
    pub state: String,
    /// Seconds until it is forgotten if no packet comes, or null where it stays.
    pub expires_s: Option<u64>,
    /// Packets, both ways.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// One element of `GET /v1/peers`: a tunnel endpoint of another host, in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerEntry {
    /// The endpoint of this host.
    pub vtep: String,
    /// The network, by its number in the underlay.
    pub vni: u32,
    /// The other endpoint's address.
    pub address: String,
    /// Stations known behind it.
    pub macs: u64,
    /// The longest IP packet of a guest that reaches it, in bytes.
    pub mtu: u16,
    /// `up`: heard in the last two minutes; `silent`.
    pub state: String,
    /// Seconds since it was heard, in whatever network; null: never.
    pub silent_s: Option<u64>,
    /// What is sent to it is sealed.
    #[serde(default)]
    pub sealed: bool,
    /// Seconds since the session began that packets to it are sealed for; null: there is none.
    #[serde(default)]
    pub session_s: Option<u64>,
    /// What was seen of the way to it when it was last tried: `whole`, packets as long as the route takes arrive; `narrow`, long ones are lost in silence; `silent`, it
    /// answers no long echo request; `untried`.
    #[serde(default)]
    pub path: String,
    /// Who says that it is there: `static` (the file), `evpn` (a route of its own), `heard`.
    pub source: String,
}

/// One element of `GET /v1/drops`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// The port at which the frames ended.
    pub port: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What is wrong, for people.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn field_names_are_the_contract() {
        let port = PortStatus {
            name: "web/0".into(),
            network: "lan".into(),
            guest: "web".into(),
            attach: "vhost-user".into(),
            state: PortState::Up,
            reason: None,
            rx_frames: 1,
            rx_bytes: 60,
            tx_frames: 2,
            tx_bytes: 120,
            drops: BTreeMap::from([("ring_full".to_owned(), 3)]),
        };
        let expected = json!({
            "name": "web/0", "network": "lan", "guest": "web", "attach": "vhost-user", "state": "up", "reason": null,
            "rx_frames": 1, "rx_bytes": 60, "tx_frames": 2, "tx_bytes": 120, "drops": { "ring_full": 3 },
        });
        assert_eq!(serde_json::to_value(&port).unwrap(), expected);
        let mut entry = FdbEntry {
            network: "lan".into(),
            vlan: Some(100),
            vni: None,
            peer: None,
            mac: "02:00:00:00:00:01".into(),
            port: "web/0".into(),
            age_s: 4,
            fixed: false,
            told: false,
        };
        let expected = json!({
            "network": "lan", "vlan": 100, "mac": "02:00:00:00:00:01", "port": "web/0", "age_s": 4, "static": false,
        });
        assert_eq!(serde_json::to_value(&entry).unwrap(), expected);
        entry.vlan = None;
        assert_eq!(serde_json::from_value::<FdbEntry>(serde_json::to_value(&entry).unwrap()).unwrap(), entry);
        let network = NetworkStatus {
            name: "lan".into(),
            mode: "isolated".into(),
            subnet: None,
            subnet6: None,
            mtu: Some(1500),
            ports: vec!["web/0".into()],
            vlans: vec![VlanStatus { vlan: 7, subnet: None, subnet6: None, ports: vec![] }],
            reason: None,
            flapping: Vec::new(),
        };
        let worker = WorkerStatus { cpu: Some(1), frames: 5, busy_cycles: 6, idle_cycles: 7 };
        let status = Status {
            host: "hv1".into(),
            uptime_s: 9,
            workers: vec![worker],
            ports: vec![],
            networks: vec![network],
            descriptors: Some(Descriptors { open: 40, limit: 20_000 }),
        };
        let expected = json!({
            "host": "hv1", "uptime_s": 9, "workers": [{"cpu": 1, "frames": 5, "busy_cycles": 6, "idle_cycles": 7}],
            "ports": [], "networks": [{
                "name": "lan", "mode": "isolated", "subnet": null, "subnet6": null, "mtu": 1500, "ports": ["web/0"],
                "vlans": [{ "vlan": 7, "subnet": null, "subnet6": null, "ports": [] }],
                "reason": null, "flapping": [],
            }],
            "descriptors": {"open": 40, "limit": 20_000},
        });
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
        let mut older = expected.clone();
        older.as_object_mut().unwrap().remove("descriptors");
        assert_eq!(serde_json::from_value::<Status>(older).unwrap(), Status { descriptors: None, ..status });
        let drops = DropCount { port: "web/0".into(), reason: "ring_full".into(), count: 3 };
        let expected = json!({"port": "web/0", "reason": "ring_full", "count": 3});
        assert_eq!(serde_json::to_value(&drops).unwrap(), expected);
    }
}
