//! Bridged networks: a NIC of the host is joined to a bridge, guests are in its network, and everything is put back.
//!
//! The host is a network namespace in which the daemon runs; its NIC is a veth to another namespace, the router, which gives out addresses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program};
use lab::frames::{Flow, Traffic, Vlan, exchange};
use lab::netns::NetNs;
use lab::process::{CommandOutput, Place, signal};
use lab::{Lab, Unable, need_program, require, wait_for};
use std::fs;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr flush dev $interface scope global\n\
                      ip addr add $ip/$mask dev $interface\necho \"took $ip/$mask router=$router\"\n";

/// The host with its NIC `nic0`, the router at its other end, and a guest.
struct Site {
    host: NetNs,
    router: NetNs,
    guest: NetNs,
}

impl Site {
    fn new(lab: &Lab) -> Result<Site, Unable> {
        let site = Site {
            host: NetNs::new(lab, "host")?,
            router: NetNs::new(lab, "router")?,
            guest: NetNs::new(lab, "guest")?,
        };
        let probe = site.guest.run("ip link add probe type bridge && ip link del probe", PATIENCE);
        if !probe.ok() {
            return Err(Unable(format!("this kernel makes no bridges: {}", probe.output.trim())));
        }
        let Site { host, router, .. } = &site;
        host.veth("nic0", router, "port0");
        router.ip("link add lo1 type veth peer name lo2");
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            router.address("port0", address);
        }
        router.address("lo1", "203.0.113.1/24");
        router.ip("link set lo2 up");
        Ok(site)
    }

    /// Addresses and routes of many kinds on the NIC.
    fn furnish(&self) {
        let host = &self.host;
        host.ip("addr add 192.0.2.5/24 brd 192.0.2.255 dev nic0");
        host.ip("addr add 192.0.2.6/24 dev nic0 label nic0:1");
        host.ip("addr add 198.51.100.5/25 metric 300 noprefixroute dev nic0");
        host.ip("addr add 192.0.2.7/24 valid_lft 30000 preferred_lft 20000 dev nic0");
        host.ip("addr add 2001:db8::5/64 dev nic0");
        host.ip("addr add 2001:db8::6/64 valid_lft 30000 preferred_lft 20000 dev nic0");
        host.ip("-6 route add 2001:db8:8::/48 via 2001:db8::1 dev nic0 expires 25000");
        host.ip("route add 198.51.100.0/25 dev nic0 metric 77");
        host.ip("route add default via 192.0.2.1 dev nic0 metric 100 src 192.0.2.5 proto static");
        host.ip("route add 203.0.113.0/24 via 192.0.2.1 dev nic0 mtu 1400");
        host.ip("route add 203.0.114.0/24 via 10.9.9.9 dev nic0 onlink");
        host.ip("route add default via 192.0.2.1 dev nic0 table 7");
        host.ip("-6 route add default via 2001:db8::1 dev nic0 metric 512");
        host.ip("-6 route add 2001:db8:7::/48 via 2001:db8::1 dev nic0 table 7");
    }

    /// Everything that is to be as it was. Interface numbers stay; orders within one metric do not count.
    fn state(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for what in ["-o addr show dev nic0 scope global", "route show table all", "-6 route show table all"] {
            lines.extend(self.host.ip(what).lines().map(|line| line.trim().to_owned()));
        }
        lines.push(self.host.sh("cat /sys/class/net/nic0/flags /sys/class/net/nic0/address"));
        // The kernel's link-local and multicast entries of other interfaces come and go with them.
        lines.retain(|line| line.contains("nic0"));
        // Lifetimes run on, and have to be there.
        for line in &mut lines {
            let whole = |word: &str| match word.strip_suffix("sec").and_then(|seconds| seconds.parse::<u32>().ok()) {
                Some(seconds) => format!("{}0000sec", seconds.div_ceil(10_000)),
                None => word.to_owned(),
            };
            *line = line.split_whitespace().map(whole).collect::<Vec<_>>().join(" ");
        }
        lines.sort();
        lines.join("\n")
    }

    fn config(&self, more: &str) -> String {
        format!(
            "[networks.wan]\nmode = \"bridged\"\n{more}\n[guests.g]\n\
             ports = [{{ network = \"wan\", attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
            self.guest.netns_name()
        )
    }

    fn has_bridge(&self) -> bool {
        self.host.has_link("tlb-wan")
    }
}

fn reason(daemon: &Daemon) -> String {
    let port = daemon.port("wan/uplink");
    assert_eq!(port["state"], "down", "{port}\n{}", daemon.log());
    port["reason"].as_str().unwrap().to_owned()
}

