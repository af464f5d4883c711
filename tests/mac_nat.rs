//! Bridged by MAC-NAT: guests are in the network of a NIC that sends with no address but its own.
//!
//! The host is a network namespace in which the daemon runs; its NIC is a veth to another namespace, the outside, which gives out addresses and
//! has a Linux bridge to see which stations there are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program};
use lab::netns::NetNs;
use lab::process::{Job, Place};
use lab::{Lab, Unable, need_program, require, wait_for};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr flush dev $interface scope global\n\
                      ip addr add $ip/$mask dev $interface\nip route add default via $router\n\
                      echo \"took $ip/$mask router=$router\"\n";
/// Bytes sent each way.
const BULK: u32 = 20_000_000;

/// The outside with its router's addresses, the host with its NIC `nic0` there, and two guests.
struct Site {
    host: NetNs,
    outside: NetNs,
    one: NetNs,
    two: NetNs,
}

impl Site {
    fn new(lab: &Lab) -> Result<Site, Unable> {
        let site = Site {
            host: NetNs::new(lab, "host")?,
            outside: NetNs::new(lab, "outside")?,
            one: NetNs::new(lab, "one")?,
            two: NetNs::new(lab, "two")?,
        };
        let Site { host, outside, .. } = &site;
        let made =
            outside.run("ip link add br0 address 02:00:00:00:99:99 type bridge stp_state 0 forward_delay 0", PATIENCE);
        if !made.ok() {
            return Err(Unable(format!("this kernel makes no bridges: {}", made.output.trim())));
        }
        host.veth("nic0", outside, "port0");
        outside.ip("link set port0 master br0");
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            outside.address("br0", address);
        }
        for address in ["192.0.2.5/24", "2001:db8::5/64"] {
            host.address("nic0", address);
        }
        host.ip("route add default via 192.0.2.1");
        Ok(site)
    }

    fn config(&self) -> String {
        let port = |guest: &NetNs| {
            let name = guest.netns_name();
            format!("ports = [{{ network = \"wan\", attach = \"tap\", tap = \"eth0\", netns = \"{name}\" }}]\n")
        };
        format!(
            "[networks.wan]\nmode = \"bridged\"\nuplink = \"nic0\"\nmac_nat = true\n[guests.one]\n{}[guests.two]\n{}",
            port(&self.one),
            port(&self.two)
        )
    }

    /// Gives out addresses of both families.
    fn serve(&self, lab: &Lab) -> Job {
        self.outside.spawn(&format!(
            "exec dnsmasq -k --conf-file=/dev/null --port=0 --interface=br0 --bind-interfaces --log-dhcp --no-ping --enable-ra \
             --ra-param=br0,4,1800 --dhcp-range=192.0.2.100,192.0.2.120,1h --dhcp-range=2001:db8::,ra-only,64,1h \
             --dhcp-leasefile={} --pid-file=",
            lab.path("leases").display()
        ))
    }

    /// The stations that the outside has seen behind the host's NIC.
    fn stations(&self) -> BTreeSet<String> {
        let seen = self.outside.sh("bridge fdb show dev port0 | grep -v permanent || true");
        seen.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }
}

/// Asks for an address by DHCP; the one that it got.
fn lease(lab: &Lab, guest: &NetNs) -> String {
    let script = lab.path("script");
    fs::write(&script, SCRIPT).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&script).status().unwrap().success());
    guest.ip("link set eth0 up");
    let told = guest.sh(&format!("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 8 -T 1 -s {} 2>&1", script.display()));
    assert!(told.contains("took 192.0.2.1") && told.contains("router=192.0.2.1"), "{told}");
    told.split("took ").nth(1).unwrap().split('/').next().unwrap().to_owned()
}

/// The address that an interface made itself of what the router tells.
fn made_itself(guest: &NetNs) -> String {
    let find = || {
        let shown = guest.ip("-6 -o addr show dev eth0 scope global");
        shown.split_whitespace().find_map(|word| word.strip_suffix("/64").map(str::to_owned))
    };
    wait_for("an address by SLAAC", PATIENCE, || find().is_some());
    find().unwrap()
}

fn reach(pairs: &[(&NetNs, &str)], daemon: &Daemon) {
    for (from, to) in pairs {
        assert!(from.reaches(to, PATIENCE).is_some(), "{} to {to}\n{}", from.name(), daemon.log());
    }
}

/// How many echo requests a place was asked.
fn echoes(place: &NetNs) -> u64 {
    let told = place.sh("grep ^Icmp: /proc/net/snmp");
    let mut lines = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    values[names.iter().position(|name| *name == "InEchos").unwrap()].parse().unwrap()
}

fn drops(daemon: &Daemon, port: &str) -> serde_json::Value {
    daemon.port(port)["drops"].clone()
}

