//! What is asked of a guest in each mode, with the programs that a small Linux has: busybox.

use crate::lab::daemon::Daemon;
use crate::lab::process::Place;
use crate::lab::{Lab, wait_for};
use crate::world::{FAR6, Mode, PATIENCE, STRETCHED_MTU, SUM_PORT, World};
use std::time::Duration;

/// For transfers, which emulated guests take their time for.
const LONG: Duration = Duration::from_secs(1800);
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip -4 addr flush dev $interface scope global\n\
                      ip addr add $ip/$mask dev $interface\n[ -z \"$router\" ] || ip route add default via $router\n\
                      [ -z \"$mtu\" ] || ip link set $interface mtu $mtu\n: > /etc/resolv.conf\n\
                      for server in $dns; do echo \"nameserver $server\" >> /etc/resolv.conf; done\necho \"took $ip mtu=$mtu \"\n";

struct Guest<'a> {
    world: &'a World,
    place: &'a dyn Place,
    address: String,
}

/// The whole suite. Transfers are this long; ten times where time does not matter.
pub fn run(lab: &Lab, world: &World, place: &dyn Place, megabytes: usize) {
    let slow = std::env::var_os("TRUNKLINE_SLOW").is_some();
    let guest = Guest { world, place, address: dhcp(world, place) };
    guest.slaac();
    guest.names();
    guest.pings();
    guest.pages(lab);
    guest.transfers(if slow { 10 * megabytes } else { megabytes });
    guest.truths();
    guest.is_reached();
    guest.has_one_router();
}

/// An address by DHCP.
fn dhcp(world: &World, place: &dyn Place) -> String {
    place.sh(&format!(
        "mkdir -p /etc; cat >/tmp/script <<'END'\n{SCRIPT}END\nchmod +x /tmp/script; ip link set eth0 up"
    ));
    let asked = "timeout 20 busybox udhcpc -i eth0 -n -q -f -t 8 -T 1 -O mtu -x hostname:g -s /tmp/script 2>&1";
    let told = place.run(asked, PATIENCE).output;
    let address = told.split("took ").nth(1).and_then(|rest| rest.split(' ').next());
    let address = address.unwrap_or_else(|| panic!("no lease: {told}\n{}", world.story())).to_owned();
    let prefix = if world.mode.is_bridged() { "192.0.2." } else { "10.9.0." };
    assert!(address.starts_with(prefix), "{address}");
    if world.other().is_some() {
        assert_eq!(
            place.sh("cat /sys/class/net/eth0/mtu").trim(),
            STRETCHED_MTU,
            "its device tells what a tunnel leaves"
        );
        assert!(told.contains(&format!("mtu={STRETCHED_MTU} ")), "so does the lease: {told}");
    }
    address
}