fn up(daemon: &Daemon) {
    let port = daemon.port("wan/uplink");
    assert_eq!(port["state"], "up", "{port}\n{}", daemon.log());
}

/// The keeper that the log names last.
fn keeper(daemon: &Daemon) -> u32 {
    let log = daemon.log();
    let line =
        log.lines().rfind(|line| line.contains("started a keeper")).unwrap_or_else(|| panic!("no keeper:\n{log}"));
    let plain: String = line.split("process=").nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
    plain.parse().unwrap()
}

fn gone(pid: u32) {
    wait_for("the keeper to end", PATIENCE, || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
}

fn doctor(site: &Site, daemon: &Daemon, flags: &[&str]) -> CommandOutput {
    let config = daemon.config().display().to_string();
    let program = program().display().to_string();
    let mut words = vec![program.as_str(), "--config", config.as_str(), "--json", "doctor"];
    words.extend(flags);
    site.host.exec(&words)
}

fn check(report: &CommandOutput, name: &str) -> serde_json::Value {
    let line = report.output.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{}", report.output));
    let report: serde_json::Value = serde_json::from_str(line).unwrap();
    let found = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
    found.cloned().unwrap_or_else(|| panic!("no check {name} in {report}"))
}

#[test]
fn the_host_moves_to_the_bridge_without_a_pause_and_back_and_guests_are_in_its_network() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    require!(need_program("dnsmasq", "dnsmasq-base"));
    let site = require!(Site::new(&lab));
    let Site { host, router, guest } = &site;
    site.furnish();
    assert!(host.reaches("192.0.2.1", PATIENCE).is_some() && host.reaches("2001:db8::1", PATIENCE).is_some());
    let before = site.state();
    let mut dhcp = router.spawn(&format!(
        "exec dnsmasq -k --conf-file=/dev/null --port=0 --interface=port0 --bind-interfaces --log-dhcp --no-ping \
         --dhcp-range=192.0.2.100,192.0.2.120,1h --dhcp-leasefile={} --pid-file=",
        lab.path("leases").display()
    ));
    // What is open stays open: a connection that sends all the time, and a ping of which nothing may be lost.
    let mut sink = router.spawn("exec busybox nc -l -p 5000 -e cat");
    wait_for("nc to listen", PATIENCE, || {
        router.run("grep -q ':1388 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok()
    });
    let mut talk = host.spawn("while sleep 0.05; do echo on || exit 3; done | busybox nc 192.0.2.1 5000");
    talk.wait_for_output("on", PATIENCE);
    let pings = ["192.0.2.1", "2001:db8::1"].map(|to| host.spawn(&format!("exec ping -i 0.02 -c 200 -W 2 {to}")));

    let mut daemon = Daemon::start_in(&lab, host, &site.config("uplink = \"nic0\""));
    up(&daemon);
    assert!(host.ip("addr show dev tlb-wan").contains("192.0.2.5/24"), "{}", daemon.log());
    assert!(!host.ip("-4 addr show dev nic0").contains("inet "), "{}", host.ip("addr"));
    assert!(host.ip("route show").contains("default via 192.0.2.1 dev tlb-wan proto static src 192.0.2.5 metric 100"));
    assert_eq!(host.mac("nic0"), host.mac("tlb-wan"));
    let networks = daemon.json(&["show", "networks", "--json"]);
    assert_eq!(networks[0]["mtu"], 1500, "the NIC's: {networks}");
    let inside = doctor(&site, &daemon, &[]);
    assert_eq!(check(&inside, "bridged wan")["state"], "ok", "{}", inside.output);

    let script = lab.path("script");
    fs::write(&script, SCRIPT).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&script).status().unwrap().success());
    guest.ip("link set eth0 up");
    let told = guest.sh(&format!("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -s {} 2>&1", script.display()));
    assert!(told.contains("took 192.0.2.1") && told.contains("router=192.0.2.1"), "{told}");
    let address = told.split("took ").nth(1).unwrap().split('/').next().unwrap().to_owned();
    guest.ip("addr add 2001:db8::77/64 dev eth0 nodad");
    let reach = [(guest, "192.0.2.5"), (guest, "192.0.2.1"), (host, address.as_str()), (router, address.as_str())];
    let reach6 = [(guest, "2001:db8::5"), (host, "2001:db8::77"), (router, "2001:db8::77"), (router, "2001:db8::5")];
    for (from, to) in reach.into_iter().chain(reach6) {
        assert!(from.reaches(to, PATIENCE).is_some(), "{} to {to}\n{}", from.name(), daemon.log());
    }
    let lost = pings.map(|ping| ping.wait(PATIENCE).output);
    for output in lost {
        assert!(output.contains(" 0% packet loss"), "{output}");
    }

    daemon.terminate();
    assert_eq!(site.state(), before, "{}", daemon.log());
    assert!(!site.has_bridge() && !host.has_link("tlp-wan"));
    assert!(host.reaches("192.0.2.1", PATIENCE).is_some());
    let echoed = talk.output().len();
    wait_for("the connection, which outlived both changes", PATIENCE, || talk.output().len() > echoed);
    assert!(talk.running() && sink.running());
    talk.kill();
    sink.kill();
    dhcp.kill();
}