/// Sends the file to `address`, where it is summed up, and fetches it from there.
fn bulk(client: &NetNs, server: &NetNs, address: &str, file: &str, sum: &str) {
    for (listen, talk) in [
        ("md5sum".to_owned(), format!("busybox nc {address} 5000 < {file}")),
        (format!("cat {file}"), format!("busybox nc {address} 5000 < /dev/null | md5sum")),
    ] {
        let mut listening = server.spawn(&format!("exec busybox nc -l -p 5000 -e {listen}"));
        wait_for("nc to listen", PATIENCE, || {
            server.run("grep -q ':1388 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok()
        });
        let told = client.run(&talk, Duration::from_secs(60));
        assert!(told.ok(), "{} to {address}: {}", client.name(), told.output);
        assert_eq!(told.output.split_whitespace().next(), Some(sum), "{} to {address}", client.name());
        listening.kill();
    }
}

#[test]
fn guests_are_in_the_network_of_the_nic_and_the_outside_sees_one_station() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    require!(need_program("dnsmasq", "dnsmasq-base"));
    let site = require!(Site::new(&lab));
    let Site { host, outside, one, two } = &site;
    let mut dhcp = site.serve(&lab);
    let before = host.ip("-o addr show dev nic0 scope global");
    let mut daemon = Daemon::start_in(&lab, host, &site.config());
    assert_eq!(daemon.port("wan/uplink")["state"], "up", "{}", daemon.log());
    assert_eq!(daemon.json(&["show", "networks", "--json"])[0]["mtu"], 1500);

    let (first, second) = (lease(&lab, one), lease(&lab, two));
    // What a server gave is known although its guest has said nothing yet.
    reach(&[(host, &first)], &daemon);
    let (first6, second6) = (made_itself(one), made_itself(two));
    assert_ne!(first, second);
    for (a, b, outside_address, host_address) in
        [(&first, &second, "192.0.2.1", "192.0.2.5"), (&first6, &second6, "2001:db8::1", "2001:db8::5")]
    {
        let pairs = [
            (one, b.as_str()),
            (two, a.as_str()),
            (one, outside_address),
            (two, outside_address),
            (outside, a.as_str()),
            (outside, b.as_str()),
            (one, host_address),
            (two, host_address),
            (host, a.as_str()),
            (host, b.as_str()),
            (host, outside_address),
            (outside, host_address),
        ];
        reach(&pairs, &daemon);
    }

    let file = lab.path("bulk").display().to_string();
    host.sh(&format!("head -c {BULK} /dev/urandom > {file}"));
    let sum = host.sh(&format!("md5sum {file}")).split_whitespace().next().unwrap().to_owned();
    for (client, server, address) in
        [(one, outside, "192.0.2.1"), (outside, one, &first), (one, host, "192.0.2.5"), (host, one, &first)]
    {
        bulk(client, server, address, &file, &sum);
    }
    bulk(one, outside, "2001:db8::1", &file, &sum);

    let nic = host.mac("nic0");
    assert_eq!(site.stations(), BTreeSet::from([nic.clone()]), "{}", outside.ip("neigh"));
    for address in [&first, &second, &first6, &second6] {
        let known = outside.ip(&format!("neigh show {address}"));
        assert!(known.contains(&nic), "{address}: {known}");
    }
    let fdb = daemon.json(&["show", "fdb", "--json"]);
    assert!(fdb.to_string().contains("wan/uplink") && fdb.to_string().contains("wan/host"), "{fdb}");

    daemon.terminate();
    assert!(!host.has_link("tl-wan"), "nothing is left");
    let left = |host: &NetNs| host.ip("route show") + &host.ip("-6 route show");
    assert!(!left(host).contains(&first) && !left(host).contains(&first6), "{}", left(host));
    let after = host.ip("-o addr show dev nic0 scope global");
    let addresses = |shown: &str| shown.split_whitespace().filter(|word| word.contains('/')).count();
    assert!(addresses(&after) >= addresses(&before), "the NIC is as it was: {after}");
    daemon.restart();
    one.address("eth0", &format!("{first}/24"));
    reach(&[(one, "192.0.2.5"), (host, &first)], &daemon);
    daemon.kill9();
    wait_for("the TAP and its routes to be gone", PATIENCE, || {
        !host.has_link("tl-wan") && !left(host).contains(&first)
    });
    dhcp.kill();
}