impl Guest<'_> {
    /// What a command printed, and whether it succeeded.
    fn run(&self, command: &str) -> (bool, String) {
        let done = self.place.run(command, PATIENCE);
        (done.ok(), done.output)
    }

    fn is_bridged(&self) -> bool {
        self.world.mode.is_bridged()
    }

    /// An IPv6 address of its own making, and a way by IPv6 where there is one.
    fn slaac(&self) {
        let prefix = if self.is_bridged() { "2001:db8:1:" } else { "fd09:" };
        wait_for("an address of the guest's own making", PATIENCE, || {
            let shown = self.place.sh("ip -6 addr show dev eth0 scope global");
            shown.contains(prefix) && !shown.contains("tentative")
        });
        let there = if self.world.mode == Mode::HostOnly { "fd09::1" } else { FAR6 };
        if self.world.mode == Mode::HostOnly {
            assert!(self.place.reaches("10.9.0.2", PATIENCE).is_some(), "{}", self.world.story());
        } else {
            let reached = self.place.reaches(there, PATIENCE).is_some();
            assert!(reached, "{there}\n{}\n{}", self.place.sh("ip -6 route; ip -6 addr"), self.world.story());
        }
    }

    /// Names, by the name server that DHCP told of.
    fn names(&self) {
        let (name, answer) = match self.world.mode {
            Mode::HostOnly => ("g.lan.internal".to_owned(), self.address.clone()),
            _ => ("www.example.test".to_owned(), self.world.server_address().to_owned()),
        };
        wait_for("the name", PATIENCE, || self.run(&format!("nslookup {name}")).1.contains(&answer));
    }

    fn pings(&self) {
        let there = self.world.server_address();
        wait_for("three answers to three pings", PATIENCE, || {
            self.run(&format!("ping -c 3 -W 2 {there}")).1.contains("3 packets received")
        });
    }

    /// A document by HTTP.
    fn pages(&self, lab: &Lab) {
        let there = self.world.server_address();
        let sum = self.world.server().sh(&format!("md5sum < {}/random", lab.path("www").display()));
        let (ok, here) = self.run(&format!("wget -q -O - http://{there}/random | md5sum"));
        assert!(ok && here == sum, "{here} is not {sum}\n{}", self.world.story());
    }

    /// What comes from a server goes back to where it is, through the guest: the same on both ways, or it is not the same in the end.
    fn transfers(&self, megabytes: usize) {
        let (server, there) = (self.world.server(), self.world.server_address());
        let stream = format!("seq 1 1000000000 | head -c {}", megabytes * 1_000_000);
        let _source = server.spawn(&format!("exec busybox nc -ll -p 5001 -e sh -c '{stream}'"));
        let sum = server.run(&format!("{stream} | md5sum"), LONG).output;
        wait_for("a server to listen", PATIENCE, || {
            server.run("grep -q ':1389 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok()
        });
        let began = std::time::Instant::now();
        let done = self.place.run(&format!("nc {there} 5001 </dev/null | nc {there} {SUM_PORT}"), LONG);
        assert!(done.ok() && done.output == sum, "{} is not {sum}\n{}", done.output, self.world.story());
        println!("{megabytes} MB both ways in {:?}", began.elapsed());
    }

    /// What is not there is told of as it is.
    fn truths(&self) {
        let there = self.world.server_address();
        let (ok, told) = self.run(&format!("timeout 10 nc {there} 9 </dev/null"));
        assert!(!ok && told.contains("refused"), "{told}\n{}", self.world.story());
        if self.world.mode == Mode::HostOnly {
            // Nothing leads out, whatever route a guest makes up, and the router says so.
            self.place.sh("ip route add 198.51.100.0/24 via 10.9.0.2");
            let (ok, told) = self.run("timeout 15 nc 198.51.100.2 80 </dev/null");
            assert!(!ok && told.contains("unreachable"), "{told}\n{}", self.world.story());
            return;
        }
        let (ok, told) = self.run("timeout 15 nc 198.51.100.77 80 </dev/null");
        assert!(!ok && told.contains("No route to host"), "{told}\n{}", self.world.story());
        let (ok, told) = self.run(&format!("traceroute -n -q 1 -w 3 -m 5 {there}"));
        let hops: Vec<&str> = told.lines().filter_map(hop).collect();
        let way: &[&str] = if self.is_bridged() { &["192.0.2.2", there] } else { &["10.9.0.1", "192.0.2.2", there] };
        assert!(ok && hops == way, "{told}\n{}", self.world.story());
    }

    /// Connections from outside.
    fn is_reached(&self) {
        self.place.sh("mkdir -p /tmp/www && echo a page of the guest > /tmp/www/index.html");
        let mut server = self.place.spawn("exec httpd -f -p 80 -h /tmp/www");
        let url = format!("http://{}/", self.world.published(&self.address));
        wait_for("the guest's page", PATIENCE, || {
            let page = self.world.server().run(&format!("timeout 3 busybox wget -q -O - {url}"), PATIENCE);
            page.output.contains("a page of the guest")
        });
        if self.world.mode == Mode::Sockets {
            wait_for("the guest's page by IPv6", PATIENCE, || {
                let fetch = "timeout 5 busybox wget -q -O - 'http://[2001:db8:1::1]:8080/'";
                self.world.server().run(fetch, PATIENCE).output.contains("a page of the guest")
            });
        }
        server.kill();
    }

    /// Of two hosts one runs the router, and gave the lease.
    fn has_one_router(&self) {
        let Some(other) = self.world.other() else { return };
        let ports = |daemon: &Daemon| {
            let ports = daemon.json(&["show", "ports", "--json"]);
            let names = ports.as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap().to_owned());
            names.collect::<Vec<_>>()
        };
        assert_eq!(ports(other), ["g/0", "lan/overlay"]);
        let leases = |daemon: &Daemon| daemon.ctl(&["show", "leases"]).output;
        assert!(leases(&self.world.daemon).contains(&self.address), "{}", leases(&self.world.daemon));
        assert!(!leases(other).contains(&self.address), "{}", leases(other));
    }
}

/// The address in a line of traceroute that begins with a hop's number.
fn hop(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    words.next()?.parse::<u8>().ok()?;
    words.next()
}
