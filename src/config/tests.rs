//! Files and what is made of them: the defaults of right files, the messages of wrong ones.
//!
//! Invariant: each way of being wrong has a line in a table here, with the line number, the key and what is said.

use super::{error::Wrong, types::Mode, *};
use proptest::prelude::*;
use std::collections::BTreeMap;
use wire::{Mac, Vid};

mod ports;
mod vlans;

/// Right, and uses every key that this version carries out.
const GOOD: &str = r#"version = 1
[host]
name = "hv1"
run_dir = "/run/tl"
state_dir = "/var/lib/tl"
worker_cpus = [1, 3]
idle = "poll"
spin_us = 20
socket_group = "kvm"
socket_mode = "0600"

[networks.lan]
mode = "isolated"
subnet = "10.77.1.0/24"
subnet6 = "fd77:1::/64"
dhcp = false
mtu = 9000

[networks.office]

[guests.web]
engine = "external"
ports = [
  { network = "lan", mac = "02:00:00:00:00:01", addresses = ["10.77.1.10", "fd77:1::10"] },
  { name = "web/up", network = "office", attach = "vhost-user", socket = "/run/x.sock", role = "client", queues = 4 },
  { network = "lan", attach = "tap", tap = "web2", netns = "web", isolated = true, pass_reserved = true },
  { network = "office", vlan = 100, mac = "02:00:00:00:00:01", guard = false },
  { network = "office", trunk = [200, 100], native = 1, fdb = ["02:00:00:00:00:21", { mac = "02:00:00:00:00:21", vlan = 200 }] },
]
"#;

fn around() -> Surroundings {
    Surroundings {
        root: true,
        hostname: "box".to_owned(),
        cpus: "0-3".parse().unwrap(),
        groups: BTreeMap::from([("kvm".to_owned(), 104)]),
        runtime_dir: None,
        state_home: None,
    }
}

pub(super) fn read(text: &str) -> Result<Config, ConfigError> {
    parse(text, Path::new("t.toml"), &around())
}

fn told(text: &str) -> Wrong {
    match read(text) {
        Err(ConfigError::Wrong(wrong)) => *wrong,
        other => panic!("this file is wrong and gives {other:?}:\n{text}"),
    }
}

#[test]
fn every_key_arrives() {
    let config = read(GOOD).unwrap();
    let host = &config.host;
    assert_eq!((host.name.as_str(), host.idle, host.spin_us), ("hv1", Idle::Poll, 20));
    assert_eq!(host.worker_cpus, [Some(1), Some(3)]);
    assert_eq!((host.socket_group.as_ref().unwrap().gid, host.socket_mode.bits()), (104, 0o600));
    assert_eq!(host.control_socket, Path::new("/run/tl/control.sock"));
    let [lan, office] = config.networks.as_slice() else { panic!() };
    assert_eq!((lan.mtu, lan.subnet.unwrap().to_string()), (Some(9000), "10.77.1.0/24".to_owned()));
    assert_eq!((office.mode, office.mtu, office.subnet), (Mode::Isolated, None, None));
    let [first, second, third, fourth, fifth] = config.ports.as_slice() else { panic!() };
    let socket = |path: &str, role| Attach::VhostUser { socket: path.into(), role };
    assert_eq!((first.name.as_str(), first.queues, first.guard), ("web/0", 1, true));
    assert_eq!(first.attach, socket("/run/tl/web-0.sock", Role::Server));
    assert_eq!(first.mac, Some(Mac::new([2, 0, 0, 0, 0, 1])));
    assert_eq!((second.name.as_str(), second.queues, second.guard), ("web/up", 4, false));
    assert_eq!(second.attach, socket("/run/x.sock", Role::Client));
    assert_eq!(third.attach, Attach::Tap { tap: "web2".parse().unwrap(), netns: Some("web".parse().unwrap()) });
    assert!(third.isolated && third.pass_reserved && third.tagging == Tagging::Untagged {});
    assert_eq!((fourth.tagging.to_string(), fourth.guard), ("access 100".to_owned(), false));
    let trunk = [100, 200].map(|vid| Vid::new(vid).unwrap()).to_vec();
    assert_eq!(fifth.tagging, Tagging::Trunk { trunk, native: Vid::new(1) });
    let stations = [1, 200].map(|vid| Station { mac: Mac::new([2, 0, 0, 0, 0, 0x21]), vlan: Vid::new(vid) });
    assert_eq!((first.fdb.as_slice(), fifth.fdb.as_slice()), ([].as_slice(), stations.as_slice()));
}

