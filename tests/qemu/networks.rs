//! Guests on one network and on VLANs, and what the program says of their traffic.

use super::lab::daemon::Daemon;
use super::lab::frames::{Flow, Proto, Traffic, Vlan, exchange};
use super::lab::iperf::{Iperf, iperf};
use super::lab::process::Place;
use super::lab::qemu::{GuestSpec, NicSpec, Qemu};
use super::lab::{Lab, require, wait_for};
use super::{MSS, SUPER_FRAME_GAP_US, address, edges, everything_intact, intact, mac, super_frames};
use serde_json::{Value, json};
use std::time::Duration;

/// A counter of a port, or the sum of its drops for a reason.
fn counter(daemon: &Daemon, port: &str, name: &str) -> u64 {
    let port = daemon.port(port);
    port.get(name).or_else(|| port["drops"].get(name)).and_then(Value::as_u64).unwrap_or(0)
}

/// The entries of `show fdb` for a MAC address: (VLAN, port).
fn stations(daemon: &Daemon, mac: &str) -> Vec<(Option<u64>, String)> {
    let fdb = daemon.json(&["show", "fdb", "--json"]);
    let entries = fdb.as_array().expect("a list").iter().filter(|entry| entry["mac"] == mac);
    entries.map(|entry| (entry["vlan"].as_u64(), entry["port"].as_str().expect("a name").to_owned())).collect()
}

#[test]
fn two_guests_talk_and_counters_tell_the_truth() {
    let lab = require!(Lab::new());
    let daemon = Daemon::start(
        &lab,
        &format!(
            r#"
            [networks.lan]
            [guests.a]
            ports = [{{ network = "lan", mac = "{}", socket = "$DIR/a.sock" }}]
            [guests.b]
            ports = [{{ network = "lan", socket = "$DIR/b.sock" }}]
            "#,
            mac(1, 0)
        ),
    );
    assert_eq!(daemon.port("a/0")["state"], "waiting");
    let nic = |name: &str, guest| NicSpec::new(lab.path(&format!("{name}.sock")), &mac(guest, 0));
    let a = require!(Qemu::boot(&lab, GuestSpec::new("a", vec![nic("a", 1)])));
    let b = require!(Qemu::boot(&lab, GuestSpec::new("b", vec![nic("b", 2)])));
    address(&a, "eth0", "10.0.0.1/24");
    address(&b, "eth0", "10.0.0.2/24");
    assert!(a.reaches("10.0.0.2", Duration::from_secs(5)).is_some(), "{}", daemon.log());
    for port in ["a/0", "b/0"] {
        let port = daemon.port(port);
        assert_eq!(
            (&port["state"], &port["network"], &port["attach"]),
            (&json!("up"), &json!("lan"), &json!("vhost-user"))
        );
    }
    assert_eq!(stations(&daemon, &mac(1, 0)), [(None, "a/0".to_owned())]);
    assert_eq!(stations(&daemon, &mac(2, 0)), [(None, "b/0".to_owned())]);

    frames_are_counted(&daemon, &a, &b);
    everything_intact(&a, &b, &Flow::to_mac(&mac(2, 0)));
    everything_intact(&b, &a, &Flow::to_mac(&mac(1, 0)));

    let before = daemon.json(&["status", "--json"])["workers"][0]["frames"].as_u64().expect("a number");
    for reverse in [false, true] {
        let tcp = iperf(&b, &a, "10.0.0.2", &Iperf { seconds: 2, reverse, ..Iperf::default() }).expect("TCP");
        assert!(tcp.bits_per_second > 5e6, "{tcp:?}");
        let udp = Iperf { seconds: 1, reverse, udp_bits_per_second: Some(4_000_000), ..Iperf::default() };
        let udp = iperf(&b, &a, "10.0.0.2", &udp).expect("UDP");
        assert!(udp.bits_per_second > 2e6, "{udp:?}");
    }
    let status = daemon.json(&["status", "--json"]);
    assert!(status["workers"][0]["frames"].as_u64().expect("a number") > before + 1000, "{status}");
    assert!(status["workers"][0]["busy_cycles"].as_u64().expect("a number") > 0, "{status}");
    assert_eq!(status["ports"][0]["name"], "a/0");
}

