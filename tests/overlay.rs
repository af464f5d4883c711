//! Overlays: a network of ours stretches to hosts whose tunnel is ours, the kernel's or Open vSwitch's.
//!
//! A host is a network namespace with a link into an underlay; guests are namespaces with a TAP of ours, or behind the kernel's bridge.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::Place;
use lab::site::{Site, broadcasts, stream, stream_of, sum_of};
use lab::{Lab, Unable, need_program, require, wait_for};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);

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
    assert!(a.run("ping -M dont -c 3 -i 0.2 -W 5 -s 1472 10.7.0.2", PATIENCE).ok(), "what may be cut is");
}

#[test]
fn a_wide_underlay_is_the_guests() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab, false));
    site.hosts.iter().for_each(|host| drop(host.ip("link set u0 mtu 9000")));
    let daemons = [site.ours(&lab, 0), site.ours(&lab, 1)];
    assert_eq!(daemons[0].json(&["show", "networks", "--json"])[0]["mtu"], 8950);
    for (n, guest) in site.guests.iter().enumerate() {
        guest.ip("link set eth0 mtu 8950");
        guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
    }
    let [a, b] = &site.guests;
    assert!(a.reaches("10.7.0.2", PATIENCE).is_some(), "{}", daemons[0].log());
    // As long as it may be: 28 bytes are headers.
    let told = a.run("ping -M do -c 2 -i 0.2 -W 10 -s 8922 10.7.0.2", PATIENCE);
    assert!(told.ok() && told.output.contains("2 received"), "{}\n{}", told.output, daemons[0].log());
    stream(a, b, "10.7.0.2", "MTU 8950", || daemons[0].log());
}

/// A host with a guest and a daemon of ours.
type Ours = (NetNs, NetNs, Daemon);

/// Hosts on one link, all of them peers.
fn mesh(lab: &Lab, count: usize) -> Result<(NetNs, Vec<Ours>), Unable> {
    let middle = NetNs::new(lab, "link")?;
    middle.ip("link add br0 type bridge");
    middle.ip("link set br0 up");
    let mut hosts = Vec::new();
    for n in 1..=count {
        let (host, guest) = (NetNs::new(lab, &format!("m{n}"))?, NetNs::new(lab, &format!("g{n}"))?);
        host.veth("u0", &middle, &format!("p{n}"));
        middle.ip(&format!("link set p{n} master br0"));
        host.address("u0", &format!("192.0.2.{n}/24"));
        let peers: Vec<String> =
            (1..=count).filter(|other| *other != n).map(|other| format!("\"192.0.2.{other}\"")).collect();
        let text = format!(
            "[networks.tenant]\noverlay = {{ vni = 77, local = \"192.0.2.{n}\", peers = [{}] }}\n\
             [guests.g]\nports = [{{ network = \"tenant\", mac = \"02:00:00:00:00:0{n}\", attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
            peers.join(", "),
            guest.netns_name()
        );
        let daemon = Daemon::start_beside(lab, &host, &format!("hv{n}"), &text);
        guest.address("eth0", &format!("10.7.0.{n}/24"));
        hosts.push((host, guest, daemon));
    }
    Ok((middle, hosts))
}

