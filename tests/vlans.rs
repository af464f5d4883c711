//! VLANs of one network that its router is in: their guests get addresses there, reach each other over the router and go where the network goes;
//! a VLAN without a table stays alone.
//!
//! Read first: `src/config/segment.rs`, `src/routers.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program};
use lab::netns::NetNs;
use lab::process::{Job, Place};
use lab::{Lab, Unable, need_program, require, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);
/// How long to look for what is not to come.
const SHORT: Duration = Duration::from_secs(2);
/// Takes the address and the routes: the classless ones (option 121), else the router.
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip -4 addr flush dev $interface scope global\n\
                      ip addr add $ip/$mask dev $interface\n\
                      if [ -n \"$staticroutes\" ]; then set -- $staticroutes; else set -- ${router:+0.0.0.0/0 $router}; fi\n\
                      while [ $# -ge 2 ]; do ip route replace $1 via $2; shift 2; done\n\
                      echo \"took $ip dns=$dns domain=$domain\"\n";

/// A guest with a TAP in a namespace; `more` are further keys of its port.
fn guest(name: &str, ns: &NetNs, more: &str) -> String {
    let netns = ns.netns_name();
    format!(
        "[guests.{name}]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\"{more} }}]\n"
    )
}

/// Asks for an address by this interface; nothing when nobody gives one.
fn lease(lab: &Lab, ns: &NetNs, interface: &str) -> Option<String> {
    let script = lab.path("script");
    fs::write(&script, SCRIPT).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&script).status().unwrap().success());
    ns.ip(&format!("link set {interface} up"));
    let script = script.display();
    let asked = format!("timeout 20 busybox udhcpc -i {interface} -n -q -f -t 4 -T 1 -O staticroutes -s {script} 2>&1");
    let told = ns.run(&asked, PATIENCE + PATIENCE).output;
    Some(told.split("took ").nth(1)?.split(' ').next()?.to_owned())
}

fn serve(place: &NetNs, port: u16, command: &str) -> Job {
    let server = place.spawn(&format!("exec busybox nc -ll -p {port} -e sh -c '{command}'"));
    let hex = format!("{port:04X}");
    wait_for("a server to listen", PATIENCE, || {
        place.run(&format!("grep -q ':{hex} .* 0A ' /proc/net/tcp /proc/net/tcp6"), PATIENCE).ok()
    });
    server
}

/// Pings; whether it was answered, and what was printed.
fn ping(from: &NetNs, to: &str) -> (bool, String) {
    let done = from.run(&format!("ping -c 3 -i 0.2 -W 2 {to}"), PATIENCE);
    (done.ok(), done.output)
}

const LAN: &str = "[networks.lan]\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\ndhcp = true\n\
                   [networks.lan.vlans.100]\nsubnet = \"10.9.100.0/24\"\nsubnet6 = \"fd09:100::/64\"\n\
                   [networks.lan.vlans.200]\nsubnet = \"10.9.200.0/24\"\n";