#[test]
fn a_killed_daemon_is_cleaned_up_after_and_so_is_a_killed_keeper() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    site.furnish();
    assert!(site.host.reaches("192.0.2.1", PATIENCE).is_some());
    let before = site.state();
    let restored = |why: &str, daemon: &Daemon| {
        wait_for(why, PATIENCE, || !site.has_bridge());
        wait_for(why, PATIENCE, || site.state() == before);
        assert!(site.host.reaches("192.0.2.1", PATIENCE).is_some(), "{}", daemon.log());
    };
    let mut daemon = Daemon::start_in(&lab, &site.host, &site.config("uplink = \"nic0\""));
    up(&daemon);
    let first = keeper(&daemon);
    daemon.kill9();
    gone(first);
    restored("the keeper to put all back", &daemon);

    // The keeper alone: another one takes over, and ends with the daemon.
    daemon.restart();
    up(&daemon);
    let first = keeper(&daemon);
    signal(first, "KILL");
    wait_for("another keeper", PATIENCE, || keeper(&daemon) != first);
    let second = keeper(&daemon);
    assert!(site.has_bridge());
    daemon.terminate();
    gone(second);
    restored("the second keeper to put all back", &daemon);

    // Both, at once: stopped first, so that neither sees the other go.
    let kill_both = |daemon: &mut Daemon| {
        let keeper = keeper(daemon);
        signal(daemon.pid(), "STOP");
        signal(keeper, "KILL");
        daemon.kill9();
        gone(keeper);
        assert!(site.has_bridge(), "nobody is left to put it back");
    };
    daemon.restart();
    kill_both(&mut daemon);
    let report = doctor(&site, &daemon, &[]);
    let left = check(&report, "bridged wan");
    assert!(report.status == 1 && left["state"] == "problem", "{}", report.output);
    assert!(left["remedy"].as_str().unwrap().contains("--repair"), "{left}");
    let report = doctor(&site, &daemon, &["--repair"]);
    assert_eq!(check(&report, "bridged wan")["state"], "ok", "{}", report.output);
    restored("doctor to put all back", &daemon);

    daemon.restart();
    kill_both(&mut daemon);
    daemon.restart();
    up(&daemon);
    daemon.terminate();
    restored("the next daemon to put all back", &daemon);
}

#[test]
fn a_gateway_that_falls_silent_after_the_change_has_it_undone() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    site.furnish();
    assert!(site.host.reaches("192.0.2.1", PATIENCE).is_some());
    let before = site.state();
    let mut daemon = Daemon::start_in(&lab, &site.host, &site.config("uplink = \"nic0\""));
    up(&daemon);
    // As a switch does that shuts a port with many stations behind it.
    site.router.ip("link set port0 arp off");
    wait_for("the change to be undone", Duration::from_secs(25), || !site.has_bridge());
    wait_for("the port to be down", PATIENCE, || daemon.port("wan/uplink")["state"] == "down");
    let told = reason(&daemon);
    assert!(told.contains("192.0.2.1") && told.contains("moved back"), "{told}");
    assert_eq!(site.state(), before, "{}", daemon.log());
    assert_eq!(daemon.port("g/0")["state"], "up", "guests go on among themselves");
    daemon.terminate();
    assert_eq!(site.state(), before);
}

