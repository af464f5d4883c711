//! FRR's host and ours where the underlay, or only what the speakers say to each other, is IPv6.

use super::Fabric;
use super::lab::process::Place;
use super::lab::{Lab, daemon, require, skip, wait_for};
use super::site::{SESSION, everything, hosts};

#[test]
fn speakers_talk_over_ipv6_of_endpoints_that_are_ipv4() {
    let lab = require!(Lab::new());
    let [h1, h2] = require!(hosts(&lab, (true, true)));
    h1.sh("sysctl -q -w 'net.ipv4.ping_group_range=0 2147483647'");
    let (endpoints, sessions) = (["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]);
    let fabric = require!(Fabric::between(&lab, (&h1, h2), endpoints, sessions));
    let neighbours = fabric.speaker.ctl("neighbor");
    let is_up = |line: &str| line.contains("2001:db8::2") && line.contains("Establ");
    assert!(neighbours.lines().any(is_up), "{neighbours} {}", fabric.told());
    everything(&fabric.guest, &fabric.frr.guest, || fabric.told());
    // An endpoint that BGP has told of is tried as one of the file is, by the daemon and by doctor.
    let path = || fabric.daemon.json(&["show", "peers", "--json"])[0]["path"].clone();
    wait_for("the way to be tried", SESSION, || path() == "whole");
    let (program, config) = (daemon::program().display().to_string(), fabric.daemon.config().display().to_string());
    let doctor = h1.exec(&[&program, "--config", &config, "doctor"]).output;
    assert!(doctor.contains("ways of main") && doctor.contains("arrive at all 1 hosts"), "{doctor}");
}

#[test]
fn guests_of_ours_and_of_frrs_reach_each_other_over_ipv6_alone() {
    let lab = require!(Lab::new());
    let [h1, h2] = require!(hosts(&lab, (false, true)));
    let ends = ["2001:db8::1", "2001:db8::2"];
    let fabric = require!(Fabric::between(&lab, (&h1, h2), ends, ends));
    let vni = fabric.frr.ctl("show evpn vni 5001");
    if vni.contains("Local VTEP IP: 0.0.0.0") {
        let version = fabric.frr.ctl("show version");
        skip!(
            "{} has no IPv6 endpoints; tests/newer-speakers brings one",
            version.lines().next().unwrap_or("this FRR")
        );
    }
    let peers = fabric.daemon.json(&["show", "peers", "--json"]);
    assert_eq!((&peers[0]["address"], &peers[0]["source"]), (&"2001:db8::2".into(), &"evpn".into()), "{peers}");
    everything(&fabric.guest, &fabric.frr.guest, || fabric.told());
}
