//! Networks that are routed to each other: guests of one reach those of the other over the router that both have, by IPv4 and IPv6, and nobody else's.

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
/// Takes the address and the classless routes (option 121), as clients of today do.
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip -4 addr flush dev $interface scope global\n\
                      ip addr add $ip/$mask dev $interface\nset -- $staticroutes\n\
                      while [ $# -ge 2 ]; do ip route replace $1 via $2; shift 2; done\necho \"took $ip routes=$staticroutes\"\n";

#[test]
fn guests_reach_the_other_network_and_only_that() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let [a, b, c] = ["a", "b", "c"].map(|name| NetNs::new(&lab, name));
    let (a, b, c) = (require!(a), require!(b), require!(c));
    let network = |name: &str, n: u8, more: &str| {
        format!("[networks.{name}]\nsubnet = \"10.9.{n}.0/24\"\nsubnet6 = \"fd09:{n}::/64\"\ndhcp = true\n{more}")
    };
    let guest = |name: &str, network: &str, ns: &NetNs| {
        let netns = ns.netns_name();
        format!(
            "[guests.{name}]\nports = [{{ network = \"{network}\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
        )
    };
    let text = [
        "[host]\nworker_cpus = [0, 1]\n".to_owned(),
        network("lan", 1, "route = [\"dmz\"]\n"),
        network("other", 3, ""),
        network("dmz", 2, ""),
        guest("a", "lan", &a),
        guest("b", "dmz", &b),
        guest("c", "other", &c),
    ];
    let daemon = Daemon::start(&lab, &text.concat());
    let script = lab.path("script");
    fs::write(&script, SCRIPT).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&script).status().unwrap().success());
    let mut addresses = Vec::new();
    for ns in [&a, &b, &c] {
        ns.ip("link set eth0 up");
        let script = script.display();
        let told =
            ns.sh(&format!("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -O staticroutes -s {script} 2>&1"));
        assert!(told.contains("took 10.9."), "{told}");
        assert_eq!(told.contains("routes=10.9."), ns.name() != c.name(), "the way is told by DHCP: {told}");
        addresses.push(told.split("took ").nth(1).unwrap().split(' ').next().unwrap().to_owned());
    }
    let drops = || daemon.ctl(&["show", "drops"]).output;
    assert!(a.reaches(&addresses[1], PATIENCE).is_some(), "{}", drops());
    assert!(b.reaches(&addresses[0], PATIENCE).is_some(), "{}", drops());
    assert!(a.reaches("10.9.2.1", PATIENCE).is_some(), "the router answers at its other address");
    let ttl = a.sh(&format!("ping -c 3 -i 0.2 -W 5 {}", addresses[1]));
    assert!(ttl.contains("ttl=63"), "one hop: {ttl}");
    for ns in [&a, &b] {
        wait_for("a route by router advertisement", PATIENCE, || ns.ip("-6 route").contains("default"));
    }
    let global = b.ip("-6 addr show dev eth0 scope global");
    let b6 = global.split("inet6 ").nth(1).unwrap().split('/').next().unwrap();
    assert!(a.reaches(b6, PATIENCE).is_some(), "{global}\n{}", drops());

    // A transfer, in super-frames with checksums that are owed.
    let mut server = b.spawn("exec busybox nc -l -p 5000 -e md5sum");
    wait_for("nc to listen", PATIENCE, || b.run("grep -q ':1388 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok());
    let sent = "head -c 50000000 /dev/zero";
    let there = a.sh(&format!("{sent} | busybox nc {} 5000", addresses[1]));
    assert_eq!(there.trim(), a.sh(&format!("{sent} | md5sum")).trim(), "{}", drops());
    server.kill();

    // Not routed to each other: the router says so.
    a.ip("route add 10.9.3.0/24 via 10.9.1.1");
    let out = a.run(&format!("ping -c 2 -i 0.2 -W 2 {}", addresses[2]), PATIENCE);
    assert!(!out.ok() && out.output.contains("Unreachable"), "{}", out.output);
}
