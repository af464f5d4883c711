//! Host-only networks: the host has an address in them, guests get theirs by DHCP, and nothing leads out.
//!
//! The host is a network namespace in which the daemon runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::Place;
use lab::{Lab, need_program, require, wait_for};
use std::fs;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr flush dev $interface scope global\n\
                      ip addr add $ip/$mask dev $interface\necho \"took $ip/$mask router=$router\"\n";

/// A host-only network with a TAP in a namespace for a guest; `more` are further keys of the network.
fn config(guest: &NetNs, more: &str) -> String {
    format!(
        "[networks.lan]\nmode = \"host-only\"\n{more}\n[guests.g]\n\
         ports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
        guest.netns_name()
    )
}

/// Asks for an address; what the script said.
fn lease(lab: &Lab, guest: &NetNs) -> String {
    let script = lab.path("script");
    fs::write(&script, SCRIPT).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&script).status().unwrap().success());
    guest.ip("link set eth0 up");
    guest.sh(&format!("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -s {} 2>&1", script.display()))
}

#[test]
fn host_and_guests_reach_each_other_and_nothing_else() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let (host, guest, outside) =
        (require!(NetNs::new(&lab, "host")), require!(NetNs::new(&lab, "guest")), require!(NetNs::new(&lab, "out")));
    // The host has a way out, by which no guest may go.
    host.ip(&format!("link add up0 type veth peer name up0 netns {}", outside.netns_name()));
    host.address("up0", "192.0.2.1/24");
    outside.address("up0", "192.0.2.2/24");
    let mut daemon = Daemon::start_in(&lab, &host, &config(&guest, "subnet = \"10.9.0.0/24\""));
    assert!(host.ip("addr show dev tl-lan").contains("inet 10.9.0.1/24"), "{}", daemon.log());
    let told = lease(&lab, &guest);
    assert!(told.contains("took 10.9.0.") && told.contains("/24") && told.contains("router=\n"), "{told}");
    let address = told.split("took ").nth(1).unwrap().split('/').next().unwrap().to_owned();
    assert!(!["10.9.0.1", "10.9.0.2"].contains(&address.as_str()), "the host's and the router's: {address}");
    for (from, to) in [(&guest, "10.9.0.1"), (&guest, "10.9.0.2"), (&host, address.as_str()), (&host, "10.9.0.2")] {
        assert!(from.reaches(to, PATIENCE).is_some(), "{} to {to}\n{}", from.name(), daemon.log());
    }
    let mut server = host.spawn("exec busybox nc -l -p 5000 -e md5sum");
    wait_for("nc to listen", PATIENCE, || {
        host.run("grep -q ':1388 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok()
    });
    let sent = "head -c 5000000 /dev/zero";
    let there = guest.sh(&format!("{sent} | busybox nc 10.9.0.1 5000"));
    assert_eq!(there.trim(), host.sh(&format!("{sent} | md5sum")).trim());
    server.kill();

    // Whatever route a guest makes up, nothing leads out: the router says so.
    guest.ip("route add 192.0.2.0/24 via 10.9.0.2");
    let out = guest.run("ping -c 2 -i 0.2 -W 2 192.0.2.2", PATIENCE);
    assert!(!out.ok() && out.output.contains("Unreachable"), "{}", out.output);

    // Nor does the host listen to what guests say of routers, and nobody else is the host.
    for setting in
        ["ipv6/conf/tl-lan/accept_ra", "ipv6/conf/tl-lan/accept_redirects", "ipv4/conf/tl-lan/accept_redirects"]
    {
        assert_eq!(host.sh(&format!("cat /proc/sys/net/{setting}")).trim(), "0", "{setting}");
    }
    guest.ip("addr add 10.9.0.1/32 dev eth0");
    guest.ip("neigh flush dev eth0");
    let _ = guest.run("ping -c 1 -W 1 -I 10.9.0.1 10.9.0.2", PATIENCE);
    let drops = daemon.json(&["show", "drops", "--json"]);
    let spoofed = |drop: &serde_json::Value| drop["port"] == "g/0" && drop["reason"] == "spoofed_arp";
    assert!(drops.as_array().unwrap().iter().any(spoofed), "{drops}");

    let ports = daemon.json(&["show", "ports", "--json"]);
    let names: Vec<_> =
        ports.as_array().unwrap().iter().map(|port| (port["name"].clone(), port["state"].clone())).collect();
    assert_eq!(names, [("g/0".into(), "up".into()), ("lan/host".into(), "up".into())]);
    let networks = daemon.json(&["show", "networks", "--json"]);
    assert_eq!((&networks[0]["mode"], &networks[0]["subnet"]), (&"host-only".into(), &"10.9.0.0/24".into()));

    daemon.terminate();
    assert!(!host.run("ip link show dev tl-lan", PATIENCE).ok(), "nothing is left behind");
    daemon.restart();
    daemon.kill9();
    wait_for("the TAP to be gone", PATIENCE, || !host.run("ip link show dev tl-lan", PATIENCE).ok());
}

