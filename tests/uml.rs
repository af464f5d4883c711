//! User-mode Linux guests: a real Linux with the real virtio-net driver, which leaves control queue and MAC address to the device.
//!
//! User-mode Linux 6.1 does not connect again when its back end goes, so after a restart of the daemon a new guest attaches.
//! Read first: virtio 1.2 section 5.1.6.5, the control queue.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::frames::{Flow, Proto, Traffic, Vlan, exchange};
use lab::iperf::{Iperf, iperf};
use lab::netns::NetNs;
use lab::pings::Pings;
use lab::process::Place;
use lab::uml::Uml;
use lab::{Lab, Unable, require, wait_for};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);

/// Ports `a/0` (with a declared MAC address) and `b/0` for guests, and a TAP in a namespace with 10.0.0.9.
fn start(lab: &Lab, more: &str) -> Result<(Daemon, NetNs), Unable> {
    let ns = NetNs::new(lab, "tap")?;
    let netns = ns.netns_name();
    let text = format!(
        "[networks.lan]\nmode = \"isolated\"\n\
         [guests.a]\nports = [{{ network = \"lan\", socket = \"$DIR/a.sock\", mac = \"02:00:00:00:00:0a\", guard = false{more} }}]\n\
         [guests.b]\nports = [{{ network = \"lan\", socket = \"$DIR/b.sock\"{more} }}]\n\
         [guests.tap]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\"{more} }}]\n"
    );
    let daemon = Daemon::start(lab, &text);
    ns.address("eth0", "10.0.0.9/24");
    Ok((daemon, ns))
}

