//! TAP ports: Linux's own network stack at both ends of the switch, each in a namespace of its own.
//!
//! Linux leaves checksums and segmentation to the device, so super-frames are what passes here. Read first:
//! `vswitch::host::tap`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program};
use lab::frames::{Flow, Proto, Traffic, Vlan, exchange};
use lab::iperf::{Iperf, iperf};
use lab::netns::NetNs;
use lab::pings::Pings;
use lab::process::{Place, Process, guarded};
use lab::{Lab, need_program, require, wait_for};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A network `lan` of namespaces, each with a TAP `eth0` that has these further keys and the address 10.0.0.N.
fn config(namespaces: &[(&NetNs, &str)]) -> String {
    let mut text = "[networks.lan]\nmode = \"isolated\"\n".to_owned();
    for (number, (ns, more)) in (1..).zip(namespaces) {
        let netns = ns.netns_name();
        let port = format!("{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\"{more} }}");
        text.push_str(&format!("[guests.g{number}]\nports = [{port}]\n"));
    }
    text
}

fn start(lab: &Lab, namespaces: &[(&NetNs, &str)]) -> Daemon {
    let daemon = Daemon::start(lab, &config(namespaces));
    for (number, (ns, _)) in (1..).zip(namespaces) {
        ns.address("eth0", &format!("10.0.0.{number}/24"));
    }
    daemon
}

/// All drops but of what a namespace sends before there is another port.
fn drops(daemon: &Daemon) -> Value {
    let mut drops = daemon.json(&["show", "drops", "--json"]);
    drops.as_array_mut().unwrap().retain(|drop| drop["reason"] != "no_destination");
    drops
}

#[test]
fn streams_of_two_namespaces_arrive_whole() {
    let lab = require!(Lab::new());
    let (a, b) = (require!(NetNs::new(&lab, "a")), require!(NetNs::new(&lab, "b")));
    let daemon = start(&lab, &[(&a, ""), (&b, "")]);
    assert!(a.reaches("10.0.0.2", PATIENCE).is_some(), "{}", daemon.log());
    for reverse in [false, true] {
        let report = iperf(&b, &a, "10.0.0.2", &Iperf { seconds: 2, reverse, ..Iperf::default() }).unwrap();
        let gigabits = report.bits_per_second / 1e9;
        println!(
            "TCP, reverse {reverse}: {gigabits:.2} Gbit/s, {} retransmits, drops {}",
            report.retransmits,
            drops(&daemon)
        );
        assert!(report.bits_per_second > 1e8, "{report:?}");
        assert!(report.retransmits < 100, "a retransmit storm: {} of {gigabits} Gbit/s", report.retransmits);
    }
    let udp = Iperf { seconds: 1, udp_bits_per_second: Some(100_000_000), ..Iperf::default() };
    // A receiver that gets no processor for ten milliseconds loses some in its socket; that is not always so.
    let arrives = || {
        let got = iperf(&b, &a, "10.0.0.2", &udp).unwrap();
        println!("UDP: {got:?}");
        got.bits_per_second > 9e7 && got.lost_percent < 1.0
    };
    assert!((0..5).any(|_| arrives()), "datagrams are lost each time");
    assert_eq!(drops(&daemon), Value::Array(vec![]));
}

#[test]
fn a_file_arrives_as_it_was_sent() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let (a, b) = (require!(NetNs::new(&lab, "a")), require!(NetNs::new(&lab, "b")));
    let daemon = start(&lab, &[(&a, ""), (&b, "")]);
    assert!(a.reaches("10.0.0.2", PATIENCE).is_some(), "{}", daemon.log());
    let sent = lab.path("sent");
    write_noise(&sent, 256 << 20);
    let _listening = b.spawn("busybox nc -l -p 5000 -e sha256sum");
    // A listener (0A) on port 5000.
    wait_for("nc to listen", PATIENCE, || b.run("grep -q ':1388 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok());
    let there = a.run(&format!("busybox nc 10.0.0.2 5000 <{}", sent.display()), Duration::from_secs(60)).success();
    let here = a.sh(&format!("sha256sum <{}", sent.display()));
    assert!(here.len() > 64 && here == there, "{here} was sent, {there} came");
    assert_eq!(drops(&daemon), Value::Array(vec![]));
}

/// Fills a file with bytes that repeat nowhere near (xorshift64).
fn write_noise(path: &Path, len: usize) {
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path).unwrap());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..len / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_ne_bytes()).unwrap();
    }
    file.flush().unwrap();
}