#[test]
fn vlans_are_routed_to_each_other_and_one_without_a_table_stays_alone() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let names = ["plain", "red", "red2", "blue", "alone", "trunk"];
    let [plain, red, red2, blue, alone, trunk] = names.map(|name| NetNs::new(&lab, name));
    let (plain, red, red2) = (require!(plain), require!(red), require!(red2));
    let (blue, alone, trunk) = (require!(blue), require!(alone), require!(trunk));
    let declared = ", vlan = 100, mac = \"02:00:00:00:01:01\", addresses = [\"10.9.100.50\"], isolated = true";
    let text = [
        LAN.to_owned(),
        guest("plain", &plain, ""),
        guest("red", &red, declared),
        guest("red2", &red2, ", vlan = 100, isolated = true"),
        guest("blue", &blue, ", vlan = 200, isolated = true"),
        guest("alone", &alone, ", vlan = 300"),
        guest("trunk", &trunk, ", trunk = [100, 200, 300]"),
        "[guests.toy]\nports = [{ network = \"lan\", trunk = [100, 200], socket = \"$DIR/toy.sock\" }]\n".to_owned(),
    ];
    let mut daemon = Daemon::start(&lab, &text.concat());
    let drops = |daemon: &Daemon| daemon.ctl(&["show", "drops"]).output;
    let lease = |ns: &NetNs| lease(&lab, ns, "eth0").unwrap_or_else(|| panic!("{}\n{}", ns.name(), daemon.log()));
    let (at_plain, at_red, at_red2, at_blue) = (lease(&plain), lease(&red), lease(&red2), lease(&blue));
    assert!(at_plain.starts_with("10.9.0.") && at_red2.starts_with("10.9.100."), "{at_plain} {at_red2}");
    assert!(at_blue.starts_with("10.9.200."), "{at_blue}");
    assert_eq!(at_red, "10.9.100.50", "what the port declares is kept for it");

    // Over the router, one hop away; the router itself is reached at all its addresses.
    for (from, to) in [(&red, &at_plain), (&plain, &at_red), (&plain, &at_blue), (&blue, &at_plain), (&red2, &at_plain)]
    {
        assert!(from.reaches(to, PATIENCE).is_some(), "{} to {to}\n{}", from.name(), drops(&daemon));
        let (_, told) = ping(from, to);
        assert!(told.contains("ttl=63"), "{} to {to}: {told}", from.name());
    }
    for to in ["10.9.0.1", "10.9.100.1", "10.9.200.1"] {
        assert!(red.reaches(to, PATIENCE).is_some(), "{to}\n{}", drops(&daemon));
    }
    let (ok, told) = ping(&red, "192.0.2.1");
    assert!(!ok, "nothing leads out of an isolated network: {told}");
    // Isolated ports do not reach each other, within a VLAN and over the router.
    for (from, to) in [(&red, &at_red2), (&red, &at_blue), (&blue, &at_red)] {
        let (ok, told) = ping(from, to);
        assert!(!ok, "{} to {to}: {told}", from.name());
    }
    assert!(drops(&daemon).contains("isolated"));

    // By IPv6, as far as VLANs have a prefix.
    for (ns, prefix) in [(&plain, "fd09::"), (&red, "fd09:100::")] {
        wait_for("an address by router advertisement", PATIENCE, || {
            ns.ip("-6 addr show dev eth0 scope global").contains(prefix)
        });
    }
    let global = plain.ip("-6 addr show dev eth0 scope global");
    let plain6 = global.split("inet6 ").nth(1).unwrap().split('/').next().unwrap();
    assert!(red.reaches(plain6, PATIENCE).is_some(), "{}", drops(&daemon));
    assert!(!blue.ip("-6 addr show dev eth0 scope global").contains("fd09"), "VLAN 200 has no prefix");

    // Guests are found by their names, wherever they are.
    if need_program("dig", "dnsutils").is_ok() {
        let dig = |ns: &NetNs, text: &str| ns.sh(&format!("dig +short +tries=2 +time=4 {text}")).trim().to_owned();
        assert_eq!(dig(&plain, "@10.9.0.1 red.lan.internal"), at_red);
        assert_eq!(dig(&red, "@10.9.100.1 blue.lan.internal"), at_blue);
        assert_eq!(dig(&blue, "@10.9.200.1 plain"), at_plain);
        assert_eq!(dig(&blue, &format!("@10.9.200.1 -x {at_red}")), "red.lan.internal.");
    }

    // The guard holds: an address that is not the port's does not pass.
    red.ip("addr add 10.9.100.60/24 dev eth0");
    let (ok, told) = ping(&red, "-I 10.9.100.60 10.9.100.1");
    assert!(!ok, "{told}");
    red.ip("addr del 10.9.100.60/24 dev eth0");

    // A VLAN without a table has no router, and no way to the others.
    assert_eq!(self::lease(&lab, &alone, "eth0"), None);
    alone.address("eth0", "10.9.100.77/24");
    assert!(alone.reaches("10.9.100.1", SHORT).is_none() && alone.reaches(&at_red, SHORT).is_none());

    trunks(&lab, &daemon, &trunk, &at_plain, &at_blue);
    what_is_shown(&daemon, [&at_plain, &at_red, &at_blue]);

    // Killed and started again, the daemon knows the leases of every VLAN.
    wait_for("the leases to be written", PATIENCE, || {
        fs::read_to_string(lab.path("state/leases-lan%vlan200.json")).unwrap_or_default().contains(&at_blue)
    });
    daemon.kill9();
    daemon.restart();
    let leases = daemon.json(&["show", "leases", "--json"]);
    let of_blue = leases.as_array().unwrap().iter().find(|lease| lease["address"] == at_blue.as_str());
    assert_eq!(of_blue.unwrap()["vlan"], 200, "{leases}");
}

