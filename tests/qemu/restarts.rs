//! The daemon is killed, or ended, while guests' frames are on their way, and starts again: the guests go on by themselves.
//!
//! One pair of guests has a NIC with split rings (eth0) and one with packed rings (eth1), each kind on its own network. The
//! ends come amid floods in both directions, so that no ring is at its beginning and frames are in flight.

use super::lab::daemon::Daemon;
use super::lab::frames::Flow;
use super::lab::iperf::{Iperf, iperf};
use super::lab::process::{Job, Place};
use super::lab::qemu::{ChardevRole, GuestSpec, NicSpec, Qemu};
use super::lab::{Lab, holds_within, require, wait_for};
use super::{address, everything_intact, mac};
use std::time::Duration;

/// After `ready`, guests reach each other again within this time.
const BACK: Duration = Duration::from_secs(10);

#[test]
fn guests_go_on_when_the_daemon_connects_to_qemu() {
    let lab = require!(Lab::new());
    guests_go_on(&lab, ChardevRole::Server);
}

#[test]
fn guests_go_on_when_qemu_connects_to_the_daemon() {
    let lab = require!(Lab::new());
    guests_go_on(&lab, ChardevRole::Client);
}

#[derive(Debug, Clone, Copy)]
enum End {
    Killed,
    Terminated,
}

fn guests_go_on(lab: &Lab, qemu: ChardevRole) {
    let ours = if qemu == ChardevRole::Client { "server" } else { "client" };
    let ports = |guest: &str| {
        let port = |network: &str| {
            format!(r#"{{ network = "{network}", role = "{ours}", socket = "$DIR/{guest}-{network}.sock" }}"#)
        };
        format!("[guests.{guest}]\nports = [{}, {}]\n", port("split"), port("packed"))
    };
    let mut daemon = Daemon::start(lab, &format!("[networks.split]\n[networks.packed]\n{}{}", ports("a"), ports("b")));
    let boot = |name: &str, guest: usize| {
        let nic = |index, network: &str| NicSpec {
            role: qemu,
            packed: index == 1,
            ..NicSpec::new(lab.path(&format!("{name}-{network}.sock")), &mac(guest, index))
        };
        Qemu::boot(lab, GuestSpec::new(name, vec![nic(0, "split"), nic(1, "packed")]))
    };
    let (a, b) = (require!(boot("a", 1)), require!(boot("b", 2)));
    for (guest, last) in [(&a, 1), (&b, 2)] {
        address(guest, "eth0", &format!("10.0.0.{last}/24"));
        address(guest, "eth1", &format!("10.1.0.{last}/24"));
    }
    reach_each_other(&a, Duration::from_secs(10), &daemon, "at first");

    for (round, end) in [End::Killed, End::Terminated, End::Killed, End::Killed].into_iter().enumerate() {
        let floods = floods(&a, &b);
        let frames = |port| daemon.port(port)["rx_frames"].as_u64().unwrap_or(0);
        // More than a ring has places, so that indices and wrap counters have turned.
        let flowing = || ["a/0", "a/1", "b/0", "b/1"].into_iter().all(|port| frames(port) > 1500);
        wait_for("the floods to flow", Duration::from_secs(30), flowing);
        match end {
            End::Killed => daemon.kill9(),
            End::Terminated => daemon.terminate(),
        }
        daemon.restart();
        reach_each_other(&a, BACK, &daemon, &format!("{BACK:?} after end {round} ({end:?}, QEMU as {qemu:?})"));
        drop(floods);
    }
    let log = daemon.log();
    for (nic, interface) in ["eth0", "eth1"].into_iter().enumerate() {
        for (from, to, guest) in [(&a, &b, 2), (&b, &a, 1)] {
            everything_intact(from, to, &Flow { from: interface, to: interface, ..Flow::to_mac(&mac(guest, nic)) });
        }
        for reverse in [false, true] {
            let tcp = Iperf { seconds: 1, reverse, ..Iperf::default() };
            let tcp = iperf(&b, &a, &format!("10.{nic}.0.2"), &tcp).unwrap_or_else(|why| panic!("{why}\n{log}"));
            assert!(tcp.bits_per_second > 5e6, "{tcp:?}");
        }
    }
    let ports = daemon.json(&["show", "ports", "--json"]);
    assert!(ports.as_array().expect("a list").iter().all(|port| port["state"] == "up"), "{ports}");
}

/// TCP both ways on both networks, until dropped.
fn floods(a: &dyn Place, b: &dyn Place) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (from, to, last, port) in [(a, b, 2, 5301), (b, a, 1, 5302)] {
        for network in 0..2 {
            let port = port + 10 * network;
            let mut server = to.spawn(&format!("exec iperf3 -s -p {port} --forceflush"));
            server.wait_for_output("Server listening", Duration::from_secs(20));
            let client = format!("exec iperf3 -c 10.{network}.0.{last} -p {port} -t 600 -b 100M");
            jobs.push(server);
            jobs.push(from.spawn(&client));
        }
    }
    jobs
}

/// The guest's pings are answered on both networks within `patience`.
fn reach_each_other(a: &Qemu, patience: Duration, daemon: &Daemon, when: &str) {
    let mut pings = [0, 1].map(|network| a.spawn(&format!("exec ping -i 0.1 10.{network}.0.2")));
    let answered = |ping: &Job| ping.output().contains(" bytes from ");
    holds_within(patience, || pings.iter().all(answered));
    for (network, ping) in pings.iter().enumerate() {
        assert!(
            answered(ping),
            "no answer on network {network} {when}: {}\n{}\n{}",
            ping.output(),
            daemon.log(),
            a.story()
        );
    }
    pings.iter_mut().for_each(Job::kill);
}