#[test]
fn jumbo_frames_and_super_frames_pass_in_one_piece() {
    let lab = require!(Lab::new());
    let (a, b) = (require!(NetNs::new(&lab, "a")), require!(NetNs::new(&lab, "b")));
    let daemon = Daemon::start(&lab, &config(&[(&a, ""), (&b, "")]).replace("isolated\"", "isolated\"\nmtu = 9000"));
    for (ns, address) in [(&a, "10.0.0.1/24"), (&b, "10.0.0.2/24")] {
        assert!(ns.ip("link show eth0").contains("mtu 9000"), "{}", ns.ip("link show eth0"));
        ns.address("eth0", address);
    }
    assert!(a.reaches("10.0.0.2", PATIENCE).is_some(), "{}", daemon.log());
    let dst = b.mac("eth0");
    let plain = Traffic::plain(&[60, 61, 127, 128, 129, 1514, 1515, 4096, 9014], 40);
    let report = exchange(&a, &b, &Flow::to_mac(&dst), &plain);
    assert!(report.clean && report.largest == 9014, "{report:?}");
    for proto in [Proto::Tcp4, Proto::Tcp6] {
        let traffic = Traffic { proto, sizes: vec![100, 1514, 9000, 40000, 65535], count: 40, seed: 7 };
        let report = exchange(&a, &b, &Flow::to_mac(&dst), &traffic);
        assert!(report.clean && report.largest == 65535 && report.frames == 200, "{report:?}");
    }
    // Where the receiving stack takes no super-frames, the switch segments them.
    b.sh("frames set eth0 gro off");
    b.sh("ping -c 3 -i 0.1 -M do -s 8972 10.0.0.1");
    assert_eq!(drops(&daemon), Value::Array(vec![]));
}

#[test]
fn a_trunk_keeps_tags_and_an_access_port_has_none() {
    let lab = require!(Lab::new());
    let names = ["trunk", "access", "other"];
    let [trunk, access, other] = names.map(|name| NetNs::new(&lab, name));
    let (trunk, access, other) = (require!(trunk), require!(access), require!(other));
    let ports = [(&trunk, ", trunk = [100, 300]"), (&access, ", vlan = 100"), (&other, ", vlan = 200")];
    let daemon = start(&lab, &ports);
    let (to_trunk, to_access) = (trunk.mac("eth0"), access.mac("eth0"));
    let (tagged, untagged) = (Vlan::Id(100), Vlan::Untagged);
    let super_frames = Traffic { proto: Proto::Tcp4, sizes: vec![100, 1514, 65535], count: 20, seed: 3 };
    for traffic in [Traffic::plain(&[60, 127, 128, 1514], 40), super_frames] {
        let down = Flow { send_vlan: tagged, receive_vlan: untagged, ..Flow::to_mac(&to_access) };
        let report = exchange(&trunk, &access, &down, &traffic);
        assert!(report.clean && report.tagged == 0, "{report:?}");
        let up = Flow { send_vlan: untagged, receive_vlan: tagged, ..Flow::to_mac(&to_trunk) };
        let report = exchange(&access, &trunk, &up, &traffic);
        assert!(report.clean && report.tagged == report.frames, "{report:?}");
    }
    let short = Duration::from_millis(300);
    let few = Traffic { seed: 9, ..Traffic::plain(&[60], 5) };
    for (vlan, what) in [(Vlan::Id(200), "vlan_not_allowed"), (Vlan::Untagged, "untagged_not_allowed")] {
        let flow =
            Flow { send_vlan: vlan, receive_vlan: Vlan::Any, timeout: short, ..Flow::to_mac("ff:ff:ff:ff:ff:ff") };
        assert_eq!(exchange(&trunk, &other, &flow, &few).frames, 0, "{what}");
        wait_for(what, PATIENCE, || daemon.port("g1/0")["drops"][what].as_u64() >= Some(5));
    }
    let wrong = Flow { receive_vlan: Vlan::Any, timeout: short, ..Flow::to_mac("ff:ff:ff:ff:ff:ff") };
    assert_eq!(exchange(&access, &other, &wrong, &few).frames, 0);
}

#[test]
fn an_interface_on_a_vlan_talks_through_a_trunk() {
    let lab = require!(Lab::new());
    let (trunk, access) = (require!(NetNs::new(&lab, "trunk")), require!(NetNs::new(&lab, "access")));
    let daemon = start(&lab, &[(&trunk, ", trunk = [100], native = 1"), (&access, ", vlan = 100")]);
    let vlan = trunk.run("ip link add link eth0 name eth0.100 type vlan id 100", PATIENCE);
    if !vlan.ok() {
        lab::skip!("this kernel has no VLAN interfaces: {}", vlan.output.trim());
    }
    trunk.address("eth0.100", "10.1.0.1/24");
    access.ip("addr add 10.1.0.2/24 dev eth0");
    assert!(trunk.reaches("10.1.0.2", PATIENCE).is_some(), "{}", daemon.log());
    assert!(trunk.reaches("10.0.0.2", Duration::from_secs(1)).is_none(), "the native VLAN is another one");
}