/// Frames that only this test sends: each is counted once where it came in and once where it went out, or with a reason.
fn frames_are_counted(daemon: &Daemon, a: &dyn Place, b: &dyn Place) {
    let names = ["rx_frames", "rx_bytes", "tx_frames", "tx_bytes"];
    let ports = ["a/0", "b/0"].map(|port| names.map(|name| (port, name)));
    let read = || ports.map(|port| port.map(|(port, name)| counter(daemon, port, name)));
    let traffic = edges(10);
    let bytes = 10 * traffic.sizes.iter().sum::<usize>() as u64;
    let before = read();
    intact(a, b, &Flow::to_mac(&mac(2, 0)), &traffic);
    let after = read();
    let [a_more, b_more] = [0, 1].map(|port| [0, 1, 2, 3].map(|name| after[port][name] - before[port][name]));
    assert_eq!((a_more, b_more), ([100, bytes, 0, 0], [0, 0, 100, bytes]));

    let silence =
        |flow| exchange(a, b, &Flow { timeout: Duration::from_millis(500), ..flow }, &Traffic::plain(&[60], 7));
    let there = mac(2, 0);
    let spoofed = silence(Flow { src: Some("02:00:00:00:00:77"), ..Flow::to_mac(&there) });
    let reserved = silence(Flow::to_mac("01:80:c2:00:00:0e"));
    assert_eq!((spoofed.frames, reserved.frames), (0, 0));
    assert_eq!(counter(daemon, "a/0", "spoofed_source"), 7);
    assert_eq!(counter(daemon, "a/0", "reserved"), 7);
    let drops = daemon.json(&["show", "drops", "--json"]);
    let told = drops.as_array().expect("a list");
    for reason in ["spoofed_source", "reserved"] {
        assert!(told.contains(&json!({ "port": "a/0", "reason": reason, "count": 7 })), "{drops}");
    }
    assert_eq!(stations(daemon, "02:00:00:00:00:77"), []);
}

