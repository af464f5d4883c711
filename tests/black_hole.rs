//! A link between two hosts that loses what is too long for it and says nothing: found by trying, by the daemon and by `doctor`.
//!
//! Read first: `src/probe.rs`, `lab/site.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program};
use lab::process::Place;
use lab::site::Site;
use lab::{Lab, require, wait_for};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// What doctor says of the ways of a host's endpoint: its state, and the rest.
fn ways(site: &Site, daemon: &Daemon) -> (String, String) {
    says(site, daemon, "ways of ")
}

/// What the check says whose name begins so.
fn says(site: &Site, daemon: &Daemon, name: &str) -> (String, String) {
    let config = daemon.config().display().to_string();
    let program = program().display().to_string();
    let report = site.hosts[0].exec(&[&program, "--config", &config, "--json", "doctor"]).output;
    let report: serde_json::Value =
        serde_json::from_str(report.lines().next().unwrap_or_default()).unwrap_or_else(|_| panic!("{report}"));
    let is_it = |check: &&serde_json::Value| check["name"].as_str().unwrap().starts_with(name);
    let check = report["checks"].as_array().unwrap().iter().find(is_it).unwrap_or_else(|| panic!("{report}")).clone();
    (check["state"].as_str().unwrap().to_owned(), format!("{} {}", check["detail"], check["remedy"]))
}

#[test]
fn a_way_that_loses_long_packets_in_silence_is_found_and_fitted() {
    let lab = require!(Lab::new());
    for v6 in [false, true] {
        let site = require!(Site::new(&lab, v6));
        site.hosts.iter().for_each(|host| drop(host.sh("sysctl -q -w 'net.ipv4.ping_group_range=0 2147483647'")));
        // A link takes nothing longer than its end's MTU and four bytes, room for a VLAN tag; the other end is not told.
        site.hosts[1].ip("link set u0 mtu 1396");
        let mut daemons = [site.ours(&lab, 0), site.ours(&lab, 1)];
        let around = if v6 { 70 } else { 50 };
        let mtu = || daemons[0].json(&["show", "peers", "--json"])[0]["mtu"].clone();
        wait_for("the way to be tried", PATIENCE, || mtu() == 1400 - around);
        assert!(daemons[0].log().contains("longer packets are lost on the way"), "{}", daemons[0].log());
        let path = || daemons[0].json(&["show", "peers", "--json"])[0]["path"].clone();
        wait_for("the way to be shown", PATIENCE, || path() == "narrow");
        site.guests.iter().for_each(|guest| drop(guest.ip("link set eth0 mtu 1500")));
        site.everything(&format!("v6 {v6}"), || daemons[0].log());
        let told = site.guests[0].run("ping -M do -c 2 -W 2 -s 1390 10.7.0.2", PATIENCE).output;
        let expected = (1400 - around).to_string();
        assert!(told.contains(&format!("mtu = {expected}")) || told.contains(&format!("mtu={expected}")), "{told}");
        let (state, detail) = ways(&site, &daemons[0]);
        assert!(state == "problem" && detail.contains("(1400 bytes arrive)"), "{state} {detail}");
        assert!(detail.contains(&format!("mtu = {expected};")), "{detail}");

        site.hosts[1].ip("link set u0 mtu 1500");
        let (state, detail) = ways(&site, &daemons[0]);
        assert!(state == "ok" && detail.contains("packets of 1500 bytes arrive at all 1 hosts"), "{state} {detail}");
        let (state, detail) = says(&site, &daemons[0], "tunnels of ");
        assert!(state == "ok" && detail.contains("packets have come from all 1 hosts"), "{state} {detail}");
        daemons[1].terminate();
        daemons[0].restart();
        let (state, detail) = says(&site, &daemons[0], "tunnels of ");
        let unheard = format!("no packet has come from {} yet", site.address(1));
        assert!(state == "ok" && detail.contains(&unheard) && detail.contains("UDP port 4789"), "{state} {detail}");
        site.hosts[1].sh("sysctl -q -w net.ipv4.icmp_echo_ignore_all=1 net.ipv6.icmp.echo_ignore_all=1");
        let (state, detail) = ways(&site, &daemons[0]);
        assert!(state == "warning" && detail.contains("no answer to echo requests"), "{state} {detail}");
    }
}