#[test]
fn a_free_subnet_is_chosen_and_remembered() {
    let lab = require!(Lab::new());
    let (host, guest) = (require!(NetNs::new(&lab, "host")), require!(NetNs::new(&lab, "guest")));
    host.ip("link set lo up");
    host.ip("route add 10.77.1.0/24 dev lo");
    host.ip("route add 10.77.2.0/23 dev lo");
    let mut daemon = Daemon::start_in(&lab, &host, &config(&guest, ""));
    let subnet =
        |daemon: &Daemon| daemon.json(&["show", "networks", "--json"])[0]["subnet"].as_str().unwrap().to_owned();
    assert_eq!(subnet(&daemon), "10.77.4.0/24", "the first that the host does not route");
    // Other subnets have become free meanwhile: the network keeps its own.
    host.ip("route del 10.77.1.0/24 dev lo");
    daemon.kill9();
    wait_for("the TAP to be gone", PATIENCE, || !host.run("ip link show dev tl-lan", PATIENCE).ok());
    daemon.restart();
    assert_eq!(subnet(&daemon), "10.77.4.0/24");
    // Its own is somebody else's now.
    daemon.terminate();
    host.ip("route add 10.77.4.0/24 dev lo");
    daemon.restart();
    assert_eq!(subnet(&daemon), "10.77.1.0/24", "{}", daemon.log());
}

#[test]
fn a_host_that_gives_no_tap_takes_down_its_own_port_alone() {
    let lab = require!(Lab::new());
    let (host, guest) = (require!(NetNs::new(&lab, "host")), require!(NetNs::new(&lab, "guest")));
    // Somebody else has an interface of this name.
    host.ip("link add tl-lan type veth peer name other");
    let daemon = Daemon::start_in(&lab, &host, &config(&guest, "subnet = \"10.9.0.0/24\""));
    let port = daemon.port("lan/host");
    assert_eq!(port["state"], "down", "{port}");
    assert!(port["reason"].as_str().is_some_and(|why| why.contains("TAP tl-lan")), "{port}");
    assert_eq!(daemon.port("g/0")["state"], "up");
    assert!(lease(&lab, &guest).contains("took 10.9.0."), "the router serves guests all the same");
}

#[test]
fn the_host_has_the_ipv6_address_of_its_mac_and_speaks_from_it() {
    let lab = require!(Lab::new());
    let (host, guest) = (require!(NetNs::new(&lab, "host")), require!(NetNs::new(&lab, "guest")));
    // As desktops have it, and not for this interface.
    host.sh("sysctl -q -w net.ipv6.conf.default.use_tempaddr=2");
    let keys = "subnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"";
    let daemon = Daemon::start_in(&lab, &host, &config(&guest, keys));
    let mac: wire::Mac = host.mac("tl-lan").parse().unwrap();
    let own = mac.in_prefix("fd09::".parse().unwrap()).to_string();
    guest.ip("link set eth0 up");
    wait_for("the host's address", PATIENCE, || host.ip("-6 addr show dev tl-lan scope global").contains(&own));
    let shown = host.ip("-6 addr show dev tl-lan scope global");
    assert_eq!(shown.matches("inet6").count(), 1, "no other: {shown}");
    wait_for("the guest's address", PATIENCE, || guest.ip("-6 addr show dev eth0 scope global").contains("fd09:"));
    assert!(guest.reaches(&own, PATIENCE).is_some(), "{}", daemon.log());
    let drops = daemon.json(&["show", "drops", "--json"]);
    assert!(!drops.as_array().unwrap().iter().any(|drop| drop["port"] == "lan/host"), "{drops}");
}