#[test]
fn vlans_part_guests_and_trunks_join_them() {
    let lab = require!(Lab::new());
    let daemon = Daemon::start(
        &lab,
        r#"
        [networks.lan]
        [guests.a]
        ports = [{ network = "lan", vlan = 100, socket = "$DIR/a.sock" }]
        [guests.b]
        ports = [{ network = "lan", vlan = 200, socket = "$DIR/b.sock" }]
        [guests.c]
        ports = [
          { network = "lan", trunk = [100, 200], socket = "$DIR/c0.sock" },
          { network = "lan", trunk = [100], native = 200, socket = "$DIR/c1.sock" },
        ]
        "#,
    );
    let nic = |name: &str, guest, index| NicSpec::new(lab.path(&format!("{name}.sock")), &mac(guest, index));
    let a = require!(Qemu::boot(&lab, GuestSpec::new("a", vec![nic("a", 1, 0)])));
    let b = require!(Qemu::boot(&lab, GuestSpec::new("b", vec![nic("b", 2, 0)])));
    let c = require!(Qemu::boot(&lab, GuestSpec::new("c", vec![nic("c0", 3, 0), nic("c1", 3, 1)])));
    c.sh("ip link set eth0 up && ip link set eth1 up");
    for (parent, vlan) in [("eth0", 100), ("eth0", 200), ("eth1", 100)] {
        c.sh(&format!("ip link add link {parent} name {parent}.{vlan} type vlan id {vlan}"));
    }
    // 10.1 and 10.2: through the trunk without a native VLAN. 10.3 and 10.4: through the other one. 10.9: the two VLANs.
    let addresses: [(&dyn Place, &str, &str); 10] = [
        (&a, "eth0", "10.1.0.1/24"),
        (&c, "eth0.100", "10.1.0.3/24"),
        (&b, "eth0", "10.2.0.2/24"),
        (&c, "eth0.200", "10.2.0.3/24"),
        (&a, "eth0", "10.3.0.1/24"),
        (&c, "eth1.100", "10.3.0.3/24"),
        (&b, "eth0", "10.4.0.2/24"),
        (&c, "eth1", "10.4.0.3/24"),
        (&a, "eth0", "10.9.0.1/24"),
        (&b, "eth0", "10.9.0.2/24"),
    ];
    addresses.iter().for_each(|(place, interface, with_prefix)| address(*place, interface, with_prefix));
    // Only ask and answer where the address is: both NICs of c are in both VLANs.
    c.sh("sysctl -q -w net.ipv4.conf.all.arp_ignore=1");

    let paths: [(&dyn Place, &str); 4] = [(&a, "10.1.0.3"), (&b, "10.2.0.3"), (&a, "10.3.0.3"), (&b, "10.4.0.3")];
    for (from, to) in paths {
        assert!(
            from.reaches(to, Duration::from_secs(5)).is_some(),
            "{} does not reach {to}: {}",
            from.name(),
            daemon.log()
        );
    }
    assert!(a.reaches("10.9.0.2", Duration::from_secs(1)).is_none());
    let silence = Flow { timeout: Duration::from_millis(500), ..Flow::to_mac("ff:ff:ff:ff:ff:ff") };
    let crossed = exchange(&a, &b, &silence, &Traffic::plain(&[60, 1514], 5));
    assert_eq!(crossed.frames, 0, "{crossed:?}");

    let learnt = |guest, nic, port: &str, vlans: &[u64]| {
        let all = vlans.iter().map(|vlan| (Some(*vlan), port.to_owned())).collect::<Vec<_>>();
        assert_eq!(stations(&daemon, &mac(guest, nic)), all);
    };
    learnt(1, 0, "a/0", &[100]);
    learnt(2, 0, "b/0", &[200]);
    learnt(3, 0, "c/0", &[100, 200]);
    learnt(3, 1, "c/1", &[100, 200]);

    // The kernel's own VLAN interfaces, and tags that the test writes itself; super-frames are pushed and popped whole.
    for (interface, peer, guest) in [("eth0.100", &a, 1), ("eth0.200", &b, 2), ("eth1.100", &a, 1), ("eth1", &b, 2)] {
        let nic = usize::from(interface.starts_with("eth1"));
        let (there, here) = (mac(guest, 0), mac(3, nic));
        everything_intact(&c, peer, &Flow { from: interface, ..Flow::to_mac(&there) });
        everything_intact(peer, &c, &Flow { to: interface, ..Flow::to_mac(&here) });
    }
    let there = mac(2, 0);
    let tagged = Flow { send_vlan: Vlan::Id(200), gap_us: SUPER_FRAME_GAP_US, mss: MSS, ..Flow::to_mac(&there) };
    intact(&c, &b, &tagged, &edges(2));
    intact(&c, &b, &tagged, &super_frames(Proto::Tcp4, 2));
    let here = mac(3, 0);
    let tagged = Flow { receive_vlan: Vlan::Id(200), gap_us: SUPER_FRAME_GAP_US, mss: MSS, ..Flow::to_mac(&here) };
    intact(&b, &c, &tagged, &edges(2));
    intact(&b, &c, &tagged, &super_frames(Proto::Tcp6, 2));
    for (address, from) in [("10.1.0.3", &a), ("10.4.0.3", &b)] {
        let tcp = iperf(&c, from, address, &Iperf { seconds: 1, ..Iperf::default() }).expect("TCP");
        assert!(tcp.bits_per_second > 5e6, "{tcp:?}");
    }

    frames_of_other_vlans_are_dropped(&daemon, &a, &b, &c);
}

fn frames_of_other_vlans_are_dropped(daemon: &Daemon, a: &dyn Place, b: &dyn Place, c: &dyn Place) {
    let b_mac = mac(2, 0);
    let cases = [
        (c, Vlan::Untagged, "c/0", "untagged_not_allowed"),
        (c, Vlan::Id(300), "c/0", "vlan_not_allowed"),
        (a, Vlan::Id(100), "a/0", "vlan_not_allowed"),
        (a, Vlan::Id(200), "a/0", "vlan_not_allowed"),
    ];
    for (sender, send_vlan, port, reason) in cases {
        let before = counter(daemon, port, reason);
        let silence =
            Flow { send_vlan, receive_vlan: Vlan::Any, timeout: Duration::from_millis(500), ..Flow::to_mac(&b_mac) };
        let report = exchange(sender, b, &silence, &Traffic::plain(&[60], 7));
        assert_eq!(report.frames, 0, "{send_vlan:?} {report:?}");
        wait_for("the drops to be counted", Duration::from_secs(5), || counter(daemon, port, reason) == before + 7);
    }
}