#[test]
fn three_hosts_in_a_mesh_reach_each_other_and_one_comes_back() {
    let lab = require!(Lab::new());
    let (_middle, mut hosts) = require!(mesh(&lab, 3));
    let all = |hosts: &[Ours]| {
        for (from, (_, guest, daemon)) in hosts.iter().enumerate() {
            for to in (0..hosts.len()).filter(|to| *to != from) {
                let reached = guest.reaches(&format!("10.7.0.{}", to + 1), PATIENCE).is_some();
                assert!(reached, "{} to {}: {}", from + 1, to + 1, daemon.ctl(&["show", "drops"]).output);
            }
        }
    };
    all(&hosts);
    // A broadcast comes to each of the others once: no echo, no loop.
    let before: Vec<u64> = hosts.iter().map(|(_, guest, _)| broadcasts(guest)).collect();
    let _ = hosts[0].1.run("ping -b -c 4 -i 0.2 -W 1 10.7.0.255", PATIENCE);
    wait_for("the broadcasts", PATIENCE, || {
        hosts.iter().zip(&before).all(|((_, guest, _), before)| broadcasts(guest) >= before + 4)
    });
    let came: Vec<u64> = hosts.iter().zip(&before).map(|((_, guest, _), before)| broadcasts(guest) - before).collect();
    // Its own are those that its kernel hands itself.
    assert_eq!(came, [4, 4, 4]);
    hosts[2].2.kill9();
    assert!(hosts[0].1.reaches("10.7.0.2", PATIENCE).is_some(), "the others go on");
    hosts[2].2.restart();
    hosts[2].1.address("eth0", "10.7.0.3/24");
    all(&hosts);
}

#[test]
fn a_guest_that_moves_is_found_at_its_new_host_before_it_says_a_word() {
    let lab = require!(Lab::new());
    let (_middle, mut hosts) = require!(mesh(&lab, 3));
    // The third knows the first guest where it is.
    assert!(hosts[0].1.reaches("10.7.0.3", PATIENCE).is_some());
    let behind = |hosts: &[Ours]| {
        let fdb = hosts[2].2.json(&["show", "fdb", "--json"]);
        let one = fdb.as_array().unwrap().iter().find(|one| one["mac"] == "02:00:00:00:00:01");
        one.map_or(serde_json::Value::Null, |one| one["peer"].clone())
    };
    assert_eq!(behind(&hosts), "192.0.2.1");
    hosts[0].2.terminate();
    // At the second host its port comes up, in a namespace that says nothing.
    let silent = require!(NetNs::new(&lab, "silent"));
    silent.sh("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1");
    hosts[1].2.terminate();
    let text = format!(
        "[networks.tenant]\noverlay = {{ vni = 77, local = \"192.0.2.2\", peers = [\"192.0.2.1\", \"192.0.2.3\"] }}\n\
         [guests.moved]\nports = [{{ network = \"tenant\", mac = \"02:00:00:00:00:01\", addresses = [\"10.7.0.1\"], \
         attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
        silent.netns_name()
    );
    let second = Daemon::start_beside(&lab, &hosts[1].0, "hv2b", &text);
    wait_for("the guest to be found", PATIENCE, || behind(&hosts) == "192.0.2.2");
    assert_eq!(second.port("moved/0")["rx_frames"], 0, "it said nothing");
    // Its address is told, too: the third host's guest finds it in its cache where it had it before.
    let known = hosts[2].1.sh("ip neigh show 10.7.0.1 dev eth0");
    assert!(known.contains("02:00:00:00:00:01"), "{known}");
}

#[test]
fn a_known_neighbour_costs_no_arp_and_no_solicitation_on_the_underlay() {
    let lab = require!(Lab::new());
    require!(need_program("tshark", "tshark"));
    require!(need_program("tcpdump", "tcpdump"));
    let site = require!(Site::new(&lab, false));
    let _daemons = [0, 1].map(|host| site.ours_with(&lab, host, ", suppress = true"));
    let [a, b] = &site.guests;
    for (n, guest) in site.guests.iter().enumerate() {
        guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
        guest.ip(&format!("address add fd07::{}/64 dev eth0 nodad", n + 1));
    }
    // Each hears the other, so that both hosts know both.
    for (from, to) in [(a, 2), (b, 1)] {
        for address in [format!("10.7.0.{to}"), format!("fd07::{to}")] {
            assert!(from.reaches(&address, PATIENCE).is_some());
        }
    }
    let file = lab.path("suppressed.pcap");
    let mut capture =
        site.hosts[0].spawn(&format!("exec tcpdump -U -Z root -i u0 -w {} udp port 4789", file.display()));
    wait_for("tcpdump to listen", PATIENCE, || capture.output().contains("listening on"));
    for _ in 0..5 {
        for guest in &site.guests {
            guest.ip("neigh flush dev eth0");
        }
        for address in ["10.7.0.2", "fd07::2"] {
            assert!(a.reaches(address, PATIENCE).is_some());
        }
    }
    let count = |filter: &str| {
        let told = site.hosts[0].sh(&format!("tshark -r {} -Y '{filter}' 2>/dev/null", file.display()));
        told.lines().count()
    };
    wait_for("packets to be written", PATIENCE, || count("icmp.type == 0") >= 5 && count("icmpv6.type == 129") >= 5);
    capture.kill();
    assert_eq!((count("arp"), count("icmpv6.type == 135"), count("icmpv6.type == 136")), (0, 0, 0));
    // Who is not known is asked for all over.
    assert!(!a.run("ping -c 1 -W 1 10.7.0.77", PATIENCE).ok());
}

