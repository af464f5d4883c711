//! What a bridge makes of a tunnel whose stations are told by BGP: nothing is learnt from its frames, and who is told is known without a word.

use serde_json::Value;

use super::lab::daemon::Daemon;
use super::lab::netns::NetNs;
use super::lab::process::Place;
use super::lab::{Lab, holds_within, need_program, require};
use super::site::{PATIENCE, SESSION, Speaker, connected, hosts, ours};

/// The entry of a station in a daemon's table.
fn entry(daemon: &Daemon, mac: &str) -> Value {
    let all = daemon.json(&["show", "fdb", "--json"]);
    all.as_array().into_iter().flatten().find(|one| one["mac"] == mac).cloned().unwrap_or_default()
}

/// Sends frames to a station that will not answer, as a program of Python.
fn send(from: &NetNs, to: &str, count: u32) {
    let to = to.replace(':', "");
    let own = from.mac("eth0").replace(':', "");
    from.sh(&format!(
        "python3 -c 'import socket\ns=socket.socket(socket.AF_PACKET,socket.SOCK_RAW);s.bind((\"eth0\",0))\n\
         for i in range({count}): s.send(bytes.fromhex(\"{to}{own}88b5\")+bytes(46))'"
    ));
}

#[test]
fn a_silent_station_is_known_to_the_bridge_and_a_forged_frame_moves_nobody() {
    let lab = require!(Lab::new());
    require!(need_program("python3", "python3"));
    let at = require!(hosts(&lab, (true, false)));
    let names = ["g1", "w1", "g2"].map(|name| NetNs::new(&lab, name));
    let [guest, watcher, other] = names;
    let (guest, watcher, other) = (require!(guest), require!(watcher), require!(other));
    // One declares where a station is that never says a word.
    let silent = "02:00:00:00:77:77";
    let file = |n: usize, guest: &NetNs| ours(&lab, &format!("192.0.2.{n}"), &format!("bgp{n}"), 5001, guest);
    let port = |key: &str, ns: &NetNs| {
        let netns = ns.netns_name();
        format!(
            "[guests.w]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth1\", netns = \"{netns}\"{key} }}]\n"
        )
    };
    let watched = file(1, &guest) + &port("", &watcher);
    let declares = file(2, &other) + &port(&format!(", fdb = [\"{silent}\"]"), &other);
    let daemons =
        [(1, watched), (2, declares)].map(|(n, text)| Daemon::start_beside(&lab, &at[n - 1], &format!("hv{n}"), &text));
    let speakers = [(1, 2), (2, 1)].map(|(n, peer)| {
        let (own, peer) = (format!("192.0.2.{n}"), format!("192.0.2.{peer}"));
        Speaker::start(&lab, &at[n - 1], &format!("bgp{n}"), &own, &[&peer])
    });
    let [first, second] = speakers;
    let _speakers = (require!(first), require!(second));
    daemons.iter().for_each(connected);
    for (ns, tap) in [(&guest, "eth0"), (&watcher, "eth1"), (&other, "eth0"), (&other, "eth1")] {
        ns.ip(&format!("link set {tap} up"));
    }
    let told = || format!("{}\n{}", daemons[0].log(), daemons[0].ctl(&["show", "fdb"]).output);
    assert!(holds_within(SESSION, || entry(&daemons[0], silent)["told"] == true), "{}", told());
    let known = entry(&daemons[0], silent);
    assert_eq!((&known["port"], &known["static"]), (&"tenant/overlay".into(), &false.into()), "{known}");
    assert_eq!((&known["vni"], &known["peer"]), (&5001.into(), &"192.0.2.2".into()), "{known}");
    // What is for it goes there, and nobody else of this host has a copy.
    let had = |daemon: &Daemon, port: &str| daemon.port(port)["tx_frames"].as_u64().unwrap_or(0);
    let before = (had(&daemons[0], "w/0"), had(&daemons[1], "w/0"));
    send(&guest, silent, 200);
    assert!(holds_within(PATIENCE, || had(&daemons[1], "w/0") >= before.1 + 200), "{}", told());
    let copies = had(&daemons[0], "w/0") - before.0;
    assert!(copies < 100, "{copies} copies of 200 frames to a station that is known: {}", told());
    // A frame out of the tunnel with the address of a guest that declares none, as a host that has joined can send it.
    let mac = guest.mac("eth0");
    send(&guest, "ff:ff:ff:ff:ff:ff", 1);
    assert!(holds_within(PATIENCE, || entry(&daemons[0], &mac)["port"] == "g/0"), "{}", told());
    let forged = format!("{}{}88b5", "f".repeat(12), mac.replace(':', ""));
    let forge = || {
        at[1].sh(&format!(
            "python3 -c 'import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.bind((\"192.0.2.2\",0))\n\
             s.sendto(bytes.fromhex(\"0800000000138900{forged}\")+bytes(46),(\"192.0.2.1\",4789))'"
        ));
        daemons[0].port("tenant/overlay")["drops"]["spoofed_source"].as_u64().unwrap_or(0) > 0
    };
    assert!(holds_within(PATIENCE, forge), "{}", daemons[0].ctl(&["show", "drops"]).output);
    assert_eq!(entry(&daemons[0], &mac)["port"], "g/0", "{}", told());
}