#[test]
fn the_host_is_in_host_only_networks() {
    let text = "[networks.lan]\nmode = \"host-only\"\n[networks.dmz]\nmode = \"host-only\"\ntap = \"d0\"\ndhcp = false";
    let config = read(text).unwrap();
    let taps = config.ports.iter().map(|port| (port.name.as_str(), port.attach.clone(), port.is_host));
    let tap = |name: &str| Attach::Tap { tap: name.parse().unwrap(), netns: None };
    assert_eq!(taps.collect::<Vec<_>>(), [("lan/host", tap("tl-lan"), true), ("dmz/host", tap("d0"), true)]);
    let asked: Vec<_> = config.networks.iter().map(|network| (network.dhcp, network.needs_subnet())).collect();
    assert_eq!(asked, [(true, true), (false, true)]);
    let taken = "[networks.lan]\nmode = \"host-only\"\n[guests.g]\nports = [{ network = \"lan\", attach = \"tap\", tap = \"tl-lan\" }]";
    assert!(told(taken).message.contains("the TAP tl-lan is taken by network lan"), "{}", told(taken));
}

#[test]
fn bridged_networks_have_an_uplink_port_which_carries_the_vlans_of_the_others() {
    let text = "[networks.lan]\nmode = \"bridged\"\nuplink = \"eth0\"\n[networks.office]\nmode = \"bridged\"\nbridge = \"br0\"\n\
                [guests.g]\nports = [{ network = \"lan\" }, { network = \"office\", vlan = 7 }, { network = \"office\", trunk = [9, 1] }]";
    let config = read(text).unwrap();
    let uplinks = config.ports.iter().filter(|port| port.is_uplink);
    let told: Vec<_> = uplinks.map(|port| (port.name.as_str(), port.tagging.to_string())).collect();
    assert_eq!(told, [("lan/uplink", "untagged".to_owned()), ("office/uplink", "trunk 7,9 native 1".to_owned())]);
    let tap = |name: &str| Attach::Tap { tap: name.parse().unwrap(), netns: None };
    assert!(config.ports.iter().any(|port| port.is_uplink && port.attach == tap("tlp-lan")));
    let twice = "[networks.a]\nmode = \"bridged\"\nuplink = \"e\"\n[networks.b]\nmode = \"bridged\"\nuplink = \"e\"";
    assert!(told_message(twice).contains("the uplink e is taken by network a"));
    let long = "[networks.a-very-long-name]\nmode = \"bridged\"\nbridge = \"br0\"";
    assert!(
        read(long)
            .unwrap()
            .ports
            .iter()
            .all(|port| matches!(&port.attach, Attach::Tap { tap, .. } if tap.as_str().len() <= 15))
    );
}

#[test]
fn a_network_with_mac_nat_has_the_nic_itself_and_the_host_as_ports() {
    let text = "[networks.lan]\nmode = \"bridged\"\nuplink = \"wlan0\"\nmac_nat = true";
    let config = read(text).unwrap();
    let [host, uplink] = config.ports.as_slice() else { panic!("{:?}", config.ports) };
    assert_eq!((host.name.as_str(), uplink.name.as_str()), ("lan/host", "lan/uplink"));
    assert_eq!(host.attach, Attach::Tap { tap: "tl-lan".parse().unwrap(), netns: None });
    assert_eq!(uplink.attach, Attach::Uplink { uplink: "wlan0".parse().unwrap() });
    assert!(host.is_host && host.guard && host.mac.is_some() && uplink.is_uplink && !uplink.guard);
    assert!(!config.networks[0].needs_subnet());
    let both = format!("{text}\nbridge = \"br0\"");
    assert!(told_message(&both).contains("joins no bridge"));
}