/// What tshark warns of though the tunnel has no part in it: how the streams inside went, and how they ended; and that Linux writes a checksum that
/// comes to 0 as 0xffff in TCP, too (`skb_checksum_help`), where guests complete their own.
const EXPECTED: &str = "tcp.analysis.flags || tcp.connection.rst || tcp.checksum.ffff";

#[test]
fn what_is_sent_is_decoded_without_a_complaint() {
    let lab = require!(Lab::new());
    for (program, package) in [("tshark", "tshark"), ("tcpdump", "tcpdump"), ("ethtool", "ethtool")] {
        require!(need_program(program, package));
    }
    for (kind, v6) in [("sockets", false), ("sockets", true), ("network", false), ("network", true), ("geneve", false)]
    {
        let site = require!(Site::new(&lab, v6));
        decoded(&lab, &site, kind);
    }
}

fn decoded(lab: &Lab, site: &Site, kind: &str) {
    let what = format!("{kind}, v6 {}", site.v6);
    let _daemons = [0, 1].map(|host| {
        let (local, peers) = (site.address(host), format!("peers = [\"{}\"]", site.address(1 - host)));
        match kind {
            "sockets" => site.ours(lab, host),
            "network" => site.ours_in_a_network_with(lab, host, &peers, "checksum = true\n"),
            _ => {
                let netns = site.guests[host].netns_name();
                let text = format!(
                    "[vteps.main]\nlocal = \"{local}\"\nencapsulation = \"geneve\"\ndscp = \"copy\"\n{peers}\n\
                     [networks.tenant]\noverlay = {{ vni = 5001, vtep = \"main\" }}\n\
                     [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
                );
                Daemon::start_beside(lab, &site.hosts[host], &format!("hv{}", host + 1), &text)
            }
        }
    });
    // What a device would complete or cut is complete and cut where it is looked at.
    site.hosts.iter().for_each(|host| drop(host.sh("ethtool -K u0 tx off gso off >/dev/null")));
    for (n, guest) in site.guests.iter().enumerate() {
        guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
        guest.ip(&format!("address add fd07::{}/64 dev eth0 nodad", n + 1));
        guest.sh("ethtool -K eth0 tx off gso off >/dev/null");
    }
    let (header, port) = if kind == "geneve" { ("geneve", 6081) } else { ("vxlan", 4789) };
    let file = lab.path(&format!("{kind}-{}.pcap", site.v6));
    let listen = format!("exec tcpdump -U -B 16384 -Z root -i u0 -w {} udp port {port}", file.display());
    let mut capture = site.hosts[0].spawn(&listen);
    wait_for("tcpdump to listen", PATIENCE, || capture.output().contains("listening on"));
    let [a, b] = &site.guests;
    let sum = sum_of(a, 300_000);
    for address in ["10.7.0.2", "fd07::2"] {
        assert!(a.reaches(address, PATIENCE).is_some(), "{what}");
        stream_of((300_000, &sum), (a, b, address), &what, String::new);
    }
    assert!(a.run("ping -c 1 -W 10 -Q 0xb8 10.7.0.2", PATIENCE).ok(), "{what}");
    let checks = "-o ip.check_checksum:TRUE -o udp.check_checksum:TRUE -o tcp.check_checksum:TRUE";
    let fields = |filter: &str, field: &str| {
        let told = site.hosts[0]
            .sh(&format!("tshark -r {} {checks} -Y '{filter}' -T fields -e {field} 2>/dev/null", file.display()));
        told.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let read = |filter: &str| fields(filter, "frame.number").len();
    wait_for("packets to be written", PATIENCE, || read("icmp.type == 0 && ip.dsfield.dscp == 46") == 1);
    capture.kill();
    let all = read("frame");
    assert!(all > 400, "{what}: {all}");
    let outer = if site.v6 {
        format!("ipv6 && {header}.vni == 5001")
    } else {
        format!("ip.flags.df == 1 && {header}.vni == 5001")
    };
    assert_eq!(read(&outer), all, "{what}");
    if header == "vxlan" {
        assert!(fields("frame", "vxlan.flags").iter().all(|flags| flags == "0x0800"), "{what}");
    }
    let complaints =
        fields(&format!("_ws.malformed || (_ws.expert.severity >= 0x600000 && !({EXPECTED}))"), "_ws.expert.message");
    assert!(complaints.is_empty(), "{what}: {complaints:?}");
    let bad = "udp.checksum.status == 0 || ip.checksum.status == 0 || (tcp.checksum.status == 0 && !tcp.checksum.ffff) || icmp.checksum.status == 0 || icmpv6.checksum.status == 0";
    assert_eq!(read(bad), 0, "{what}");
    if kind == "network" || site.v6 {
        assert_eq!(
            read(&format!("udp.dstport == {port} && udp.checksum.status == 1")),
            all,
            "{what}: none is without one"
        );
    }
    assert!(read("arp") > 0 && read("icmp") > 0 && read("icmpv6") > 0 && read("tcp") > 400, "{what}");
    // The class of the echo request, outside and inside.
    let classes = fields("icmp.type == 8 && ip.dsfield.dscp == 46", "ip.dsfield.dscp");
    let expected = if kind == "geneve" {
        "46,46"
    } else if site.v6 {
        "46"
    } else {
        "0,46"
    };
    assert_eq!(classes, [expected], "{what}");
}

#[test]
fn a_guest_of_ours_is_on_one_segment_with_one_behind_open_vswitch() {
    let lab = require!(Lab::new());
    for program in ["ovs-vswitchd", "ovsdb-tool", "ovs-vsctl", "ethtool"] {
        require!(need_program(program, if program == "ethtool" { "ethtool" } else { "openvswitch-switch" }));
    }
    for v6 in [false, true] {
        beside_open_vswitch(&lab, &require!(Site::new(&lab, v6)));
    }
}

fn beside_open_vswitch(lab: &Lab, site: &Site) {
    let daemon = site.ours(lab, 0);
    let [ours, theirs] = &site.hosts;
    // It looks at checksums that no device has completed: with them complete, our datagrams are cut here and not by the kernel.
    ours.sh("ethtool -K u0 tx off >/dev/null");
    theirs.ip("address flush dev u0");
    theirs.veth("g0", &site.guests[1], "eth0");
    let (mtu, prefix) = if site.v6 { (1430, 64) } else { (1450, 24) };
    site.guests[1].sh(&format!("ethtool -K eth0 tx off >/dev/null; ip link set eth0 mtu {mtu}"));
    let dir = lab.path(&format!("ovs{prefix}"));
    std::fs::create_dir_all(&dir).unwrap();
    let set =
        format!("cd {}; export OVS_RUNDIR=$PWD OVS_LOGDIR=$PWD OVS_DBDIR=$PWD OVS_SYSCONFDIR=$PWD", dir.display());
    theirs.sh(&format!("{set}; ovsdb-tool create conf.db /usr/share/openvswitch/vswitch.ovsschema"));
    let _database = theirs.spawn(&format!("{set}; exec ovsdb-server conf.db --remote=punix:$PWD/db.sock"));
    wait_for("the database", PATIENCE, || dir.join("db.sock").exists());
    let control = format!("{set}; ovs-vsctl --timeout=20 --db=unix:$PWD/db.sock");
    theirs.sh(&format!("{control} --no-wait init"));
    let _switch = theirs.spawn(&format!("{set}; exec ovs-vswitchd unix:$PWD/db.sock"));
    theirs.sh(&format!(
        "{control} add-br brphy -- set bridge brphy datapath_type=netdev -- add-port brphy u0 \
         -- add-br br0 -- set bridge br0 datapath_type=netdev -- add-port br0 g0 \
         -- add-port br0 vx -- set interface vx type=vxlan options:remote_ip={} options:key=5001",
        site.address(0)
    ));
    theirs.ip("link set brphy up");
    let nodad = if site.v6 { " nodad" } else { "" };
    theirs.ip(&format!("address add {}/{prefix} dev brphy{nodad}", site.address(1)));
    site.everything(&format!("Open vSwitch, v6 {}", site.v6), || daemon.ctl(&["show", "drops"]).output);
}

#[test]
fn endpoints_in_networks_of_ours_stretch_networks_to_each_other_and_to_sockets_and_the_kernel() {
    let lab = require!(Lab::new());
    for v6 in [false, true] {
        for other in ["network", "sockets", "kernel"] {
            let site = require!(Site::new(&lab, v6));
            let peer = |host: usize| format!("peers = [\"{}\"]", site.address(1 - host));
            let daemon = site.ours_in_a_network(&lab, 0, &peer(0));
            let _other = match other {
                "network" => Some(site.ours_in_a_network(&lab, 1, &peer(1))),
                "sockets" => Some(site.ours(&lab, 1)),
                _ => {
                    require!(site.kernel(1));
                    None
                }
            };
            let what = format!("{other}, v6 {v6}");
            site.everything(&what, || daemon.ctl(&["show", "drops"]).output);
            let mtu = if v6 { 1430 } else { 1450 };
            assert_eq!(daemon.json(&["show", "networks", "--json"])[1]["mtu"], mtu);
            let pinged = site.address(0);
            if other != "network" {
                assert!(site.hosts[1].reaches(&pinged, PATIENCE).is_some(), "{what}: the endpoint answers pings");
            }
            let drops = daemon.ctl(&["show", "drops"]).output;
            for reason in ["bad_packet", "bad_tunnel", "outer_fragment", "unknown_vtep", "no_buffers"] {
                assert!(!drops.contains(reason), "{what}: {drops}");
            }
        }
    }
}

#[test]
fn frames_to_everybody_go_to_a_group_that_the_kernel_is_in_too() {
    let lab = require!(Lab::new());
    for v6 in [false, true] {
        for kind in ["sockets", "network"] {
            let site = require!(Site::new(&lab, v6));
            let group = if v6 { "ff05::77:1" } else { "239.1.1.1" };
            let to = format!("group = \"{group}\"");
            let daemon = if kind == "network" {
                site.ours_in_a_network(&lab, 0, &to)
            } else {
                let (local, netns) = (site.address(0), site.guests[0].netns_name());
                let text = format!(
                    "[networks.tenant]\noverlay = {{ vni = 5001, local = \"{local}\", {to} }}\n\
                     [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
                );
                Daemon::start_beside(&lab, &site.hosts[0], "hv1", &text)
            };
            require!(site.kernel_to(1, &format!("group {group} ttl 4")));
            site.everything(&format!("{kind}, group {group}"), || daemon.ctl(&["show", "drops"]).output);
            let peers = daemon.json(&["show", "peers", "--json"]);
            assert_eq!((&peers[0]["address"], &peers[0]["state"]), (&site.address(1).into(), &"up".into()), "{peers}");
        }
    }
}

/// The kernel's tunnel that is told no device does not know what the underlay takes, and sends frames of 1,500 bytes in two pieces; over IPv6 it
/// does not cut, but loses them.
#[test]
fn packets_that_the_kernels_tunnel_cuts_arrive_whole() {
    let lab = require!(Lab::new());
    for in_a_network in [false, true] {
        let what = format!("in a network {in_a_network}");
        let site = require!(Site::new(&lab, false));
        let daemon = match in_a_network {
            true => site.ours_in_a_network(&lab, 0, &format!("peers = [\"{}\"]", site.address(1))),
            false => site.ours(&lab, 0),
        };
        require!(site.kernel(1));
        let (host, local, remote) = (&site.hosts[1], site.address(1), site.address(0));
        host.ip("link del vx0");
        host.ip(&format!("link add vx0 type vxlan id 5001 local {local} remote {remote} dstport 4789"));
        host.ip("link set vx0 master br0 mtu 1500 up");
        host.ip("link set g0 mtu 1500");
        for (n, guest) in site.guests.iter().enumerate() {
            guest.ip("link set eth0 mtu 1500");
            guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
        }
        let b = &site.guests[1];
        assert!(b.reaches("10.7.0.1", PATIENCE).is_some(), "{what}: {}", daemon.log());
        // What is answered to them is too long for us, and cut where it may be.
        let told = b.run("ping -M dont -c 5 -i 0.2 -W 2 -s 1472 10.7.0.1", PATIENCE);
        assert!(told.ok() && told.output.contains("5 received"), "{what}: {}", told.output);
        assert!(!daemon.ctl(&["show", "drops"]).output.contains("outer_fragment"), "{what}");
        let cut = host.sh("nstat -asz IpFragOKs | tail -1");
        let count: f64 = cut.split_whitespace().nth(1).and_then(|count| count.parse().ok()).unwrap_or_default();
        assert!(count >= 5.0, "{what}: the tunnel has cut its packets: {cut}");
    }
}

#[test]
fn two_vlans_of_a_network_are_two_numbers_of_the_kernels_tunnel() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab, false));
    let others = require!(NetNs::new(&lab, "g3").and_then(|one| Ok([one, NetNs::new(&lab, "g4")?])));
    let netns = [&site.guests[0], &others[0]].map(NetNs::netns_name);
    let port = |vlan: u16, netns: &str| {
        format!("{{ network = \"tenant\", vlan = {vlan}, attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}")
    };
    let text = format!(
        "[networks.tenant]\nvlan_vni = {{ 100 = 5001, 200 = 5002 }}\noverlay = {{ local = \"192.0.2.1\", peers = [\"192.0.2.2\"] }}\n\
         [guests.g]\nports = [{}, {}]\n",
        port(100, netns[0]),
        port(200, netns[1])
    );
    let daemon = Daemon::start_beside(&lab, &site.hosts[0], "hv1", &text);
    require!(site.kernel(1));
    let kernel = &site.hosts[1];
    kernel.ip("link add vx1 type vxlan id 5002 dev u0 local 192.0.2.2 remote 192.0.2.1 dstport 4789");
    kernel.veth("g1", &others[1], "eth0");
    kernel.ip("link add br1 type bridge");
    ["vx1", "g1"].iter().for_each(|interface| drop(kernel.ip(&format!("link set {interface} master br1 up"))));
    kernel.ip("link set br1 up");
    // The same addresses in both, and each finds its own.
    for (n, guest) in others.iter().enumerate() {
        guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
    }
    assert!(others[0].reaches("10.7.0.2", PATIENCE).is_some(), "{}", daemon.ctl(&["show", "drops"]).output);
    let before = broadcasts(&others[1]);
    site.everything("VLAN 100", || daemon.ctl(&["show", "drops"]).output);
    assert_eq!(broadcasts(&others[1]), before, "what is for everybody in one VLAN stays in it");
    for [from, to] in [[&site.guests[0], &site.guests[1]], [&others[0], &others[1]]] {
        let known = from.sh("ip neigh show 10.7.0.2 dev eth0");
        assert!(known.contains(&to.mac("eth0")), "{known}");
    }
    let vnis: Vec<u64> = daemon
        .json(&["show", "peers", "--json"])
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|peer| peer["vni"].as_u64())
        .collect();
    assert_eq!(vnis, [5001, 5002]);
}