#[test]
fn what_others_did_meanwhile_stays() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    site.furnish();
    let mut daemon = Daemon::start_in(&lab, &site.host, &site.config("uplink = \"nic0\""));
    up(&daemon);
    site.host.ip("addr add 192.0.2.9/24 dev tlb-wan");
    site.host.ip("addr del 192.0.2.6/24 dev tlb-wan");
    site.host.ip("route add 203.0.115.0/24 via 192.0.2.1");
    site.host.ip("route del 203.0.113.0/24");
    site.host.ip("link add theirs type veth peer name theirs1");
    site.host.ip("link set theirs master tlb-wan");
    daemon.terminate();
    let (addresses, routes) = (site.host.ip("addr show dev nic0"), site.host.ip("route show dev nic0"));
    assert!(addresses.contains("192.0.2.5/24") && addresses.contains("192.0.2.9/24"), "{addresses}");
    assert!(!addresses.contains("192.0.2.6/"), "{addresses}");
    assert!(routes.contains("203.0.115.0/24") && !routes.contains("203.0.113.0/24"), "{routes}");
    assert!(site.has_bridge(), "others are in it");
    for said in ["192.0.2.9/24 came", "192.0.2.6/24 was taken", "203.0.115.0/24", "others joined it (theirs)"] {
        assert!(daemon.log().contains(said), "{said}:\n{}", daemon.log());
    }
}

#[test]
fn an_existing_bridge_is_used_and_only_our_tap_joins_it() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    site.host.ip("link add br0 type bridge stp_state 0 forward_delay 0");
    site.host.ip("link set nic0 master br0");
    site.host.address("br0", "192.0.2.5/24");
    let mut daemon = Daemon::start_in(&lab, &site.host, &site.config("bridge = \"br0\""));
    up(&daemon);
    site.guest.address("eth0", "192.0.2.77/24");
    for to in ["192.0.2.5", "192.0.2.1"] {
        assert!(site.guest.reaches(to, PATIENCE).is_some(), "{to}\n{}", daemon.log());
    }
    // Tags are payload on the way.
    let destination = site.guest.mac("eth0");
    let flow =
        Flow { from: "port0", send_vlan: Vlan::Id(42), receive_vlan: Vlan::Id(42), ..Flow::to_mac(&destination) };
    let report = exchange(&site.router, &site.guest, &flow, &Traffic::plain(&[64, 700, 1514], 20));
    assert!(report.clean, "{report:?}");
    daemon.terminate();
    assert!(!site.host.has_link("tlp-wan"));
    assert!(site.host.ip("link show dev nic0").contains("master br0"));
    assert!(site.host.ip("addr show dev br0").contains("192.0.2.5/24"));
}

#[test]
fn an_uplink_that_may_not_be_taken_is_refused_with_what_to_do() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let site = require!(Site::new(&lab));
    let host = &site.host;
    host.ip("addr add 192.0.2.5/24 dev nic0");
    let before = site.state();
    let told = |more: &str| {
        let mut daemon = Daemon::start_in(&lab, host, &site.config(more));
        let told = reason(&daemon);
        assert_eq!(daemon.port("g/0")["state"], "up");
        daemon.terminate();
        told
    };
    let missing = told("uplink = \"eth9\"");
    assert!(missing.contains("no interface eth9") && missing.contains("nic0"), "{missing}");
    assert!(told("bridge = \"br9\"").contains("there is no bridge br9"));
    assert!(told("bridge = \"nic0\"").contains("uplink = \"nic0\""));
    assert!(told("uplink = \"lo\"").contains("not an Ethernet interface"));
    // A real DHCP client, which asks for ever in vain.
    let mut client = host.spawn("exec busybox udhcpc -i nic0 -f -t 1000 -s /bin/true");
    wait_for("udhcpc to ask", PATIENCE, || client.output().contains("discover"));
    let managed = told("uplink = \"nic0\"");
    assert!(["udhcpc", "bridge = \"br0\"", "mac_nat"].iter().all(|word| managed.contains(word)), "{managed}");
    client.kill();
    assert_eq!(site.state(), before);
    host.ip("link add br0 type bridge");
    host.ip("link set nic0 master br0");
    let enslaved = told("uplink = \"nic0\"");
    assert!(enslaved.contains("in the bridge br0 already") && enslaved.contains("bridge = \"br0\""), "{enslaved}");
}

#[test]
fn what_guests_are_told_does_not_make_the_bridge_narrower() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    site.furnish();
    let mtu = |link: &str| site.host.sh(&format!("cat /sys/class/net/{link}/mtu")).trim().to_owned();
    let daemon = Daemon::start_in(&lab, &site.host, &site.config("uplink = \"nic0\"\nmtu = 1400"));
    up(&daemon);
    assert_eq!([mtu("nic0"), mtu("tlb-wan"), mtu("tlp-wan")], ["1500", "1500", "1500"]);
    // Nor does what joins it later.
    site.host.ip("link add thin type veth peer name thin-end");
    site.host.ip("link set thin mtu 1300");
    site.host.ip("link set thin master tlb-wan");
    assert_eq!(mtu("tlb-wan"), "1500");
}