fn told_message(text: &str) -> String {
    told(text).message.clone()
}

#[test]
fn guests_have_engines() {
    let text = "[networks.n]\n[guests.a]\nengine = \"machine\"\nports = [{ network = \"n\" }]\n[guests.b]\nports = []";
    let guests = read(text).unwrap().guests;
    let engines: Vec<_> = guests.iter().map(|guest| (guest.name.as_str(), guest.engine)).collect();
    assert_eq!(engines, [("a", Engine::Machine), ("b", Engine::External)]);
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = read("").unwrap();
    assert!(config.networks.is_empty() && config.ports.is_empty());
    let host = config.host;
    assert_eq!((host.name.as_str(), host.idle, host.spin_us), ("box", Idle::Adaptive, 50));
    assert_eq!((host.worker_cpus, host.socket_group), (vec![None], None));
    assert_eq!(host.socket_mode.to_string(), "0660");
    assert_eq!((host.run_dir, host.state_dir), ("/run/trunkline".into(), "/var/lib/trunkline".into()));
}

#[test]
fn a_user_without_directories_is_told_what_to_set() {
    let around = Surroundings { root: false, ..around() };
    let error = parse("version = 1", Path::new("t.toml"), &around).unwrap_err().to_string();
    assert!(error.contains("t.toml:1:1: host: run_dir has no default here"), "{error}");
    let text = "[host]\nrun_dir = \"/tmp/a\"\nstate_dir = \"/tmp/b\"";
    assert!(parse(text, Path::new("t.toml"), &around).is_ok());
}

