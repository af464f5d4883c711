//! systemd-networkd as a guest's client: one program that does DHCP, router advertisements and DHCPv6 together, as most guests of today have it.
//!
//! Read first: `dhcp.rs` and `dhcp6.rs`, where each of these has a client of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::{Job, Place};
use lab::{Lab, Unable, require, wait_for};
use std::fs;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const PROGRAM: &str = "/lib/systemd/systemd-networkd";

fn need_networkd() -> Result<(), Unable> {
    match Path::new(PROGRAM).exists() {
        true => Ok(()),
        false => Err(Unable("systemd-networkd is not installed (package systemd)".into())),
    }
}

/// Starts it in a namespace, with a memory of its own at `netif`. It believes that it is in a container, as /sys may not be written to: there it
/// waits for no udev.
fn start(lab: &Lab, ns: &NetNs, netif: &Path) -> Job {
    fs::create_dir_all(netif.join("links")).unwrap();
    fs::create_dir_all(netif.join("leases")).unwrap();
    let wants = lab.path("10-eth0.network");
    fs::write(
        &wants,
        "[Match]\nName=eth0\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n[DHCPv4]\nUseMTU=yes\nUseDomains=yes\n\
         [IPv6AcceptRA]\nUseDomains=yes\n[DHCPv6]\nUseDomains=yes\n",
    )
    .unwrap();
    let (netif, wants) = (netif.display(), wants.display());
    ns.spawn(&format!(
        "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount -o remount,ro /sys && \
         mkdir -p /run/systemd/netif /run/systemd/network && mount --bind {netif} /run/systemd/netif && \
         cp {wants} /run/systemd/network/ && chown -R systemd-network /run/systemd/netif && \
         exec env SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console {PROGRAM} 2>&1"
    ))
}

#[test]
fn it_has_all_that_it_needs_of_both_versions() {
    let lab = require!(Lab::new());
    require!(need_networkd());
    for kind in ["stateless", "stateful"] {
        let ns = require!(NetNs::new(&lab, &format!("nd{}", kind.len())));
        // The kernel shall not have done its work before it begins.
        ns.sh("echo 0 > /proc/sys/net/ipv6/conf/default/accept_ra");
        let config = format!(
            "[networks.lan]\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\ndhcp = true\ndhcp6 = \"{kind}\"\n\
             mtu = 1400\ndomain = \"lab.example\"\nroute = [\"dmz\"]\n\
             [networks.dmz]\nsubnet = \"10.10.0.0/20\"\nsubnet6 = \"fd10::/64\"\ndhcp = true\n\
             [guests.one]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
            ns.netns_name()
        );
        let daemon = Daemon::start(&lab, &config);
        let netif = lab.path(&format!("netif-{kind}"));
        let networkd = start(&lab, &ns, &netif);
        let told = || format!("{}\n{}\n{}", ns.ip("addr show dev eth0"), networkd.output(), daemon.log());
        let has = |what: &str| ns.ip("addr show dev eth0 scope global").contains(what);
        let made = if kind == "stateful" { "inet6 fd09::1" } else { "inet6 fd09::" };
        wait_for("addresses of both versions", PATIENCE, || has("inet 10.9.0.") && has(made));
        assert!(has("inet 10.9.0.") && has(made), "{kind}: {}", told());
        let state = || {
            fs::read_dir(netif.join("links"))
                .unwrap()
                .flatten()
                .map(|file| fs::read_to_string(file.path()).unwrap_or_default())
                .collect::<String>()
        };
        let known = ["10.9.0.1", "fd09::1", "lab.example", "dmz.internal"];
        let waited = std::time::Instant::now();
        wait_for("what it knows of names", PATIENCE, || {
            known.iter().all(|what| state().contains(what)) || waited.elapsed() > PATIENCE / 2
        });
        let state = state();
        for expected in known {
            assert!(state.contains(expected), "{kind}: {expected} is not in\n{state}\n{}", told());
        }
        wait_for("the MTU", PATIENCE, || ns.ip("link show dev eth0").contains("mtu 1400"));
        // The network that this one is routed to, by DHCP's classless routes and by the advertisement's.
        wait_for("the route", PATIENCE, || ns.ip("route").contains("10.10.0.0/20 via 10.9.0.1"));
        for to in ["10.9.0.1", "fd09::1"] {
            let pings = ns.run(&format!("ping -c 2 -i 0.2 -W 2 {to}"), PATIENCE);
            assert!(pings.ok(), "{kind} {to}: {}", pings.output);
        }
        let leases = daemon.json(&["show", "leases", "--json"]);
        let mac = ns.mac("eth0");
        let mine = leases.as_array().unwrap().iter().filter(|lease| lease["mac"] == mac.as_str()).count();
        assert_eq!(mine, if kind == "stateful" { 2 } else { 1 }, "{leases}");
    }
}
