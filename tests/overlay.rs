//! Overlays: a network of ours stretches to hosts whose tunnel is ours, or the kernel's.
//!
//! A host is a network namespace with a link into an underlay; guests are namespaces with a TAP of ours, or behind the kernel's bridge.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::Place;
use lab::{Lab, Unable, need_program, require, wait_for};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);
const BYTES: usize = 50_000_000;

/// Two hosts on one link, each with a guest.
struct Site {
    hosts: [NetNs; 2],
    guests: [NetNs; 2],
    v6: bool,
}

impl Site {
    fn new(lab: &Lab, v6: bool) -> Result<Site, Unable> {
        need_program("busybox", "busybox-static")?;
        let ns = |label: &str| NetNs::new(lab, label);
        let site = Site { hosts: [ns("h1")?, ns("h2")?], guests: [ns("g1")?, ns("g2")?], v6 };
        let [one, two] = &site.hosts;
        one.veth("u0", two, "u0");
        for (n, host) in site.hosts.iter().enumerate() {
            host.ip(&format!("address add 192.0.2.{}/24 dev u0", n + 1));
            host.ip(&format!("address add 2001:db8::{}/64 dev u0 nodad", n + 1));
            host.ip("link set u0 up");
        }
        Ok(site)
    }

    fn address(&self, host: usize) -> String {
        if self.v6 { format!("2001:db8::{}", host + 1) } else { format!("192.0.2.{}", host + 1) }
    }

    /// Our daemon on a host, with its guest.
    fn ours(&self, lab: &Lab, host: usize) -> Daemon {
        let (local, peer) = (self.address(host), self.address(1 - host));
        let netns = self.guests[host].netns_name();
        let text = format!(
            "[networks.tenant]\noverlay = {{ vni = 5001, local = \"{local}\", peers = [\"{peer}\"] }}\n\
             [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
        );
        Daemon::start_beside(lab, &self.hosts[host], &format!("hv{}", host + 1), &text)
    }

    /// The kernel's tunnel on a host, bridged to its guest.
    fn kernel(&self, host: usize) -> Result<(), Unable> {
        let (ns, guest) = (&self.hosts[host], &self.guests[host]);
        let (local, peer) = (self.address(host), self.address(1 - host));
        let link = format!("ip link add vx0 type vxlan id 5001 dev u0 local {local} remote {peer} dstport 4789");
        let made = ns.run(&link, PATIENCE);
        if !made.ok() {
            return Err(Unable(format!("this kernel makes no VXLAN interfaces: {}", made.output.trim())));
        }
        ns.veth("g0", guest, "eth0");
        ns.ip("link add br0 type bridge");
        for interface in ["vx0", "g0"] {
            ns.ip(&format!("link set {interface} master br0 up"));
        }
        ns.ip("link set br0 up");
        let mtu = if self.v6 { 1430 } else { 1450 };
        guest.ip(&format!("link set eth0 mtu {mtu}"));
        Ok(())
    }

    /// Gives the guests addresses, and has them do everything with each other.
    fn everything(&self, what: &str, log: impl Fn() -> String) {
        for (n, guest) in self.guests.iter().enumerate() {
            guest.ip(&format!("address add 10.7.0.{}/24 dev eth0", n + 1));
            guest.ip(&format!("address add fd07::{}/64 dev eth0 nodad", n + 1));
            guest.ip("link set eth0 up");
        }
        let [a, b] = &self.guests;
        assert!(a.reaches("10.7.0.2", PATIENCE).is_some(), "{what}: {}", log());
        assert!(b.reaches("10.7.0.1", PATIENCE).is_some(), "{what}: {}", log());
        assert!(a.reaches("fd07::2", PATIENCE).is_some(), "{what}: {}", log());
        // A broadcast that is not ARP.
        let broadcast = a.run("ping -b -c 3 -i 0.2 -W 2 10.7.0.255", PATIENCE);
        let heard = b.sh("nstat -az IpExtInBcastPkts | tail -1");
        assert!(!heard.contains("IpExtInBcastPkts                0 "), "{what}: {heard} {}", broadcast.output);
        for (from, to, address) in [(a, b, "10.7.0.2"), (b, a, "10.7.0.1"), (a, b, "fd07::2")] {
            let mut server = to.spawn("exec busybox nc -l -p 5000 -e md5sum");
            wait_for("nc to listen", PATIENCE, || {
                to.run("grep -q ':1388 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok()
            });
            let sent = format!("head -c {BYTES} /dev/zero");
            let there = from.sh(&format!("{sent} | busybox nc {address} 5000"));
            assert_eq!(there.trim(), from.sh(&format!("{sent} | md5sum")).trim(), "{what}: {}", log());
            server.kill();
        }
    }
}

#[test]
fn guests_of_two_hosts_of_ours_are_on_one_segment() {
    let lab = require!(Lab::new());
    for v6 in [false, true] {
        let site = require!(Site::new(&lab, v6));
        let daemons = [site.ours(&lab, 0), site.ours(&lab, 1)];
        site.everything(&format!("v6 {v6}"), || daemons[0].ctl(&["show", "drops"]).output);
        let mtu = if v6 { 1430 } else { 1450 };
        assert_eq!(daemons[0].json(&["show", "networks", "--json"])[0]["mtu"], mtu);
        let peers = daemons[0].json(&["show", "peers", "--json"]);
        let peer = &peers[0];
        let vtep = if v6 { "[2001:db8::1]:4789" } else { "192.0.2.1:4789" };
        assert_eq!((&peer["vtep"], &peer["vni"], &peer["mtu"]), (&vtep.into(), &5001.into(), &mtu.into()), "{peers}");
        assert_eq!(
            (&peer["address"], &peer["macs"], &peer["state"]),
            (&site.address(1).into(), &1.into(), &"up".into())
        );
        assert!(daemons[0].ctl(&["show", "peers"]).output.contains("ago"), "{peers}");
    }
}

#[test]
fn a_guest_of_ours_is_on_one_segment_with_one_behind_the_kernels_tunnel() {
    let lab = require!(Lab::new());
    for v6 in [false, true] {
        let site = require!(Site::new(&lab, v6));
        let daemon = site.ours(&lab, 0);
        require!(site.kernel(1));
        site.everything(&format!("v6 {v6}"), || daemon.ctl(&["show", "drops"]).output);
    }
}

#[test]
fn a_guest_that_was_told_too_long_an_mtu_gets_a_proper_error_and_its_streams_work() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab, false));
    let daemon = site.ours(&lab, 0);
    let _other = site.ours(&lab, 1);
    site.guests.iter().for_each(|guest| drop(guest.ip("link set eth0 mtu 1500")));
    site.everything("MTU 1500", || daemon.ctl(&["show", "drops"]).output);
    let [a, _] = &site.guests;
    let told = a.run("ping -M do -c 2 -W 2 -s 1472 10.7.0.2", PATIENCE).output;
    assert!(told.contains("mtu = 1450") || told.contains("mtu=1450"), "{told}");
    assert!(a.run("ping -M dont -c 1 -W 2 -s 1472 10.7.0.2", PATIENCE).ok(), "what may be cut is");
}
