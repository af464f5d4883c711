//! `check`: what a configuration means, for people and for programs.
//!
//! Invariant: it says what `up` would make, from the same [`Config`] that `up` carries out, and changes nothing.

use crate::{
    config::{Attach, Config, ConfigError, Host, Idle, Network, Overlay, Port, Role, Segment, Tagging, Target, Vtep},
    gateways::MTU,
    subnets,
    table::{Table, some},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use wire::Vid;

/// Other hosts named in a line, at most.
const NAMED: usize = 8;

/// The explanation for people.
pub fn people(config: &Config) -> String {
    let mut text = format!("{} is right.\n\n{}", config.file.display(), host(&config.host));
    config.vteps.iter().for_each(|vtep| text.push_str(&endpoint(vtep)));
    for network in &config.networks {
        text.push_str(&format!("\n{}", self::network(network, config)));
    }
    text.push_str(&format!("\n`up` will make: {}\n", made(config).join(", ")));
    for note in notes(config) {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

/// The same for programs: the file's keys with every default filled in.
pub fn program(config: &Config) -> String {
    let value = match serde_json::to_value(config) {
        Ok(value) => json!({ "ok": true, "config": value, "notes": notes(config) }),
        Err(error) => json!({ "ok": false, "error": { "message": error.to_string() } }),
    };
    format!("{value}\n")
}

/// What is wrong with a file, for programs.
pub fn wrong(error: &ConfigError) -> String {
    let error = match error {
        ConfigError::Wrong(wrong) => serde_json::to_value(wrong).unwrap_or(Value::Null),
        other => json!({ "message": other.to_string() }),
    };
    format!("{}\n", json!({ "ok": false, "error": error }))
}

fn host(host: &Host) -> String {
    let workers = match host.worker_cpus.as_slice() {
        [None] => "1 worker, not pinned".to_owned(),
        cpus => {
            let list: Vec<String> = cpus.iter().flatten().map(u32::to_string).collect();
            format!("{}, pinned to CPU {}", plural(list.len(), "worker"), list.join(", "))
        }
    };
    let idle = match host.idle {
        Idle::Adaptive => format!("without work: polls for {} us, then sleeps", host.spin_us),
        Idle::Poll => "never sleeps".to_owned(),
        Idle::Sleep => "sleeps at once without work".to_owned(),
    };
    let group = host.socket_group.as_ref().map_or("the daemon's group", |group| group.name.as_str());
    format!(
        "host {}\n  control socket   {}\n  sockets are for  {group}, mode {}\n  run directory    {}\n  \
         state directory  {}\n  forwarding       {workers}; {idle}\n",
        host.name,
        host.control_socket.display(),
        host.socket_mode,
        host.run_dir.display(),
        host.state_dir.display(),
    )
}

fn endpoint(vtep: &Vtep) -> String {
    let Vtep { name, local, peers, .. } = vtep;
    let kind = match vtep.encapsulation {
        overlay::Encapsulation::Vxlan => "VXLAN",
        overlay::Encapsulation::Geneve => "Geneve",
    };
    let mut text = format!("\ntunnel endpoint {name}: {local}, {kind}, UDP port {}\n", vtep.udp());
    if !peers.is_empty() {
        let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
        text.push_str(&format!("  peers            {}\n", some(&peers, NAMED)));
    }
    if let Some(evpn) = &vtep.evpn {
        text.push_str(&format!("  told by          BGP, AS {}, speaker {}\n", evpn.asn, evpn.speaker.display()));
    }
    // Packets without a class of their own are what everybody expects.
    match vtep.dscp.fixed() {
        Some(0) => {}
        Some(class) => text.push_str(&format!("  dscp             {class}\n")),
        None => text.push_str("  dscp             that of the inner packet, which guests choose\n"),
    }
    text.push_str(&match &vtep.seal {
        Some(seal) => format!("  sealed           this host's public key is {}\n", seal.key.public()),
        None => "  sealed           no\n".to_owned(),
    });
    text
}

fn network(network: &Network, config: &Config) -> String {
    let ports: Vec<&Port> = config.ports_of(&network.name).collect();
    let mut facts = vec![network.mode.to_string()];
    facts.extend(addresses(&Segment { network, vlan: None }, config));
    facts.extend(network.mtu.map(|mtu| format!("MTU {mtu}")));
    facts.push(plural(ports.len(), "port"));
    let mut text = format!("network {}: {}\n", network.name, facts.join(", "));
    if let Some(overlay) = &network.overlay {
        text.push_str(&format!(
            "  stretched by {} to {}\n",
            overlay.vtep,
            beyond(overlay, config).unwrap_or_else(|| "nobody".to_owned())
        ));
        if network.mtu.is_none() {
            text.push_str(&format!("  MTU: {}\n", narrowest(overlay, config)));
        }
    }
    for segment in network.segments() {
        if let Some(vid) = segment.vid() {
            text.push_str(&format!("  VLAN {vid}, routed: {}\n", addresses(&segment, config).join(", ")));
        }
    }
    if ports.is_empty() {
        return text;
    }
    let mut table = Table::new(&["  PORT", "ATTACH", "WHERE", "VLAN", "MAC", ">QUEUES", "MORE"]);
    for port in ports {
        table.row([
            format!("  {}", port.name),
            port.attach.word().to_owned(),
            place(&port.attach),
            port.tagging.to_string(),
            port.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            port.queues.to_string(),
            more(port),
        ]);
    }
    text.push_str(&table.to_string());
    text
}

/// Who is at the other ends of an overlay, as far as the file says it; nothing where nobody can be.
fn beyond(overlay: &Overlay, config: &Config) -> Option<String> {
    let peers: Vec<String> = overlay.peers.iter().chain(&overlay.group).map(ToString::to_string).collect();
    let named = (!peers.is_empty()).then(|| some(&peers, NAMED));
    let anyone = overlay.anyone.then(|| "anyone who is heard".to_owned());
    let is_told = config.vteps.iter().any(|vtep| vtep.name == overlay.vtep && vtep.evpn.is_some());
    let told = is_told.then(|| "those that BGP tells of".to_owned());
    let all: Vec<String> = named.into_iter().chain(told).chain(anyone).collect();
    (!all.is_empty()).then(|| all.join(", and "))
}

/// What guests' addresses are in a segment, and who gives them out.
fn addresses(segment: &Segment<'_>, config: &Config) -> Vec<String> {
    let mut facts: Vec<String> = segment.subnets().map(|subnet| subnet.to_string()).collect();
    if segment.needs_subnet() {
        let remembered = subnets::remembered(&config.host.state_dir, &segment.key());
        facts.push(remembered.map_or("a free /24".to_owned(), |subnet| format!("{subnet} as before, if it is free")));
    }
    if segment.dhcp() {
        let router = segment.subnet().and_then(|subnet| subnet.host(segment.router_number()));
        facts.push(format!("addresses by DHCP{}", router.map_or_else(String::new, |router| format!(" from {router}"))));
    }
    facts
}

fn place(attach: &Attach) -> String {
    match attach {
        Attach::VhostUser { socket, role: Role::Server } => format!("listens on {}", socket.display()),
        Attach::VhostUser { socket, role: Role::Client } => format!("connects to {}", socket.display()),
        Attach::Tunnel { vtep, vni } => format!("VNI {vni} of tunnel endpoint {vtep}"),
        Attach::Endpoint { vtep } => format!("tunnel endpoint {vtep}"),
        Attach::Uplink { uplink } => format!("interface {uplink}, by its own address"),
        Attach::Tap { tap, netns: None } => format!("interface {tap}"),
        Attach::Tap { tap, netns: Some(netns) } => format!("interface {tap} in namespace {netns}"),
    }
}

/// What the MTU of a network that is stretched comes from, where the file gives none.
fn narrowest(overlay: &Overlay, config: &Config) -> String {
    let vtep = config.vteps.iter().find(|vtep| vtep.name == overlay.vtep);
    let around = vtep.map_or(0, Vtep::around);
    if let Some(seat) = vtep.and_then(|vtep| vtep.seat.as_ref()) {
        let own = config.networks.iter().find(|network| network.name == seat.network).and_then(|network| network.mtu);
        return format!("{}, what network {} leaves", own.unwrap_or(MTU).saturating_sub(around), seat.network);
    }
    let of = if overlay.peers.is_empty() {
        "of the interface that has the endpoint's address"
    } else {
        "of the narrowest way to the other hosts"
    };
    format!("that {of}, less {around}; found out at the start")
}

/// VLANs of a network that stretches over hosts which stay on this one, as ports and routers name them.
fn at_home(network: &Network, config: &Config) -> Vec<Vid> {
    let Some(overlay) = &network.overlay else { return Vec::new() };
    let ports = config.ports_of(&network.name).filter(|port| !matches!(port.attach, Attach::Tunnel { .. }));
    let named = ports.flat_map(|port| match &port.tagging {
        Tagging::Untagged {} => Vec::new(),
        Tagging::Access { vlan } => vec![*vlan],
        Tagging::Trunk { trunk, native } => trunk.iter().chain(native).copied().collect(),
    });
    let routed = network.segments().filter_map(|segment| segment.vid());
    // Frames without a tag are those of VLAN 1.
    let untagged = Vid::new(1).filter(|_| overlay.segments.iter().any(|stretch| stretch.vlan.is_none()));
    let crosses =
        |vid: &Vid| untagged == Some(*vid) || overlay.segments.iter().any(|stretch| stretch.vlan == Some(*vid));
    named.chain(routed).filter(|vid| !crosses(vid)).collect::<BTreeSet<Vid>>().into_iter().collect()
}

fn more(port: &Port) -> String {
    let stations = match port.fdb.len() {
        0 => None,
        1 => Some("1 static address".to_owned()),
        more => Some(format!("{more} static addresses")),
    };
    let flags = [
        (port.guard, "guarded"),
        (port.isolated, "isolated from other isolated ports"),
        (port.pass_reserved, "passes 01:80:c2 frames"),
    ];
    let words = flags.into_iter().filter(|(set, _)| *set).map(|(_, word)| word.to_owned());
    words.chain(stations).collect::<Vec<String>>().join(", ")
}

/// What appears on the host when the file is carried out.
fn made(config: &Config) -> Vec<String> {
    let number = |wanted: fn(&Attach) -> bool| config.ports.iter().filter(|port| wanted(&port.attach)).count();
    let sockets = number(|attach| matches!(attach, Attach::VhostUser { role: Role::Server, .. }));
    let taps = number(|attach| matches!(attach, Attach::Tap { .. }));
    let kinds = [(config.networks.len(), "switch"), (sockets, "vhost-user socket"), (taps, "TAP interface")];
    let mut made: Vec<String> =
        kinds.into_iter().filter(|(count, _)| *count > 0).map(|(count, noun)| plural(count, noun)).collect();
    made.push("the control socket".to_owned());
    made
}

/// What is right and may still surprise.
fn notes(config: &Config) -> Vec<String> {
    let mut notes = Vec::new();
    for network in &config.networks {
        if config.ports_of(&network.name).next().is_none() {
            notes.push(format!("network {} has no ports", network.name));
        }
        if network.overlay.as_ref().is_some_and(|overlay| beyond(overlay, config).is_none()) {
            notes.push(format!("network {}: it reaches no other host; give its overlay `peers`", network.name));
        }
        let stay: Vec<String> = at_home(network, config).iter().map(Vid::to_string).collect();
        if !stay.is_empty() {
            let what = if stay.len() == 1 { "VLAN" } else { "VLANs" };
            notes.push(format!(
                "network {}: on this host alone: {what} {}; `vlan_vni` gives a VLAN a number in the underlay",
                network.name,
                some(&stay, NAMED)
            ));
        }
        if let Some(gateway) = &network.gateway_host {
            let (network, own) = (&network.name, &config.host.name);
            notes.push(if gateway == own {
                format!("network {network}: this host, {own}, runs its gateway; no other may have the same [host] name")
            } else {
                format!(
                    "network {network}: the host that calls itself {gateway} runs its gateway, not this one, which is {own}; if none does, nobody runs it"
                )
            });
        }
        for segment in network.segments().filter(|segment| segment.vlan.is_some()) {
            if !config.ports.iter().any(|port| segment.carries(port)) {
                notes.push(format!("network {segment}: no port is in it"));
            }
        }
        for publish in network.nat.iter().flat_map(|nat| &nat.publish) {
            let Target::Guest(name) = &publish.to else { continue };
            if !config.guests.iter().any(|guest| guest.name == *name) {
                let network = &network.name;
                notes.push(format!(
                    "network {network}: `{publish}` leads to whoever calls itself {name} by DHCP, for the file has no such guest"
                ));
            }
        }
    }
    for port in &config.ports {
        if !port.addresses.is_empty() && !port.guard && !port.is_host {
            notes.push(format!("port {}: without `mac` and `guard` its `addresses` are not checked", port.name));
        }
        if matches!(port.tagging, Tagging::Trunk { native: None, .. }) {
            notes.push(format!("port {}: a trunk without `native` drops untagged frames", port.name));
        }
    }
    notes
}

fn plural(count: usize, noun: &str) -> String {
    match (count, noun.ends_with("ch")) {
        (1, _) => format!("1 {noun}"),
        (_, true) => format!("{count} {noun}es"),
        (_, false) => format!("{count} {noun}s"),
    }
}