/// A guest on port `<name>/0`, with an address.
fn guest(lab: &Lab, name: &str, address: &str) -> Result<Uml, Unable> {
    let guest = Uml::boot(lab, name, &[lab.path(&format!("{name}.sock"))])?;
    guest.sh(&format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up"));
    Ok(guest)
}

fn mac(place: &dyn Place) -> String {
    place.sh("cat /sys/class/net/eth0/address").trim().to_owned()
}

fn is_waiting(daemon: &Daemon, port: &str) -> bool {
    daemon.port(port)["state"] == "waiting"
}

#[test]
fn guests_talk_to_each_other_and_to_a_tap() {
    let lab = require!(Lab::new());
    let (daemon, ns) = require!(start(&lab, ""));
    let (a, b) = (require!(guest(&lab, "a", "10.0.0.1")), require!(guest(&lab, "b", "10.0.0.2")));
    assert_eq!(mac(&a), "02:00:00:00:00:0a", "the declared address is the guest's");
    println!("features {}", a.sh("cat /sys/bus/virtio/devices/virtio*/features").trim());
    for (from, to) in [(&a as &dyn Place, "10.0.0.2"), (&b, "10.0.0.9"), (&ns, "10.0.0.1")] {
        assert!(from.reaches(to, PATIENCE).is_some(), "{to}\n{}\n{}", daemon.log(), a.story());
    }
    for (server, client, address) in [(&b as &dyn Place, &a as &dyn Place, "10.0.0.2"), (&ns, &b, "10.0.0.9")] {
        for reverse in [false, true] {
            let report = iperf(server, client, address, &Iperf { seconds: 1, reverse, ..Iperf::default() }).unwrap();
            println!(
                "{} to {address}, reverse {reverse}: {:.2} Gbit/s, {} retransmits",
                client.name(),
                report.bits_per_second / 1e9,
                report.retransmits
            );
            assert!(report.bits_per_second > 1e7, "{report:?}");
        }
    }
    let (to_a, to_b) = (mac(&a), mac(&b));
    let plain = Traffic::plain(&[60, 127, 128, 129, 1514], 30);
    let tcp = Traffic { proto: Proto::Tcp4, sizes: vec![100, 1514, 20000, 65535], count: 10, seed: 5 };
    for traffic in [plain, tcp] {
        for (from, to, dst) in [(&a as &dyn Place, &b as &dyn Place, &to_b), (&ns, &a, &to_a)] {
            let report = exchange(from, to, &Flow { gap_us: 1000, ..Flow::to_mac(dst) }, &traffic);
            assert!(report.clean, "{} to {}: {report:?}\n{}", from.name(), to.name(), daemon.port("a/0"));
        }
    }
}

/// How many frames to `dst` the namespace sends and the guest's port filters.
fn filtered(daemon: &Daemon, ns: &NetNs, dst: &str, vlan: Vlan) -> u64 {
    let count = || daemon.port("a/0")["drops"]["filtered"].as_u64().unwrap_or(0);
    let before = (count(), daemon.port("tap/0")["rx_frames"].as_u64().unwrap());
    let tag = vlan.argument();
    ns.sh(&format!("frames send eth0 --dst {dst} --vlan {tag} --gap-us 200 --sizes 60 --count 20"));
    wait_for("the frames", PATIENCE, || daemon.port("tap/0")["rx_frames"].as_u64() >= Some(before.1 + 20));
    count() - before.0
}

#[test]
fn the_control_queue_decides_what_a_guest_gets() {
    let lab = require!(Lab::new());
    // Tags pass on all ports.
    let (daemon, ns) = require!(start(&lab, ", trunk = [100], native = 1"));
    let a = require!(guest(&lab, "a", "10.0.0.1"));
    assert!(a.reaches("10.0.0.9", PATIENCE).is_some(), "{}", daemon.log());
    let other = "02:00:00:00:00:77";
    assert!(filtered(&daemon, &ns, other, Vlan::Untagged) >= 20, "another's address: {}", daemon.port("a/0"));
    a.sh("ip link set eth0 promisc on");
    assert!(filtered(&daemon, &ns, other, Vlan::Untagged) < 20, "promiscuous");
    a.sh("ip link set eth0 promisc off");
    assert!(filtered(&daemon, &ns, other, Vlan::Untagged) >= 20, "no longer promiscuous");

    let group = "01:00:5e:01:02:03";
    assert!(filtered(&daemon, &ns, group, Vlan::Untagged) >= 20, "a group it has not joined");
    a.sh("ifconfig eth0 allmulti");
    assert!(filtered(&daemon, &ns, group, Vlan::Untagged) < 20, "all groups");
    a.sh("ifconfig eth0 -allmulti");
    assert!(filtered(&daemon, &ns, group, Vlan::Untagged) >= 20, "no longer all groups");

    let everyone = "ff:ff:ff:ff:ff:ff";
    assert!(filtered(&daemon, &ns, everyone, Vlan::Id(100)) >= 20, "a VLAN it has not");
    a.sh("ip link add link eth0 name eth0.100 type vlan id 100 && ip link set eth0.100 up");
    assert!(filtered(&daemon, &ns, everyone, Vlan::Id(100)) < 20, "its VLAN");
    a.sh("ip link del eth0.100");
    assert!(filtered(&daemon, &ns, everyone, Vlan::Id(100)) >= 20, "no longer its VLAN");

    a.sh(&format!("ip link set eth0 address {other}"));
    assert!(filtered(&daemon, &ns, other, Vlan::Untagged) < 20, "its other address");
    assert!(filtered(&daemon, &ns, "02:00:00:00:00:0a", Vlan::Untagged) >= 20, "its former address");
    assert!(a.reaches("10.0.0.9", PATIENCE).is_some(), "{}", daemon.log());
}

#[test]
fn a_guest_killed_while_it_sends_leaves_others_alone() {
    let lab = require!(Lab::new());
    let (daemon, ns) = require!(start(&lab, ""));
    let b = require!(guest(&lab, "b", "10.0.0.2"));
    let pings = Pings::start(&b, "10.0.0.9");
    for _ in 0..2 {
        let mut a = require!(guest(&lab, "a", "10.0.0.1"));
        assert!(a.reaches("10.0.0.9", PATIENCE).is_some(), "{}", daemon.log());
        let mut listening = ns.spawn("iperf3 -s -1 --forceflush");
        listening.wait_for_output("Server listening", PATIENCE);
        let before = daemon.port("a/0")["rx_bytes"].as_u64().unwrap();
        let _sending = a.spawn("iperf3 -c 10.0.0.9 -t 60");
        wait_for("a transfer", PATIENCE, || daemon.port("a/0")["rx_bytes"].as_u64() > Some(before + (10 << 20)));
        a.kill();
        wait_for("the port to be free", PATIENCE, || is_waiting(&daemon, "a/0"));
        pings.go_on();
    }
    // One that halts by itself.
    let mut a = require!(guest(&lab, "a", "10.0.0.1"));
    assert!(a.reaches("10.0.0.2", PATIENCE).is_some(), "{}", daemon.log());
    let _halting = a.spawn("poweroff -f");
    wait_for("the guest's end", PATIENCE, || !a.running());
    wait_for("the port to be free", PATIENCE, || is_waiting(&daemon, "a/0"));
    println!("{} pings meanwhile", pings.none_lost());
}

#[test]
fn a_driver_that_lets_go_of_its_device_takes_it_up_again() {
    let lab = require!(Lab::new());
    let (daemon, ns) = require!(start(&lab, ""));
    let a = require!(guest(&lab, "a", "10.0.0.1"));
    assert!(ns.reaches("10.0.0.1", PATIENCE).is_some(), "{}", daemon.log());
    let driver = "/sys/bus/virtio/drivers/virtio_net";
    a.sh(&format!("d=$(basename {driver}/virtio*) && echo $d >{driver}/unbind && echo $d >{driver}/bind"));
    a.sh("ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up");
    assert!(ns.reaches("10.0.0.1", PATIENCE).is_some(), "{}\n{}", daemon.log(), a.story());
}

#[test]
fn a_restarted_daemon_takes_a_new_guest() {
    let lab = require!(Lab::new());
    let (mut daemon, ns) = require!(start(&lab, ""));
    let old = require!(guest(&lab, "a", "10.0.0.1"));
    assert!(ns.reaches("10.0.0.1", PATIENCE).is_some(), "{}", daemon.log());
    daemon.kill9();
    daemon.restart();
    ns.address("eth0", "10.0.0.9/24");
    drop(old);
    wait_for("the port to be free", PATIENCE, || is_waiting(&daemon, "a/0"));
    let _new = require!(guest(&lab, "a", "10.0.0.1"));
    assert!(ns.reaches("10.0.0.1", PATIENCE).is_some(), "{}", daemon.log());
}
