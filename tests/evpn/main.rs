//! EVPN: a host of ours beside gobgpd is on one segment with a host of the kernel's tunnel beside FRR.
//!
//! A host is a network namespace with a link into an underlay; guests are namespaces with a TAP of ours, or behind the kernel's bridge. The speakers are real.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod bridge;
#[path = "../lab/mod.rs"]
mod lab;
mod segments;
mod services;
mod site;
mod underlay;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::pings::Pings;
use lab::process::Place;
use lab::{Lab, Unable, holds_within, need_program, require, wait_for};
use site::*;
use std::collections::BTreeSet;

const VNI: u32 = 5001;

/// Ours with gobgpd, FRR's, the session up; each with a guest.
struct Fabric<'s> {
    speaker: Speaker<'s>,
    frr: Frr,
    guest: NetNs,
    daemon: Daemon,
}

impl<'s> Fabric<'s> {
    /// `endpoints` are ours and theirs, `sessions` the addresses of the speakers.
    fn between(
        lab: &Lab,
        (ours_at, theirs): (&'s NetNs, NetNs),
        endpoints: [&str; 2],
        sessions: [&str; 2],
    ) -> Result<Self, Unable> {
        need_program("python3", "python3")?;
        let guest = NetNs::new(lab, "g1")?;
        let daemon = Daemon::start_beside(lab, ours_at, "hv1", &ours(lab, endpoints[0], "bgp", VNI, &guest));
        let speaker = Speaker::start(lab, ours_at, "bgp", "192.0.2.1", &[sessions[1]])?;
        let beyond = NetNs::new(lab, "g2")?;
        let frr = Frr::start(lab, (theirs, beyond), (endpoints[1], sessions[0]), "192.0.2.2", VNI)?;
        connected(&daemon);
        let fabric = Fabric { speaker, frr, guest, daemon };
        // It answers before it has read its configuration.
        let vni = || fabric.frr.ctl("show evpn vni 5001").contains("Local VTEP IP:");
        assert!(holds_within(SESSION, vni), "{}", fabric.told());
        if fabric.frr.ctl("show evpn vni 5001").contains(&format!("Local VTEP IP: {}", endpoints[1])) {
            let everybody = format!("00:00:00:00:00:00 dst {}", endpoints[0]);
            assert!(holds_within(SESSION, || fabric.frr.fdb().contains(&everybody)), "{}", fabric.told());
            let known = || fabric.daemon.ctl(&["show", "peers"]).output.contains(endpoints[1]);
            assert!(holds_within(SESSION, known), "{}", fabric.told());
        }
        Ok(fabric)
    }

    /// What all of them say.
    fn told(&self) -> String {
        let (routes, known) = (self.frr.ctl("show bgp l2vpn evpn"), self.frr.ctl("show evpn mac vni all"));
        let (neighbour, rib) = (self.speaker.ctl("neighbor"), self.speaker.ctl("global rib -a evpn"));
        format!("{}\n{routes}\n{known}\n{neighbour}\n{rib}", self.daemon.log())
    }
}

/// Over IPv4, the guests at 10.7.0.1 and 10.7.0.2.
fn fabric<'s>(lab: &Lab, ours_at: &'s NetNs, theirs: NetNs) -> Result<(Speaker<'s>, Frr, NetNs, Daemon), Unable> {
    let ends = ["192.0.2.1", "192.0.2.2"];
    let Fabric { speaker, frr, guest, daemon } = Fabric::between(lab, (ours_at, theirs), ends, ends)?;
    guest.address("eth0", "10.7.0.1/24");
    frr.guest.address("eth0", "10.7.0.2/24");
    Ok((speaker, frr, guest, daemon))
}