/// A guest that tags: Linux, where the kernel has VLAN interfaces, and the built-in one, where there is KVM.
fn trunks(lab: &Lab, daemon: &Daemon, trunk: &NetNs, plain: &str, blue: &str) {
    trunk.ip("link set eth0 up");
    if trunk.run("ip link add link eth0 name eth0.100 type vlan id 100", PATIENCE).ok() {
        trunk.ip("link add link eth0 name eth0.200 type vlan id 200");
        let (one, two) = (lease(lab, trunk, "eth0.100").unwrap(), lease(lab, trunk, "eth0.200").unwrap());
        assert!(one.starts_with("10.9.100.") && two.starts_with("10.9.200."), "{one} {two}");
        for to in [plain, blue] {
            assert!(trunk.reaches(to, PATIENCE).is_some(), "{to}\n{}", daemon.ctl(&["show", "drops"]).output);
        }
        let across = trunk.sh(&format!("ping -c 3 -i 0.2 -W 5 -I eth0.100 {plain}"));
        assert!(across.contains("ttl=63"), "{across}");
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok() {
        let mut toy = Command::new(program());
        toy.arg("machine").arg("--port").arg(lab.path("toy.sock"));
        for n in [100, 200] {
            let free = free_address(daemon, &format!("10.9.{n}"));
            toy.arg("--run").arg(format!("address {free}/24 via=10.9.{n}.1 vlan={n}"));
            toy.arg("--run").arg(format!("ping {plain}")).arg("--run").arg(format!("ping 10.9.{n}.1"));
        }
        let output = toy.args(["--run", "off"]).output().unwrap();
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "{told}\n{}", daemon.ctl(&["show", "drops"]).output);
    }
}

/// An address under these three octets that nobody has leased: which ones guests get depends on their MACs, and those are chance.
fn free_address(daemon: &Daemon, octets: &str) -> String {
    let leases = daemon.json(&["show", "leases", "--json"]);
    let taken = |address: &String| leases.as_array().unwrap().iter().any(|lease| lease["address"] == address.as_str());
    (60..250).map(|n| format!("{octets}.{n}")).find(|address| !taken(address)).unwrap()
}

/// What the program says of VLANs.
fn what_is_shown(daemon: &Daemon, [plain, red, blue]: [&String; 3]) {
    let networks = daemon.json(&["show", "networks", "--json"]);
    let expected = json!([
        { "vlan": 100, "subnet": "10.9.100.0/24", "subnet6": "fd09:100::/64", "ports": ["red/0", "red2/0", "trunk/0", "toy/0"] },
        { "vlan": 200, "subnet": "10.9.200.0/24", "subnet6": null, "ports": ["blue/0", "trunk/0", "toy/0"] },
    ]);
    assert_eq!((&networks[0]["vlans"], &networks[0]["reason"]), (&expected, &Value::Null));
    let leases = daemon.json(&["show", "leases", "--json"]);
    for (address, vlan) in [(plain, Value::Null), (red, json!(100)), (blue, json!(200))] {
        let lease = leases.as_array().unwrap().iter().find(|lease| lease["address"] == address.as_str());
        assert_eq!(lease.map(|lease| (&lease["network"], &lease["vlan"])), Some((&json!("lan"), &vlan)), "{leases}");
    }
    let table = daemon.ctl(&["show", "networks"]).output;
    assert!(table.contains("vlan 100") && table.contains("10.9.100.0/24"), "{table}");
    let fdb = daemon.ctl(&["show", "fdb"]).output;
    assert!(fdb.contains("lan/router/100"), "{fdb}");
}

/// A network behind address translation with a guest in VLAN 100 and one in VLAN 200; `far` is what is outside.
fn reaches_out(lab: &Lab, keys: &str, outside: &str) -> Result<(), Unable> {
    need_program("busybox", "busybox-static")?;
    let [host, far, red, blue] = ["host", "far", "red", "blue"].map(|name| NetNs::new(lab, name));
    let (host, far, red, blue) = (host?, far?, red?, blue?);
    host.veth("up0", &far, "down0");
    host.address("up0", "192.0.2.1/24");
    far.address("down0", "192.0.2.2/24");
    host.sh("sysctl -q -w 'net.ipv4.ping_group_range=0 2147483647'");
    let text = [
        format!("[networks.lan]\nmode = \"nat\"\nsubnet = \"10.9.0.0/24\"\n{keys}"),
        format!("publish = [\"tcp {outside}:8080 red:80\", \"tcp {outside}:8081 10.9.200.5:81\"]\n"),
        "[networks.lan.vlans.100]\nsubnet = \"10.9.100.0/24\"\n[networks.lan.vlans.200]\nsubnet = \"10.9.200.0/24\"\n"
            .to_owned(),
        guest("red", &red, ", vlan = 100"),
        guest("blue", &blue, ", vlan = 200"),
    ];
    let daemon = Daemon::start_in(lab, &host, &text.concat());
    let drops = || daemon.ctl(&["show", "drops"]).output;
    let at_red = lease(lab, &red, "eth0").unwrap_or_else(|| panic!("{}", daemon.log()));
    assert!(at_red.starts_with("10.9.100."), "{at_red}");
    // One that has its address from nobody.
    blue.address("eth0", "10.9.200.5/24");
    blue.ip("route add default via 10.9.200.1");
    for ns in [&red, &blue] {
        assert!(ns.reaches("192.0.2.2", PATIENCE).is_some(), "{}\n{}{}", ns.name(), drops(), daemon.log());
    }
    assert!(red.reaches("10.9.200.5", PATIENCE).is_some(), "{}", drops());

    // Out by TCP, much of it, and from both at the same time; back what is of the asker.
    let pattern = "yes trunkline | head -c 20000000";
    let sum = host.sh(&format!("{pattern} | md5sum"));
    let _up = serve(&far, 5000, "md5sum");
    let _down = serve(&far, 5001, pattern);
    let down = "busybox nc 192.0.2.2 5001 </dev/null | md5sum";
    let other = blue.spawn(down);
    assert_eq!(red.sh(&format!("{pattern} | busybox nc 192.0.2.2 5000")), sum, "{}{}", drops(), daemon.log());
    assert_eq!(red.sh(down), sum, "{}", drops());
    assert_eq!(other.wait(PATIENCE).output, sum, "{}", drops());

    // In, to a guest by its lease and to an address.
    let _web = serve(&red, 80, "echo red");
    let _other = serve(&blue, 81, "echo blue");
    for (port, name) in [(8080, "red"), (8081, "blue")] {
        wait_for(&format!("port {port} to lead to {name}"), PATIENCE, || {
            let fetched = far.run(&format!("timeout 5 busybox nc -w 3 {outside} {port} </dev/null"), PATIENCE);
            fetched.output.trim() == name
        });
    }
    // What is closed outside is refused, and what is not there is told.
    let refused = red.run("timeout 5 busybox nc -w 4 192.0.2.2 9 </dev/null", PATIENCE);
    assert!(!refused.ok() && refused.output.contains("refused"), "{}\n{}", refused.output, drops());
    Ok(())
}