#[test]
fn two_queues_carry_four_streams() {
    let lab = require!(Lab::new());
    let (a, b) = (require!(NetNs::new(&lab, "a")), require!(NetNs::new(&lab, "b")));
    let daemon = start(&lab, &[(&a, ", queues = 2"), (&b, ", queues = 2")]);
    assert_eq!(a.sh("ls -d /sys/class/net/eth0/queues/tx-* | wc -l").trim(), "2");
    assert!(a.reaches("10.0.0.2", PATIENCE).is_some(), "{}", daemon.log());
    let report = iperf(&b, &a, "10.0.0.2", &Iperf { seconds: 2, streams: 4, ..Iperf::default() }).unwrap();
    println!("four streams: {:.2} Gbit/s, {} retransmits", report.bits_per_second / 1e9, report.retransmits);
    assert!(report.bits_per_second > 1e8 && report.retransmits < 400, "{report:?}");
    assert_eq!(drops(&daemon), Value::Array(vec![]));
}

#[test]
fn a_tap_that_cannot_be_made_is_down_alone() {
    let lab = require!(Lab::new());
    let (a, b) = (require!(NetNs::new(&lab, "a")), require!(NetNs::new(&lab, "b")));
    let nowhere = "{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"no-such-namespace\" }";
    let text = format!("{}[guests.lost]\nports = [{nowhere}]\n", config(&[(&a, ""), (&b, "")]));
    let daemon = Daemon::start(&lab, &text);
    a.address("eth0", "10.0.0.1/24");
    b.address("eth0", "10.0.0.2/24");
    let port = daemon.port("lost/0");
    println!("{port}");
    let reason = port["reason"].as_str().unwrap_or_default();
    assert!(port["state"] == "down" && reason.contains("no-such-namespace") && reason.contains("ip netns"), "{port}");
    assert!(a.reaches("10.0.0.2", PATIENCE).is_some(), "{}", daemon.log());
}

#[test]
fn without_privilege_a_tap_says_what_is_missing() {
    let lab = require!(Lab::new());
    let ns = require!(NetNs::new(&lab, "not-ours"));
    // Somebody who may not make a TAP, with all that he needs to start where he may read it.
    let home = lab.path("home");
    let text = "[networks.lan]\nmode = \"isolated\"\n[guests.a]\nports = [{ network = \"lan\", attach = \"tap\", tap = \"tl-not-here\" }, { network = \"lan\", socket = \"$HOME/a.sock\" }]\n\
                [host]\nrun_dir = \"$HOME/run\"\nstate_dir = \"$HOME/state\"\n";
    std::fs::create_dir(&home).unwrap();
    std::fs::copy(program(), home.join("trunkline")).unwrap();
    std::fs::write(home.join("trunkline.toml"), text.replace("$HOME", &home.display().to_string())).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    let mut command = guarded("ip");
    command.args([
        "netns",
        "exec",
        ns.netns_name(),
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "--inh-caps=-all",
    ]);
    command.arg(home.join("trunkline")).arg("up").arg(home.join("trunkline.toml"));
    let mut process = Process::start(lab.dir(), "unprivileged", command);
    wait_for("the daemon", PATIENCE, || {
        assert!(process.running(), "{}", process.log());
        process.log().lines().any(|line| line == "ready")
    });
    let socket = home.join("run/control.sock");
    let shown =
        Command::new(program()).arg("--socket").arg(&socket).args(["show", "ports", "--json"]).output().unwrap();
    let ports: Value = serde_json::from_slice(&shown.stdout).unwrap_or_else(|e| panic!("{e}: {shown:?}"));
    println!("{ports}");
    let reason = ports[0]["reason"].as_str().unwrap_or_default();
    assert!(ports[0]["state"] == "down" && reason.contains("CAP_NET_ADMIN"), "{ports}");
    assert_eq!(ports[1]["state"], "waiting");
}

#[test]
fn a_tap_deleted_from_outside_takes_down_its_own_port() {
    let lab = require!(Lab::new());
    let (a, b) = (require!(NetNs::new(&lab, "a")), require!(NetNs::new(&lab, "b")));
    let c = require!(NetNs::new(&lab, "c"));
    let daemon = start(&lab, &[(&a, ""), (&b, ""), (&c, ", queues = 2")]);
    assert!(a.reaches("10.0.0.3", PATIENCE).is_some(), "{}", daemon.log());
    let pings = Pings::start(&a, "10.0.0.2");
    c.ip("link del eth0");
    wait_for("the port to go down", PATIENCE, || daemon.port("g3/0")["state"] == "down");
    let port = daemon.port("g3/0");
    assert!(port["reason"].as_str().is_some_and(|why| why.contains("eth0") && why.contains("removed")), "{port}");
    pings.none_lost();
    assert_eq!(daemon.port("g1/0")["state"], "up");
}