#[test]
fn the_examples_are_right() {
    for file in
        ["examples/two-guests.toml", "examples/vlans.toml", "examples/routed-vlans.toml", "examples/two-hosts.toml"]
    {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        load(&file, &around()).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_message_points_at_the_place() {
    let text = "[networks.lan]\n\tmtu = 12 # \u{1b}[31m\n";
    let wanted = "this is not TOML";
    assert!(read(text).unwrap_err().to_string().contains(wanted));
    let text = "[networks.lan]\n\tmtu = 12 # ö\n";
    let wanted = "t.toml:2:8: networks.lan.mtu: 12 is out of range; allowed are 68 to 65521\n  |\n2 |  mtu = 12 # ö\n  |        ^^";
    assert_eq!(read(text).unwrap_err().to_string(), wanted);
    let text = "[host]\nidel = \"poll\"";
    let wanted = "t.toml:2:1: host.idel: unknown key `idel`; the nearest known key is `idle`\n  |\n2 | idel = \"poll\"\n  | ^^^^\n  = known in host: name, run_dir, state_dir, worker_cpus, idle, spin_us, socket_group, socket_mode, resolvers, resolv_conf";
    assert_eq!(read(text).unwrap_err().to_string(), wanted);
}

/// Puts `port` into a file that is right otherwise; it is in line 4.
fn with_port(port: &str) -> String {
    format!("[networks.lan]\n[networks.wan]\n[guests.g]\nports = [{port}]\n")
}

#[test]
fn wrong_files() {
    // text, line, key, what the message or its help says
    let table: &[(&str, usize, &str, &str)] = &[
        // Not TOML
        ("a = = 1", 1, "", "this is not TOML"),
        ("[host]\n[host]", 2, "host", "given twice"),
        ("[host]\nname = \"a\"\nname = \"b\"", 3, "name", "given twice"),
        ("x = \"unclosed\nversion = 1", 1, "", "this is not TOML"),
        // Unknown keys
        ("verson = 1", 1, "verson", "nearest known key is `version`"),
        ("[network.lan]", 1, "network", "nearest known key is `networks`"),
        ("[networks.lan]\nmtuu = 1500", 2, "networks.lan.mtuu", "nearest known key is `mtu`"),
        ("[networks.lan]\ngateway = \"a\"", 2, "networks.lan.gateway", "nearest known key is `gateway_host`"),
        ("[guests.g]\nport = []", 2, "guests.g.port", "nearest known key is `ports`"),
        ("[[guests.g.ports]]\nnetwrok = \"lan\"", 2, "guests.g.ports[0].netwrok", "nearest known key is `network`"),
        // Wrong types and values
        ("version = 2", 1, "version", "allowed is 1"),
        ("version = \"1\"", 1, "version", "this is a string; an integer from 0 to"),
        ("host = 1", 1, "host", "this is an integer; a table is needed"),
        ("networks = []", 1, "networks", "this is an array; a table is needed"),
        ("networks.lan = true", 1, "networks.lan", "this is a boolean; a table is needed"),
        ("[host]\nname = \"a b\"", 2, "host.name", "not a host name"),
        ("[host]\nrun_dir = \"run\"", 2, "host.run_dir", "absolute path"),
        ("[host]\nrun_dir = \"/a/../b\"", 2, "host.run_dir", "absolute path"),
        ("[host]\nworker_cpus = []", 2, "host.worker_cpus", "allowed are 1 to 128"),
        ("[host]\nworker_cpus = 1", 2, "host.worker_cpus", "an array is needed"),
        ("[host]\nworker_cpus = [0, 9]", 2, "host.worker_cpus[1]", "CPU 9 is not online on this host; allowed are 0-3"),
        ("[host]\nworker_cpus = [0, 0]", 2, "host.worker_cpus[1]", "CPU 0 is listed twice"),
        ("[host]\nidle = \"spin\"", 2, "host.idle", "allowed: \"adaptive\", \"poll\", \"sleep\""),
        ("[host]\nspin_us = -1", 2, "host.spin_us", "-1 is out of range; allowed are 0 to 1000000"),
        ("[host]\nspin_us = 0xffff_ffff_ffff_ffff_ffff", 2, "host.spin_us", "allowed are 0 to 1000000"),
        ("[host]\nsocket_group = \"nobodys\"", 2, "host.socket_group", "does not exist"),
        ("[host]\nsocket_mode = \"0888\"", 2, "host.socket_mode", "write permissions in octal"),
        ("[host]\nsocket_mode = 0o660", 2, "host.socket_mode", "a string is needed"),
        ("[networks.\"a b\"]", 1, "networks.a b", "not a name of a network"),
        ("[networks.lan]\nmode = \"natt\"", 2, "networks.lan.mode", "the nearest is \"nat\""),
        ("[networks.lan]\nmtu = 65522", 2, "networks.lan.mtu", "allowed are 68 to 65521"),
        ("[networks.lan]\nmtu = 1500.0", 2, "networks.lan.mtu", "this is a float"),
        ("[networks.lan]\nsubnet = \"10.0.0.1/24\"", 2, "networks.lan.subnet", "write 10.0.0.0/24"),
        ("[networks.lan]\nsubnet6 = true", 2, "networks.lan.subnet6", "a string is needed"),
        ("[networks.lan]\nntp = [\"pool.example\"]", 2, "networks.lan.ntp[0]", "not the address of a time server"),
        ("[networks.lan]\nmode = \"bridged\"\nntp = []", 3, "networks.lan.ntp", "means nothing in mode bridged"),
        ("[networks.lan]\nuplink = \"eth0\"", 2, "networks.lan.uplink", "allowed in mode nat, bridged"),
        ("[networks.lan]\nmode = \"nat\"\noutside = [\"192.0.2.1\"]", 3, "networks.lan.outside", "engine = \"packet\""),
        (
            "[networks.lan]\nmode = \"nat\"\nengine = \"packet\"\ntap = \"t0\"\noutside = [\"2001:db8::1\"]\nprefix6 = \"2001:db8:9::/64\"",
            6,
            "networks.lan.prefix6",
            "exclude each other",
        ),
        (
            "[networks.lan]\nmode = \"nat\"\nengine = \"packet\"\ntap = \"t0\"\noutside = [\"fe80::1\"]",
            5,
            "networks.lan.outside[0]",
            "is of the link only",
        ),
        (
            "[networks.lan]\nmode = \"nat\"\nengine = \"packet\"\ntap = \"t0\"\noutside = [\"192.0.2.1\", \"192.0.2.1\"]",
            5,
            "networks.lan.outside[1]",
            "given twice",
        ),
        (
            "[networks.lan]\nmode = \"nat\"\nengine = \"packet\"\ntap = \"t0\"\noutside = [\"2001:db8::1\"]\nsubnet6 = false",
            1,
            "networks.lan",
            "leaves guests without any",
        ),
        (
            "[networks.lan]\nmode = \"nat\"\nengine = \"packet\"\ntap = \"t0\"\noutside = [\"fd09::99\"]\nsubnet6 = \"fd09::/64\"",
            1,
            "networks.lan",
            "which is inside",
        ),
        ("[networks.lan]\nmode = \"nat\"\nengine = \"packet\"", 1, "networks.lan", "needs `uplink` or `tap`"),
        ("[networks.lan]\nmode = \"bridged\"", 1, "networks.lan", "`uplink` is missing"),
        ("[networks.lan]\nmode = \"nat\"\npublish = [\"tcp 80\"]", 3, "networks.lan.publish[0]", "LISTEN-ADDRESS"),
        (
            "[networks.lan]\nmode = \"nat\"\npublish = [\"tcp 0.0.0.0:1-2 web:1-3\"]",
            3,
            "networks.lan.publish[0]",
            "differ in length",
        ),
        // Right, but not yet
        (
            "[networks.lan]\nmode = \"host-only\"\nsubnet = \"10.0.0.0/30\"",
            3,
            "networks.lan.subnet",
            "allowed are /8 to /29",
        ),
        ("[networks.a-long-name-of-it]\nmode = \"host-only\"", 1, "networks.a-long-name-of-it", "give one by `tap`"),
        ("[networks.lan]\nsubnet = \"8.0.0.0/6\"\ndhcp = true", 3, "networks.lan.dhcp", "allowed are /8 to /30"),
        (
            "[networks.lan]\nsubnet = \"10.0.0.0/24\"\nmtu = 500\ndhcp = true",
            4,
            "networks.lan.dhcp",
            "an MTU of 576 or more, not 500",
        ),
        ("[guests.g]\nengine = \"machine\"", 1, "guests.g", "has one port, by vhost-user"),
        (
            "[networks.n]\n[guests.g]\nengine = \"machine\"\nports = [{ network = \"n\", queues = 2 }]",
            2,
            "guests.g",
            "queues = 1",
        ),
        (
            "[networks.n]\n[guests.g]\nengine = \"machine\"\nports = [{ network = \"n\", role = \"client\" }]",
            2,
            "guests.g",
            "role \"server\"",
        ),
        ("[guests.g]\nengine = \"qemu\"", 2, "guests.g.engine", "engine \"qemu\" is not available in this version"),
        ("[networks.b]\nmode = \"nat\"\nmtu = 1000", 2, "networks.b.mode", "need an MTU of 1280 or more, not 1000"),
        (
            "[networks.b]\nmode = \"nat\"\nmtu = 1000\nsubnet6 = false\n[networks.b.vlans.7]",
            5,
            "networks.b.vlans.7",
            "need an MTU of 1280 or more, not 1000",
        ),
        // A real mistake is told before what is not available
        ("[guests.g]\nengine = \"qemu\"\n[networks.b]\nmtu = 1", 4, "networks.b.mtu", "allowed are 68"),
    ];
    are_told(table);
}

/// Each text is wrong at this line and key, and what is said has these words in it.
pub(super) fn are_told(table: &[(&str, usize, &str, &str)]) {
    for (text, line, key, what) in table {
        let wrong = told(text);
        let said = format!("{} {}", wrong.message, wrong.help.as_deref().unwrap_or_default());
        assert_eq!((wrong.line, wrong.key.as_str()), (*line, *key), "{text}\n{wrong}");
        assert!(said.contains(what), "{text}\n{wrong}\nshould say: {what}");
    }
}

#[test]
fn long_lines_and_values_are_cut() {
    let text = format!("{}[networks.lan]\nmtu = {}{}", "\n".repeat(20), " ".repeat(5_000), "9".repeat(100_000));
    let wrong = told(&text);
    assert_eq!((wrong.line, wrong.column), (22, 5_007));
    let message = wrong.to_string();
    assert!(message.len() < 2_000 && message.lines().count() == 4, "{message}");
    let lines: Vec<Vec<char>> = message.lines().map(|line| line.chars().collect()).collect();
    let caret = lines[3].iter().position(|c| *c == '^').unwrap();
    assert_eq!((lines[2][caret - 1], lines[2][caret]), (' ', '9'), "{message}");
}

#[test]
fn a_station_may_be_behind_several_ports_in_different_vlans_and_behind_its_own_port() {
    let port = |vlan: u16| format!("{{ network = \"lan\", vlan = {vlan}, fdb = [\"02:00:00:00:00:01\"] }}");
    assert!(read(&with_port(&format!("{}, {}", port(7), port(8)))).is_ok());
    let own = "{ network = \"lan\", mac = \"02:00:00:00:00:01\", fdb = [\"02:00:00:00:00:01\"] }";
    assert!(read(&with_port(own)).is_ok());
    let list = |n: usize| (0..n).map(|i| format!("\"02:00:00:00:00:{i:02x}\"")).collect::<Vec<_>>().join(", ");
    assert!(read(&with_port(&format!("{{ network = \"lan\", fdb = [{}] }}", list(64)))).is_ok());
    let wrong = told(&with_port(&format!("{{ network = \"lan\", fdb = [{}] }}", list(65))));
    assert!(wrong.message.contains("65 stations are given; allowed are 64"), "{wrong}");
}

#[test]
fn a_mac_may_be_in_two_networks() {
    let port = |network: &str| format!("{{ network = \"{network}\", mac = \"02:00:00:00:00:01\" }}");
    assert!(read(&with_port(&format!("{}, {}", port("lan"), port("wan")))).is_ok());
}

#[test]
fn sockets_fit_into_their_addresses() {
    let long = format!("/{}", "d".repeat(94));
    let wrong = told(&format!("[host]\nrun_dir = \"{long}\""));
    assert_eq!((wrong.line, wrong.key.as_str()), (2, "host.run_dir"));
    assert!(wrong.message.contains("is 108 bytes long; allowed are 107"), "{wrong}");
    let text = format!(
        "host.run_dir = \"{}\"\n[networks.n]\n[guests.longer-than-control]\nports = [{{ network = \"n\" }}]",
        &long[1..].replacen('d', "/", 1)
    );
    let wrong = told(&text);
    assert_eq!((wrong.line, wrong.key.as_str()), (4, "guests.longer-than-control.ports[0]"));
}

#[test]
fn the_control_socket_can_be_moved_but_not_onto_a_port() {
    let mut config = read(GOOD).unwrap();
    assert!(config.set_control_socket(Path::new("/run/tl/web-0.sock")).unwrap_err().contains("port web/0"));
    assert!(config.set_control_socket(Path::new(&format!("/{}", "x".repeat(107)))).is_err());
    config.set_control_socket(Path::new("/tmp//c.sock")).unwrap();
    assert_eq!(config.host.control_socket, Path::new("/tmp/c.sock"));
}

#[test]
fn the_whole_contract_is_understood_and_the_first_thing_not_available_is_told() {
    let text = r#"
version = 1
[host]
worker_cpus = [1]
[networks.lan]
subnet = "10.77.1.0/24"
subnet6 = "fd77:1::/64"
mode = "nat"
engine = "sockets"
publish = ["tcp 127.0.0.1:8080 web:80", "udp [::]:5353 10.77.1.5:53", "tcp 0.0.0.0:7000-7010 web:7000-7010", { proto = "tcp", listen = "[::1]:1-2", to = "[fd77:1::5]:3-4" }]
dhcp = true
mtu = 1500
[networks.wan]
mode = "nat"
engine = "packet"
uplink = "eth1"
outside = ["192.0.2.10"]
next_hop = "192.0.2.1"
[networks.mgmt]
mode = "host-only"
[networks.office]
mode = "bridged"
uplink = "eth0"
mac_nat = true
[vteps.main]
local = "198.51.100.1"
port = 4789
control = "evpn"
speaker = "unix:///run/gobgpd.sock"
as = 65000
[networks.tenant]
mode = "nat"
overlay = { vtep = "main", vni = 5001, peers = ["198.51.100.2"] }
gateway_host = "hv1"
vlan_vni = { 100 = 5001 }
[guests.web]
ports = [
  { network = "lan", mac = "02:00:00:00:00:01", addresses = ["10.77.1.10"] },
  { name = "web/up", network = "office", attach = "vhost-user", socket = "/run/x.sock", role = "client" },
  { network = "lan", attach = "tap", tap = "web2", netns = "web" },
  { network = "lan", attach = "stream", socket = "/run/y.sock" },
  { network = "office", vlan = 100, rate = { in = "100Mbit", out = "1Gbit" } },
  { network = "office", trunk = [100, 200], native = 1 },
]
"#;
    let wrong = told(text);
    assert_eq!((wrong.line, wrong.key.as_str()), (41, "guests.web.ports[3].attach"), "{wrong}");
}

#[test]
fn unreadable_files() {
    let dir = tempfile::tempdir().unwrap();
    let error = load(&dir.path().join("none.toml"), &around()).unwrap_err().to_string();
    assert!(error.contains("none.toml") && error.contains("check the path"), "{error}");
    assert!(matches!(load(dir.path(), &around()), Err(ConfigError::Unreadable { .. })));
    let file = dir.path().join("bytes.toml");
    std::fs::write(&file, b"version = 1\nx = \"\xff\"").unwrap();
    let error = load(&file, &around()).unwrap_err().to_string();
    assert!(error.contains(":2:6: the file is not UTF-8"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_mutation_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..8, "\\PC{0,4}|[\\[\\]{}\"=,.0-9\\n\u{0}-]{0,4}"), 1..6)
    ) {
        let mut chars: Vec<char> = GOOD.chars().collect();
        for (at, removed, inserted) in edits {
            let start = at.index(chars.len() + 1);
            let end = (start + removed).min(chars.len());
            chars.splice(start..end, inserted.chars());
        }
        let text: String = chars.into_iter().collect();
        if let Err(error) = read(&text) {
            let message = error.to_string();
            prop_assert!(message.starts_with("t.toml:"), "{}", message);
            prop_assert!(!message.contains(|c: char| c.is_control() && c != '\n'), "{:?}", message);
        }
    }

    #[test]
    fn no_text_panics(text in "[\\[\\]{}\"'=,.a-z0-9\\n #-]{0,80}") {
        let _ = read(&text);
    }
}