#[test]
fn guests_in_vlans_go_out_by_sockets() {
    let lab = require!(Lab::new());
    require!(reaches_out(&lab, "engine = \"sockets\"\n", "192.0.2.1"));
}

#[test]
fn guests_in_vlans_go_out_by_packets() {
    let lab = require!(Lab::new());
    require!(reaches_out(&lab, "engine = \"packet\"\nuplink = \"up0\"\noutside = [\"192.0.2.9\"]\n", "192.0.2.9"));
}

#[test]
fn vlans_reach_networks_that_are_routed() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let (red, yard) = (require!(NetNs::new(&lab, "red")), require!(NetNs::new(&lab, "yard")));
    let text = [
        LAN.replace("dhcp = true\n", "dhcp = true\nroute = [\"yard\"]\n"),
        "[networks.yard]\nsubnet = \"10.8.0.0/24\"\ndhcp = true\n[networks.yard.vlans.100]\nsubnet = \"10.8.100.0/24\"\n".to_owned(),
        guest("red", &red, ", vlan = 100"),
        guest("yard", &yard, ", vlan = 100").replace("\"lan\"", "\"yard\""),
    ];
    let daemon = Daemon::start(&lab, &text.concat());
    let lease = |ns: &NetNs| lease(&lab, ns, "eth0").unwrap_or_else(|| panic!("{}", daemon.log()));
    let (at_red, at_yard) = (lease(&red), lease(&yard));
    assert!(at_red.starts_with("10.9.100.") && at_yard.starts_with("10.8.100."), "{at_red} {at_yard}");
    assert!(red.reaches(&at_yard, PATIENCE).is_some(), "{}", daemon.ctl(&["show", "drops"]).output);
    let (_, told) = ping(&yard, &at_red);
    assert!(told.contains("ttl=63"), "{told}");
}

#[test]
fn the_host_of_a_network_reaches_its_vlans() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let (host, red) = (require!(NetNs::new(&lab, "host")), require!(NetNs::new(&lab, "red")));
    let text = format!(
        "[networks.lan]\nmode = \"host-only\"\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\n\
         [networks.lan.vlans.100]\nsubnet6 = \"fd09:100::/64\"\n{}",
        guest("red", &red, ", vlan = 100")
    );
    let daemon = Daemon::start_in(&lab, &host, &text);
    let at_red = lease(&lab, &red, "eth0").unwrap_or_else(|| panic!("{}", daemon.log()));
    assert!(at_red.starts_with("10.77."), "a subnet was chosen: {at_red}");
    let networks = daemon.json(&["show", "networks", "--json"]);
    let subnet = networks[0]["vlans"][0]["subnet"].as_str().unwrap();
    assert!(host.ip("route").contains(&format!("{subnet} via 10.9.0.2 dev tl-lan")), "{}", daemon.log());
    assert!(red.reaches("10.9.0.1", PATIENCE).is_some(), "{}", daemon.ctl(&["show", "drops"]).output);
    assert!(host.reaches(&at_red, PATIENCE).is_some());
    wait_for("the host's address by router advertisement", PATIENCE, || {
        host.ip("-6 addr show dev tl-lan scope global").contains("fd09::")
    });
    assert!(!host.ip("-6 route").contains("default"), "the host's way out is not over its guests");
}