/// Two hosts of ours, each with a speaker of its own, their guests at 10.7.0.1 and 10.7.0.2.
fn two_of_ours<'s>(lab: &Lab, at: &'s [NetNs; 2], v6: bool) -> Result<[(Speaker<'s>, NetNs, Daemon); 2], Unable> {
    let host = |n: usize| -> Result<(Speaker<'s>, NetNs, Daemon), Unable> {
        let guest = NetNs::new(lab, &format!("g{n}"))?;
        let (name, other) = (format!("bgp{n}"), format!("192.0.2.{}", 3 - n));
        let speaker = Speaker::start(lab, &at[n - 1], &name, &format!("192.0.2.{n}"), &[&other])?;
        let local = if v6 { format!("2001:db8::{n}") } else { format!("192.0.2.{n}") };
        let daemon = Daemon::start_beside(lab, &at[n - 1], &format!("hv{n}"), &ours(lab, &local, &name, VNI, &guest));
        Ok((speaker, guest, daemon))
    };
    let both = [host(1)?, host(2)?];
    for (n, (speaker, guest, daemon)) in both.iter().enumerate() {
        connected(daemon);
        let other = if v6 { format!("2001:db8::{}", 2 - n) } else { format!("192.0.2.{}", 2 - n) };
        let known = holds_within(SESSION, || daemon.ctl(&["show", "peers"]).output.contains(&other));
        assert!(known, "{}\n{}\n{}", daemon.log(), speaker.ctl("neighbor"), speaker.ctl("global rib -a evpn"));
        guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
    }
    Ok(both)
}

/// Packets of the underlay that carry ARP, while `act` is done.
fn arps(lab: &Lab, host: &NetNs, act: impl FnOnce()) -> usize {
    let file = lab.path("arp.pcap");
    let filter = "udp port 4789 and ip[48:2] = 0x0806";
    let mut capture =
        host.spawn(&format!("exec tcpdump --immediate-mode -U -Z root -i u0 -w {} {filter}", file.display()));
    capture.wait_for_output("listening on", PATIENCE);
    act();
    capture.kill();
    host.sh(&format!("tcpdump -r {} 2>/dev/null", file.display())).lines().count()
}

#[test]
fn guests_of_ours_and_of_frrs_reach_each_other_and_a_known_neighbour_costs_no_arp() {
    let lab = require!(Lab::new());
    require!(need_program("tcpdump", "tcpdump"));
    let [h1, h2] = require!(hosts(&lab, (true, false)));
    let ends = ["192.0.2.1", "192.0.2.2"];
    let fabric = require!(Fabric::between(&lab, (&h1, h2), ends, ends));
    let told = || fabric.told();
    everything(&fabric.guest, &fabric.frr.guest, told);
    let Fabric { speaker, frr, guest, daemon } = &fabric;
    let peers = daemon.json(&["show", "peers", "--json"]);
    assert_eq!((&peers[0]["address"], &peers[0]["source"]), (&"192.0.2.2".into(), &"evpn".into()), "{peers}");
    // FRR tells addresses that the kernel knows on the bridge.
    let theirs = frr.guest.mac("eth0");
    frr.host.ip(&format!("neigh replace 10.7.0.2 lladdr {theirs} dev br100 nud permanent"));
    wait_for("our guest's address at FRR", SESSION, || frr.ctl("show evpn arp-cache vni all").contains("10.7.0.1"));
    let known = holds_within(SESSION, || speaker.routes(&format!("{theirs}][ip:10.7.0.2]")) == 1);
    assert!(known, "{}", told());
    let count = arps(&lab, &h1, || {
        for (from, to) in [(guest, "10.7.0.2"), (&frr.guest, "10.7.0.1")] {
            from.ip("neigh flush all");
            assert!(from.run(&format!("ping -c 2 -i 0.2 -W 5 {to}"), PATIENCE).ok(), "{}", told());
        }
    });
    assert_eq!(count, 0, "ARP crossed the underlay");
    // Who is not known is asked for there.
    assert!(arps(&lab, &h1, || drop(guest.run("ping -c 2 -W 1 10.7.0.99", PATIENCE))) > 0);
    assert!(!daemon.log().contains("not believed"), "{}", daemon.log());
}

#[test]
fn a_station_is_known_at_the_other_host_soon_after_it_speaks_and_moves_both_ways() {
    let lab = require!(Lab::new());
    let [h1, h2] = require!(hosts(&lab, (true, false)));
    let (speaker, frr, guest, daemon) = require!(fabric(&lab, &h1, h2));
    // Outward: the kernel says when it knows.
    let monitor = frr.host.spawn(
        "bridge monitor fdb | python3 -u -c 'import sys,time\nfor line in iter(sys.stdin.readline,\"\"): print(repr(time.time()),line,flush=True)'",
    );
    let mut outward = Vec::new();
    let probe = |station: u16| format!("02:00:00:00:{:02x}:{:02x}", station >> 8, station & 0xff);
    let hears = holds_within(PATIENCE, || {
        speak(&guest, 0x0900);
        monitor.output().contains(&probe(0x0900))
    });
    assert!(hears, "{}\n{}", monitor.output(), frr.fdb());
    for station in 0x0901..0x090a_u16 {
        let began = speak(&guest, station);
        let there = || {
            let said = monitor.output();
            let line = said.lines().find(|line| line.contains(&probe(station)) && line.contains("dst 192.0.2.1"))?;
            line.split(' ').next()?.parse::<f64>().ok()
        };
        let known = holds_within(PATIENCE, || there().is_some());
        assert!(known, "{}\n{}\n{}", monitor.output(), frr.fdb(), daemon.log());
        outward.push((there().unwrap() - began) * 1000.0);
    }
    assert!(outward.iter().all(|ms| *ms > 0.0), "known before it spoke: {outward:?}");
    spread("spoken at our guest, in the kernel's table of the FRR host", outward);
    // Inward: our table is asked again and again, which takes some milliseconds each time.
    let mut inward = Vec::new();
    for station in 0x0a01..0x0a0a_u16 {
        let before = macs(&daemon, "192.0.2.2");
        let began = speak(&frr.guest, station);
        let known = holds_within(PATIENCE, || macs(&daemon, "192.0.2.2") > before);
        assert!(known, "{}", daemon.log());
        inward.push((now() - began) * 1000.0);
    }
    spread("spoken at FRR's guest, seen in our table by asking", inward);
    // A station moves there and back, twice; each time the other side lets go.
    let station = 0x0b01;
    let ours = || {
        speaker
            .ctl("global rib -a evpn")
            .lines()
            .any(|line| line.contains("192.0.2.1:1") && line.contains(&probe(station)))
    };
    let theirs = || frr.fdb().lines().any(|line| line.contains(&probe(station)) && line.contains("dst 192.0.2.1"));
    let local = || {
        frr.ctl("show evpn mac vni all").lines().any(|line| line.contains(&probe(station)) && line.contains("local"))
    };
    speak(&guest, station);
    wait_for("the station at our guest", PATIENCE, || ours() && theirs());
    for _ in 0..2 {
        let before = macs(&daemon, "192.0.2.2");
        speak(&frr.guest, station);
        let moved = holds_within(PATIENCE, || !ours() && local() && macs(&daemon, "192.0.2.2") > before);
        assert!(moved, "{}\n{}\n{}", speaker.ctl("global rib -a evpn"), frr.ctl("show evpn mac vni all"), daemon.log());
        speak(&guest, station);
        let back = holds_within(PATIENCE, || ours() && theirs() && !local() && macs(&daemon, "192.0.2.2") == before);
        assert!(back, "{}\n{}\n{}", speaker.ctl("global rib -a evpn"), frr.ctl("show evpn mac vni all"), daemon.log());
    }
    assert!(!daemon.log().contains("in two places"), "{}", daemon.log());
}

#[test]
fn thousands_of_stations_of_a_peer_are_known_while_frames_go_on() {
    const STATIONS: u64 = 4000;
    let lab = require!(Lab::new());
    let [h1, h2] = require!(hosts(&lab, (true, false)));
    let (_speaker, frr, guest, daemon) = require!(fabric(&lab, &h1, h2));
    assert!(guest.reaches("10.7.0.2", PATIENCE).is_some());
    let batch = lab.path("stations");
    let line = |n: u64| format!("fdb add 02:00:00:01:{:02x}:{:02x} dev h0 master dynamic\n", n >> 8, n & 0xff);
    std::fs::write(&batch, (0..STATIONS).map(line).collect::<String>()).unwrap();
    let pings = Pings::start(&guest, "10.7.0.2");
    let began = now();
    frr.host.sh(&format!("bridge -b {}", batch.display()));
    let added = now();
    let known = holds_within(SESSION, || macs(&daemon, "192.0.2.2") >= STATIONS);
    let done = now();
    assert!(known, "{} of {STATIONS}: {}", macs(&daemon, "192.0.2.2"), daemon.log());
    println!(
        "{STATIONS} stations of a peer: in our table {:.2} s after the first was there, {:.2} s after the last",
        done - began,
        done - added
    );
    println!("pings meanwhile, all answered: {}", pings.none_lost());
}

/// What a daemon has said, and what it knows.
fn knows(daemon: &Daemon) -> String {
    let shown = ["fdb", "peers", "drops"].map(|what| daemon.ctl(&["show", what]).output);
    format!("{}\n{}", daemon.log(), shown.join("\n"))
}

#[test]
fn without_their_speakers_hosts_go_on_and_everything_is_announced_when_they_are_back() {
    let lab = require!(Lab::new());
    for v6 in [false, true] {
        let at = require!(hosts(&lab, (true, v6)));
        let mut both = require!(two_of_ours(&lab, &at, v6));
        let local = |n: usize| if v6 { format!("2001:db8::{n}") } else { format!("192.0.2.{n}") };
        let told = |both: &[(Speaker, NetNs, Daemon); 2]| {
            both.iter()
                .map(|(speaker, _, daemon)| daemon.log() + &speaker.ctl("global rib -a evpn"))
                .collect::<String>()
        };
        assert!(both[0].1.reaches("10.7.0.2", PATIENCE).is_some(), "{}", told(&both));
        let mac = both[0].1.mac("eth0");
        wait_for("the guest's route at the other host", PATIENCE, || both[1].0.routes(&mac) >= 2);
        let own = |both: &[(Speaker, NetNs, Daemon); 2]| [1, 2].map(|n| both[n - 1].0.routes_by(&local(n)));
        let before = own(&both);
        assert!(before.iter().all(|routes| routes.len() >= 2), "each station, and each end: {before:?}");
        let pings = Pings::start(&both[0].1, "10.7.0.2");
        // Neither tells its host of the other's end.
        both.iter().for_each(|(speaker, ..)| speaker.hang());
        both.iter_mut().for_each(|(speaker, ..)| speaker.job.kill());
        let lacks = |daemon: &Daemon| daemon.ctl(&["show", "networks", "--json"]).output.contains("no BGP speaker");
        wait_for("both to miss their speakers", PATIENCE, || both.iter().all(|(.., daemon)| lacks(daemon)));
        assert_eq!(both[0].2.json(&["show", "peers", "--json"])[0]["address"], local(2));
        let kept = both[0].1.reaches("10.7.0.2", PATIENCE).is_some();
        assert!(
            kept,
            "the tunnels keep what they knew: {}",
            both.iter().map(|(.., daemon)| knows(daemon)).collect::<String>()
        );
        let back = now();
        both.iter_mut().for_each(|(speaker, ..)| speaker.restart());
        let missing = || {
            let missing = |(before, now): (&BTreeSet<String>, BTreeSet<String>)| before - &now;
            before.iter().zip(own(&both)).flat_map(missing).collect::<Vec<_>>()
        };
        assert!(holds_within(SESSION, || missing().is_empty()), "{:?} {}", missing(), told(&both));
        wait_for("each guest's route at the other host", SESSION, || {
            both.iter().all(|(speaker, ..)| speaker.routes(&mac) >= 1)
        });
        println!("IPv6 underlay {v6}: announced again at both {:.2} s after the speakers were started", now() - back);
        assert!(!both.iter().any(|(.., daemon)| lacks(daemon)), "{}", told(&both));
        println!("pings without the speakers and with them again, all answered: {}", pings.none_lost());
        // One that ends takes back what it has announced; one that is killed finds it and does so when it is back.
        both[0].2.kill9();
        assert!(both[0].0.routes(&mac) >= 1, "nobody has taken it back");
        both[0].2.restart();
        // The TAP is a new one, and so is the station.
        wait_for("what is left to be withdrawn", SESSION, || {
            both[0].0.routes(&mac) == 0 && both[1].0.routes(&mac) == 0
        });
        both[0].2.terminate();
        assert_eq!(both[0].0.routes(&format!("nexthop:{}", local(1))), 0, "{}", both[0].0.ctl("global rib -a evpn"));
        wait_for("the other host to hear of it", PATIENCE, || {
            both[1].2.json(&["show", "peers", "--json"]).as_array().is_some_and(Vec::is_empty)
        });
        // One whose speaker hangs in the middle of a call ends all the same.
        both[1].0.hang();
        speak(&both[1].1, 0x0c01);
        both[1].2.terminate();
    }
}

#[test]
fn routes_that_make_no_sense_are_not_believed_and_harm_nobody() {
    let lab = require!(Lab::new());
    let at = require!(hosts(&lab, (true, false)));
    let guest = require!(NetNs::new(&lab, "g1"));
    let speaker = require!(Speaker::start(&lab, &at[0], "bgp1", "192.0.2.1", &["192.0.2.2"]));
    let daemon = Daemon::start_beside(&lab, &at[0], "hv1", &ours(&lab, "192.0.2.1", "bgp1", VNI, &guest));
    let liar = require!(Speaker::start(&lab, &at[1], "bgp2", "192.0.2.2", &["192.0.2.1"]));
    connected(&daemon);
    wait_for("the other speaker", PATIENCE, || liar.ctl("global").contains("65000"));
    let add = |n: u32, label: u32, target: u32, next_hop: &str| {
        let route =
            format!("macadv 02:00:00:00:00:{n:02x} 0.0.0.0 etag 0 label {label} rd 192.0.2.2:{n} rt 65000:{target}");
        let said = liar.ctl(&format!("global rib -a evpn add {route} encap vxlan nexthop {next_hop}"));
        assert!(said.trim().is_empty(), "{said}");
    };
    add(1, 0, VNI, "192.0.2.2");
    add(2, VNI, VNI + 1, "192.0.2.2");
    add(3, VNI, VNI, "192.0.2.1");
    add(4, VNI, VNI, "2001:db8::7");
    add(5, VNI + 7, VNI + 7, "192.0.2.2");
    add(6, VNI, VNI, "192.0.2.2");
    wait_for("the right one", SESSION, || macs(&daemon, "192.0.2.2") == 1);
    let peers = daemon.json(&["show", "peers", "--json"]);
    assert_eq!(peers.as_array().map(Vec::len), Some(1), "{peers}");
    let reason = || daemon.json(&["show", "networks", "--json"])[0]["reason"].to_string();
    let all = holds_within(PATIENCE, || reason().contains("not believed: 4"));
    assert!(all, "{}\n{}\n{}", reason(), daemon.log(), speaker.ctl("global rib -a evpn"));
    println!("said of them: {}", reason());
    // A right one that is replaced by a wrong one is as if it were withdrawn.
    add(6, VNI, VNI, "192.0.2.1");
    wait_for("the endpoint to go", PATIENCE, || {
        daemon.json(&["show", "peers", "--json"]).as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn speakers_that_are_none_are_told_of_and_networks_run() {
    let lab = require!(Lab::new());
    require!(need_program("gobgpd", "gobgpd"));
    require!(need_program("python3", "python3"));
    let [host, _other] = require!(hosts(&lab, (true, false)));
    let guests = [require!(NetNs::new(&lab, "g1")), require!(NetNs::new(&lab, "g2"))];
    let socket = |name: &str| Speaker::socket(&lab, name);
    let silent = format!(
        "import socket,time;s=socket.socket(socket.AF_UNIX);s.bind(\"{}\");s.listen(9);a=[s.accept() for n in range(99)]",
        socket("silent")
    );
    let _silent = host.spawn(&format!("exec python3 -c '{silent}'"));
    let web = format!(
        "import socketserver,http.server as h;socketserver.UnixStreamServer(\"{}\",h.SimpleHTTPRequestHandler).serve_forever()",
        socket("web")
    );
    let _web = host.spawn(&format!("exec python3 -c '{web}'"));
    let _empty = host.spawn(&format!("exec gobgpd --pprof-disable --api-hosts unix://{}", socket("empty")));
    let _other = require!(Speaker::start(&lab, &host, "other", "192.0.2.1", &[]));
    let cases = [
        ("absent", "nobody answers"),
        ("silent", "does not answer"),
        ("web", "neither the API"),
        ("empty", "does not speak BGP yet"),
        ("other", "of autonomous system 65000, the file says 65001"),
    ];
    for (name, _) in &cases[1..] {
        wait_for(name, PATIENCE, || std::path::Path::new(&socket(name)).exists());
    }
    let mut text = String::new();
    for (n, (name, _)) in cases.iter().enumerate() {
        let (port, vni) = (4790 + n, 100 + n);
        text += &format!(
            "[vteps.{name}]\nlocal = \"192.0.2.1\"\nport = {port}\ncontrol = \"evpn\"\nspeaker = \"unix://{}\"\nas = {}\n\
             [networks.{name}]\noverlay = {{ vtep = \"{name}\", vni = {vni} }}\n",
            socket(name),
            if *name == "other" { 65001 } else { 65000 }
        );
    }
    for (n, guest) in guests.iter().enumerate() {
        let netns = guest.netns_name();
        text += &format!(
            "[guests.g{n}]\nports = [{{ network = \"silent\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
        );
    }
    let daemon = Daemon::start_beside(&lab, &host, "hv1", &text);
    for (n, guest) in guests.iter().enumerate() {
        guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
    }
    assert!(guests[0].reaches("10.7.0.2", PATIENCE).is_some(), "{}", daemon.log());
    for (name, words) in cases {
        let reason = || {
            let networks = daemon.json(&["show", "networks", "--json"]);
            let all = networks.as_array().cloned().unwrap_or_default();
            all.iter().find(|one| one["name"] == name).map(|one| one["reason"].to_string()).unwrap_or_default()
        };
        assert!(holds_within(PATIENCE, || reason().contains(words)), "{name}: {}\n{}", reason(), daemon.log());
        println!("{name}: {}", reason());
    }
    let doctor = host
        .run(&format!("{} --config {} doctor", lab::daemon::program().display(), daemon.config().display()), PATIENCE);
    for (name, _) in cases {
        assert!(doctor.output.contains(&format!("BGP speaker of {name}")), "{}", doctor.output);
    }
    assert!(doctor.output.contains("neither the API") && doctor.output.contains("nobody answers"), "{}", doctor.output);
}