#[test]
fn a_guest_takes_neither_anothers_address_nor_the_hosts() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    let Site { host, outside, one, two } = &site;
    let daemon = Daemon::start_in(&lab, host, &site.config());
    one.address("eth0", "192.0.2.50/24");
    two.address("eth0", "192.0.2.60/24");
    reach(&[(one, "192.0.2.1"), (two, "192.0.2.1"), (one, "192.0.2.5"), (two, "192.0.2.5")], &daemon);

    two.ip("addr add 192.0.2.50/24 dev eth0");
    let spoofed = two.run("ping -c 3 -i 0.2 -W 1 -I 192.0.2.50 192.0.2.1", PATIENCE);
    assert!(!spoofed.ok(), "{}", spoofed.output);
    assert!(drops(&daemon, "wan/uplink")["spoofed_source"].as_u64() >= Some(1), "{}", drops(&daemon, "wan/uplink"));
    let asked = echoes(two);
    outside.ip("neigh flush dev br0");
    reach(&[(outside, "192.0.2.50")], &daemon);
    assert_eq!(echoes(two), asked, "the first holder is still asked");

    two.ip("addr del 192.0.2.50/24 dev eth0");
    two.ip("addr add 192.0.2.5/24 dev eth0");
    for target in ["192.0.2.1", "192.0.2.50"] {
        let spoofed = two.run(&format!("ping -c 3 -i 0.2 -W 1 -I 192.0.2.5 {target}"), PATIENCE);
        assert!(!spoofed.ok(), "{}", spoofed.output);
    }
    let asked = echoes(two);
    one.ip("neigh flush dev eth0");
    reach(&[(outside, "192.0.2.5"), (one, "192.0.2.5"), (host, "192.0.2.1"), (host, "192.0.2.50")], &daemon);
    assert_eq!(echoes(two), asked, "the host is still asked");
    assert!(drops(&daemon, "two/0")["spoofed_arp"].as_u64() >= Some(1), "{}", drops(&daemon, "two/0"));

    // What a router outside is known by, or what is not behind the NIC, is no way for the host to a guest.
    for address in ["198.51.100.7/24", "192.0.2.1/24"] {
        two.ip(&format!("addr add {address} dev eth0"));
        let source = address.split('/').next().unwrap();
        two.run(&format!("ping -c 2 -i 0.2 -W 1 -I {source} 192.0.2.5"), PATIENCE);
    }
    let routes = host.ip("route show dev tl-wan");
    assert!(routes.contains("192.0.2.50") && routes.contains("192.0.2.60"), "{routes}");
    assert!(!routes.contains("198.51.100.7") && !routes.contains("192.0.2.1 "), "{routes}");
    reach(&[(host, "192.0.2.1")], &daemon);
}

#[test]
fn what_becomes_of_the_nic_is_followed_and_doctor_is_content() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    let Site { host, outside, one, .. } = &site;
    let mut daemon = Daemon::start_in(&lab, host, &site.config());
    let config = daemon.config().display().to_string();
    let report = host.exec(&[&program().display().to_string(), "--config", &config, "--json", "doctor"]);
    let line = report.output.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{}", report.output));
    let report: serde_json::Value = serde_json::from_str(line).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let uplink = checks.iter().find(|check| check["name"] == "uplink of wan").unwrap();
    assert_eq!(uplink["state"], "ok", "{uplink}");

    one.address("eth0", "192.0.2.50/24");
    one.address("eth0", "2001:db8::50/64");
    reach(&[(one, "192.0.2.5"), (one, "2001:db8::5"), (one, "2001:db8::1")], &daemon);
    for (address, bare) in [("192.0.2.6/24", "192.0.2.6"), ("2001:db8::6/64", "2001:db8::6")] {
        host.ip(&format!("addr add {address} dev nic0"));
        reach(&[(one, bare), (outside, bare)], &daemon);
    }
    assert!(host.ip("-6 addr show dev tl-wan").contains("2001:db8::6/128"));
    host.ip("addr del 2001:db8::6/64 dev nic0");
    wait_for("the address to be gone", PATIENCE, || !host.ip("-6 addr show dev tl-wan").contains("2001:db8::6/128"));

    // As a laptop does that is in another place.
    host.ip("link set nic0 down");
    wait_for("the port to be down", PATIENCE, || daemon.port("wan/uplink")["state"] == "down");
    let port = daemon.port("wan/uplink");
    assert!(port["reason"].as_str().unwrap().contains("nic0 is down"), "{port}");
    host.ip("link set nic0 address 02:00:00:00:77:01");
    host.ip("link set nic0 up");
    wait_for("the port to be up", PATIENCE, || daemon.port("wan/uplink")["state"] == "up");
    host.ip("addr replace 2001:db8::5/64 dev nic0");
    reach(&[(one, "192.0.2.1"), (outside, "192.0.2.50"), (one, "192.0.2.5"), (host, "192.0.2.50")], &daemon);
    reach(&[(one, "2001:db8::1"), (one, "2001:db8::5")], &daemon);
    assert!(outside.ip("neigh show 192.0.2.50").contains("02:00:00:00:77:01"));
    assert!(site.stations().contains("02:00:00:00:77:01"));

    // A NIC that goes away, as one on USB does, takes down its own port alone.
    host.ip("link del nic0");
    wait_for("the port to be down", PATIENCE, || daemon.port("wan/uplink")["state"] == "down");
    assert_eq!(daemon.port("one/0")["state"], "up");
    host.veth("nic0", outside, "port0");
    outside.ip("link set port0 master br0");
    host.address("nic0", "192.0.2.5/24");
    wait_for("the port to be up", PATIENCE, || daemon.port("wan/uplink")["state"] == "up");
    reach(&[(one, "192.0.2.1"), (one, "192.0.2.5")], &daemon);
    daemon.terminate();
}
